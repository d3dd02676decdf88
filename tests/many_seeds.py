"""Every set drawn from many seeds: what does not hold with one of them, and which wrong solutions are only caught by luck.

    python tests/many_seeds.py --count 20 --seed 1 15 16        some two minutes a seed for all sets on two cores; --count 20 by hand

`make test` draws each set from one new seed a run. A wrong solution that a hidden case catches nineteen times of twenty passes most runs
of it, and then a class is marked with the twentieth. So a wrong solution should have a case that catches it with every seed; where none
does, the chance that all miss is printed, as if cases missed independently of each other.
"""

import argparse
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

from qlab.grading import mark
from qlab.grading.author import build
from qlab.grading.author.measure import measure

ROOT = Path(__file__).parents[1]


def caught(bundle: dict):
    """(question, wrong solution, hidden case) wherever the case catches it; a case is known by its place and what it is about."""
    for question in bundle["questions"]:
        for place, case in enumerate(question["cases"]):
            for note, answer in case["wrong"].items():
                if case["kind"] == "hidden" and mark.why_wrong(case, answer):
                    yield question["id"], note, (place, case["about"] or case["call"])


def chance(times: Counter, drawn: int) -> float:
    """That a new seed lets it pass: (misses + 1) / (drawn + 2) of each case, for none of so few draws shows a chance of 0."""
    return math.prod((drawn - count + 1) / (drawn + 2) if count < drawn else 1 / (drawn + 2) for count in times.values())


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help="numbers of sets; all, if none is given")
    parser.add_argument("--count", type=int, default=5, help="seeds (%(default)s)")
    parser.add_argument("--seed", default="1", help="what the seeds begin with (%(default)s)")
    options = parser.parse_args(argv)
    paths = build._find(ROOT, options.sets)
    catches, wrong, drawn, failed = defaultdict(Counter), set(), Counter(), False
    for number in range(options.count):
        seed = f"{options.seed}-{number}"
        for path, outcome in build._in_processes(measure, [(str(path), seed) for path in paths]):
            name = Path(path).stem
            if isinstance(outcome, str):
                failed = True
                print(f"seed {seed}: {outcome}", flush=True)
                continue
            drawn[name] += 1
            wrong |= {(name, question["id"], note) for question in outcome["questions"] for note in question["wrong"]}
            for question, note, case in caught(outcome):
                catches[name, question, note][case] += 1
    for name, question, note in sorted(wrong):
        times = catches[name, question, note]
        if max(times.values(), default=0) < drawn[name]:
            most = ", ".join(f"{count} by {about!r}" for (_, about), count in times.most_common(3))
            print(f"{name}, {question}: {note!r} slips through with a chance of {chance(times, drawn[name]):.1g}: "
                  f"of {drawn[name]} seeds it is caught with {most}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
