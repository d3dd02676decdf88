"""The leaderboard of the challenge, as a page and as a table: export/leaderboard.html and .csv; with whose each row is, for the teacher
alone, teacher/leaderboard.csv.

    share       right of n hidden images, with the 95 % interval                               Wilson 1927
    better      the paired test of two hand-ins on the same images, exact, two-sided           McNemar 1947
                all pairs of a track together, with Holm's correction                          Holm 1979
    rank        1 + how many are better: whose difference may be chance has the same rank, and "=" says so

Names are the students' own choice: what alias.txt says, and without it none; an alias that is another student's name, or that two chose, is
none either. What is not within its limits has no rank. Nor have the references (solutions/challenge), measured on the same images: their
rows are bars to compare with, under names that no student can take, and change nobody's rank.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from qlab.grading.challenge.measure import standard_errors, wilson
from qlab.grading.handed_in.teams import lookalike
from qlab.grading.report import feedback, whole
from qlab.grading.report.text import markup, table

COLUMNS = ("track", "rank", "name", "score", "low", "high", "bytes", "ms")
FOR_THE_TEACHER = ("student", "id", *COLUMNS)
TITLES = {"weights": "Weights: the depthwise network in few bytes", "speed": "Speed and size: predict in few bytes and little time"}


def export(made: list[dict], bundle: dict, folder: Path, references: list[dict] = ()) -> str:
    """Write the three files below folder, and say so. made: results; references: those of the reference hand-ins."""
    found, place, private = rows(made, bundle, references), folder / "export" / "leaderboard.html", folder / "teacher" / "leaderboard.csv"
    tables = {path: "\ufeff" + table([list(names), *([row[name] for name in names] for row in found)])
              for path, names in ((place.with_suffix(".csv"), COLUMNS), (private, FOR_THE_TEACHER))}
    whole.files({place: page(found, bundle), **tables})
    drawn = len({row["name"] for row in found if not row["rank"]})
    told = f"{drawn} of {len(references)} references" if references else "no reference, for there is no solutions/challenge"
    return f"{place} and .csv, with {told}; {private}, with students' names and ids, for the teacher only"


def rows(made: list[dict], bundle: dict, references: list[dict] = ()) -> list[dict]:
    """A dictionary of FOR_THE_TEACHER for each measured hand-in of each track, the best first; equal scores by name.

    references: results of the reference hand-ins, which stand among them without a rank.
    """
    counts = [result for result in made if result["status"] == "graded" and result["submission"]["duplicate_of"] is None]
    bars = [result for result in references if result["status"] == "graded"]
    given, found = [*zip(counts, _names(counts, bars)), *((result, result["alias"]) for result in bars)], []
    for track in bundle["tracks"]:
        entries = []
        for place, (result, name) in enumerate(given):
            question = next((one for one in result["questions"] if one["id"] == track), {})
            measured = question.get("measured", {})
            if "right" in measured:
                right = np.unpackbits(np.frombuffer(bytes.fromhex(measured["right"]), np.uint8))[:measured["images"]].astype(bool)
                part = measured["control"] if measured["learned"] else [int(right.sum()), len(right)]
                low, high = (round(100 * end, 4) for end in wilson(*part))
                entries.append({"student": result["submission"]["student"], "id": result["submission"]["id"], "track": track, "rank": "",
                                "name": name, "score": round(100 * part[0] / part[1], 2), "low": low, "high": high,
                                "bytes": measured["bytes"], "ms": measured.get("ms"), "right": right, "part": part,
                                "paired": not measured["learned"], "ranked": place < len(counts)})
        entries.sort(key=lambda one: (-one["score"], one["name"]))
        ranked = [entry for entry in entries if entry["ranked"]]
        better = _better(ranked)
        ranks = [1 + sum(better[other, one] for other in range(len(ranked))) for one in range(len(ranked))]
        for entry, rank in zip(ranked, ranks):
            entry["rank"] = f"{rank}{'=' * (ranks.count(rank) > 1)}"
        found += [{name: entry[name] for name in FOR_THE_TEACHER} for entry in entries]
    return found


def _names(counts: list[dict], bars: list[dict]) -> list[str]:
    students = Counter(lookalike(result["submission"]["student"]) for result in counts)
    chosen = Counter(lookalike(result.get("alias", "")) for result in [*counts, *bars])
    names = []
    for result in counts:
        alias = result.get("alias", "")
        own = lookalike(alias) == lookalike(result["submission"]["student"])
        free = chosen[lookalike(alias)] == 1 and (own or not students[lookalike(alias)])
        names.append(alias if alias and free else "anonymous")                              # no number: it would tell the order of names
    return names


def _better(entries: list[dict]) -> np.ndarray:
    """[i, j]: whether hand-in i is better than j, and not by chance."""
    n, pairs = len(entries), []
    for i in range(n):
        for j in range(i + 1, n):
            a, b = entries[i], entries[j]
            if a["paired"] and b["paired"]:
                pairs.append((mcnemar(int((a["right"] & ~b["right"]).sum()), int((b["right"] & ~a["right"]).sum())), i, j))
            else:                                                                           # of the control: other images, so two samples
                pairs.append((math.erfc(abs(standard_errors(*a["part"], *b["part"])) / math.sqrt(2)), i, j))
    better, before = np.zeros((n, n), dtype=bool), 0.0
    for place, (p, i, j) in enumerate(sorted(pairs)):
        before = max(before, p * (len(pairs) - place))
        if before < 0.05:
            better[i, j] = True                                                             # i stands before j: its score is higher
    return better


def mcnemar(a_only: int, b_only: int) -> float:
    """How likely so uneven a split is if both are equally good: 2 P(X <= the smaller), X ~ Binomial(both, 1/2), at most 1.

    >>> round(mcnemar(0, 6), 9), mcnemar(5, 5)
    (0.03125, 1.0)
    """
    less, n = min(a_only, b_only), a_only + b_only
    total, term, k = 0.0, 1.0, less
    while k >= 0 and term > 1e-17 * total:                                                  # P(X = k) as a part of P(X = less): they fall
        total, term, k = total + term, term * k / (n - k + 1), k - 1
    first = math.lgamma(n + 1) - math.lgamma(less + 1) - math.lgamma(n - less + 1) - n * math.log(2)
    return min(1.0, 2 * math.exp(first) * total)


def page(found: list[dict], bundle: dict) -> str:
    """The leaderboard as HTML."""
    parts = ["<h1>The challenge</h1>",
             '<p class="soft">Percent of the hidden images right, with its 95 % interval. Two hand-ins have the same rank, marked =, where '
             "the difference between them may be chance (paired test on the same images, Holm's correction for all pairs). What has no "
             "rank is a reference of the course, measured on the same images.</p>"]
    for track, limits in bundle["tracks"].items():
        own = [row for row in found if row["track"] == track]
        timed = "ms" in limits
        head = ["rank", "name", "right", "interval", "bytes", *(["ms for 1,000"] if timed else [])]
        allowed = f"at most {limits['bytes']:,} bytes" + (f" and {limits['ms']:,g} ms of the processor for 1,000 images" if timed else "")
        parts += [f"<section><h2>{markup(TITLES[track])}</h2><p class=\"soft\">{markup(allowed)}</p>"]
        parts.append("<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>")
        for row in own:
            cells = [row["rank"], row["name"], f"{row['score']:.2f} %", f"{row['low']:.1f} to {row['high']:.1f}", f"{row['bytes']:,}",
                     *([f"{row['ms']:,.0f}"] if timed else [])]
            parts.append(("<tr>" if row["rank"] else '<tr class="soft">') + "".join(f"<td><bdi>{markup(cell)}</bdi></td>" for cell in cells)
                         + "</tr>")
        parts.append("</table>" + ("" if own else "<p>Nothing is within the limits.</p>") + "</section>")
    return feedback.frame("The challenge", "\n".join(parts), feedback.STYLE + "th { width: auto; } body { max-width: 56rem; }")
