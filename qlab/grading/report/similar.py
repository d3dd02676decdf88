"""Hand-ins that resemble each other: pairs of answer cells that are alike after renaming, with what everybody has taken out.

    tokens        without comments, layout, docstrings, parentheses and commas
    fingerprints  every run of K tokens, its names numbered in the order in which they come: a renamed copy has the same ones
    its own       fingerprints of an answer that stand neither in the exercise as handed out nor in more than COMMON of the class's answers,
                  5 where the class is small
    alike         two answers that share at least LEAST of their own, and SHARE of those of the one that has fewer

So a short answer, and the usual way to write a long one, is never reported: whoever solves the same task in the same way has the same
fingerprints, but then many have them. In a class of five or fewer nothing is common, and the usual way is reported if it is long enough.

What it means: these two texts are worth a reading side by side. What it does not mean: that one was copied, or which one, or that what is
not listed was not. A shared book, a study group or the lesson's own lines do it too; a copy that was rewritten in another order of steps
is not found. No mark depends on it.

Sources: Schleimer, Wilkerson and Aiken 2003, Winnowing (fingerprints of k tokens; answers are so short that all are kept, none selected);
their MOSS likewise leaves out what the teacher gave and what many share.
"""

import builtins
import io
import keyword
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from itertools import combinations

from qlab.grading.report import answers
from qlab.grading.report.feedback import STYLE, frame

K = 6
LEAST, SHARE = 35, 0.6
COMMON, FEW = 0.05, 5
LONGEST = 32_000  # characters of an answer that are compared
SHOWN = 200       # pairs in the page; the table has all
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
_STARTS = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_KEPT = set(keyword.kwlist) | set(dir(builtins))


@dataclass(frozen=True)
class Pair:
    """Two results whose answers are alike, and for each such question how many fingerprints they share, and their share."""

    one: dict
    other: dict
    alike: dict[str, tuple[int, float]]


def tokens(source: str) -> list[tuple[str, bool]]:
    """What counts of Python code: (text, whether it is a name that its author was free to choose). Ends where the code is no Python.

    >>> [text for text, _ in tokens('def f(x):\\n    "Doubles."\\n    return 2 * (x)  # twice\\n')]
    ['def', 'f', 'x', ':', 'return', '2', '*', 'x']
    """
    found, start, before = [], True, ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source[:LONGEST]).readline):
            if token.type in _LAYOUT:
                start = start or token.type in _STARTS
                continue
            docstring, start = start and token.type == tokenize.STRING, False
            if not docstring and token.string not in "(),;":
                name = token.type == tokenize.NAME and token.string not in _KEPT and before != "."
                text = token.string.lstrip("rRbBuUfF").strip("\"'") if token.type == tokenize.STRING else token.string
                found.append((text, name))
            before = token.string
    except (tokenize.TokenError, SyntaxError, ValueError):  # half a string, a tab too many, a magic
        pass
    return found


def fingerprints(source: str) -> set[tuple]:
    """Every K tokens in a row, names numbered by their first place in it.

    >>> fingerprints("total = total + part / 2") == fingerprints("s = s+p/2") != fingerprints("s = p+s/2")
    True
    """
    run = tokens(source)
    made = set()
    for k in range(len(run) - K + 1):
        numbers = {}
        made.add(tuple(numbers.setdefault(text, len(numbers)) if name else text for text, name in run[k : k + K]))
    return made


def pairs(made: list[dict], bundle: dict, cells: dict[str, tuple[dict, ...]], given: tuple[dict, ...] = ()) -> list[Pair]:
    """The pairs that are alike in at least one question, those that share most first.

    made: the results that count; cells: of each, by its id; given: the cells of the exercise as it was handed out.
    """
    alike = defaultdict(dict)
    for question in bundle["questions"]:
        for (one, other), found in _in_question(made, question, cells, given).items():
            alike[one, other][question["id"]] = found
    found = [Pair(made[one], made[other], questions) for (one, other), questions in alike.items()]
    return sorted(found, key=lambda pair: (-sum(shared for shared, _ in pair.alike.values()), pair.one["submission"]["id"],
                                           pair.other["submission"]["id"]))


def _in_question(made: list[dict], question: dict, cells: dict, given: tuple[dict, ...]) -> dict[tuple[int, int], tuple[int, float]]:
    stub = answers.of_question(given, question)
    theirs = fingerprints(stub["source"]) if stub else set()
    holders = defaultdict(list)  # fingerprint: the results that have it
    for index, result in enumerate(made):
        answer = answers.of_question(cells.get(result["submission"]["id"], ()), question)
        for print_ in fingerprints(answer["source"]) - theirs if answer else ():
            holders[print_].append(index)
    answered = len({index for those in holders.values() for index in those})
    own = [those for those in holders.values() if len(those) <= max(FEW, COMMON * answered)]
    count, shared = defaultdict(int), defaultdict(int)
    for those in own:
        for index in those:
            count[index] += 1
        for pair in combinations(those, 2):
            shared[pair] += 1
    return {pair: (number, number / min(count[pair[0]], count[pair[1]])) for pair, number in shared.items()
            if number >= LEAST and number >= SHARE * min(count[pair[0]], count[pair[1]]) and not _one_file(*(made[k] for k in pair))}


def _one_file(one: dict, other: dict) -> bool:
    """Whether both were given for the same file, as a team hands it in."""
    return one["submission"]["source"] == other["submission"]["source"]


def rows(found: list[Pair]) -> list[list]:
    """The table: a row for each pair and question."""
    head = ["student", "other student", "question", "alike, %", "fingerprints shared", "id", "other id"]
    return [head] + [[pair.one["submission"]["student"], pair.other["submission"]["student"], name, f"{100 * share:.0f}", shared,
                      pair.one["submission"]["id"], pair.other["submission"]["id"]]
                     for pair in found for name, (shared, share) in pair.alike.items()]


LEFT_OUT = ("Comments, layout, docstrings, the exercise's own lines and what many of the class have in common are not counted; short "
            "answers are not compared.")
MEANS = ("A pair is worth a reading side by side, and no more: a study group, a book, or the lesson's own lines make answers alike, too, "
         "and a copy that was rewritten is not found. No mark depends on it.")
WIDE = STYLE + """
body { max-width: 84rem; } .both { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.both pre { background: var(--box); border: 1px solid var(--line); padding: .5rem .7rem; } summary { cursor: pointer; }
"""


def page(found: list[Pair], bundle: dict, cells: dict[str, tuple[dict, ...]], compared: int, linked: bool = False) -> str:
    """The pairs with their answers side by side, in one HTML file that loads and runs nothing. linked: whether names lead to pages/."""
    questions = {question["id"]: question for question in bundle["questions"]}
    more = f"<p>{len(found) - SHOWN} more pairs are in similar.csv.</p>" if len(found) > SHOWN else ""
    number = "No pair" if not found else "1 pair" if len(found) == 1 else f"{len(found)} pairs"
    heading = f"{number} of {compared} hand-ins with answers that are alike after renaming, those that share most first."
    return frame(f"{bundle['assignment']}: similar answers", "\n".join([
        f"<h1>{escape(bundle['assignment'])}: similar answers</h1>", '<p class="soft">For the teacher only.</p>',
        f"<p>{heading} {LEFT_OUT}</p>", f"<p>{MEANS}</p>",
        *(_pair(pair, questions, cells, linked) for pair in found[:SHOWN]), more]), WIDE)


def _pair(pair: Pair, questions: dict, cells: dict, linked: bool) -> str:
    whose = [result["submission"] for result in (pair.one, pair.other)]
    names = [escape(answers.visible(who["student"])) for who in whose]
    if linked:
        names = [f'<a href="pages/{escape(who["id"])}.html">{name}</a>' for who, name in zip(whose, names)]
    parts = []
    for name, (shared, share) in pair.alike.items():
        codes = [answers.of_question(cells[result["submission"]["id"]], questions[name])["source"] for result in (pair.one, pair.other)]
        both = "".join(f"<div><p>{who}</p><pre>{escape(answers.visible(code))}</pre></div>" for who, code in zip(names, codes))
        parts.append(f"<details><summary>{escape(name)}: {100 * share:.0f} % alike, {shared} fingerprints shared</summary>"
                     f'<div class="both">{both}</div></details>')
    return f"<section>\n<h2>{names[0]} and {names[1]}</h2>\n" + "\n".join(parts) + "\n</section>"
