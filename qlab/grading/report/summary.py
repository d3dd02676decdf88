"""What a teacher reads at the end of a run: the counts, and a line for each submission that is not simply graded."""

import statistics

from qlab.grading.report import by_hand

SHOWN = 20  # lines about single submissions; all of them are in the file
NAME = "details.txt"


def counts(made: list[dict], stood: int = 0, before: str = "") -> str:
    """How many of each kind, and the mean. stood: how many were graded in an earlier run; before: what `last_run.changed` says."""
    aside = sum(bool(result["submission"]["duplicate_of"]) for result in made)
    of_all = [result for result in made if not result["submission"]["duplicate_of"]]
    by = {status: [result for result in of_all if result["status"] == status] for status in ("graded", "unreadable", "not graded")}
    lines = [f"{len(made)} handed in by {number(len(of_all), 'student')}"]
    lines += [f"  graded      {len(by['graded']):5}" + (f"  ({stood} of them in an earlier run)" if stood else "")]
    lines += [f"  {status:<10}  {len(by[status]):5}  ({none}{_but(by[status])})"
              for status, none in (("unreadable", "0 points"), ("not graded", "no score")) if by[status]]
    lines += [f"  set aside   {aside:5}  (another one of the same student counts)"] if aside else []
    late = [result for result in of_all if result["submission"]["late"] is True]
    lines += [f"  late        {len(late):5}  ({_cost(late)})"] if late else []
    unknown = sum(result["submission"]["late"] is None for result in of_all)
    lines += [f"  late?       {unknown:5}  (not known: nothing says when they were handed in)"] if unknown else []
    hand = sum(bool(result.get("adjusted") and result["adjusted"]["by_hand"]) for result in of_all)
    lines += [f"  by hand     {hand:5}  (set or commented in {by_hand.NAME})"] if hand else []
    for version, told in (("another", "made from another version of the set"), ("not known", "without the stamp of a version")):
        if count := sum(result.get("version") == version for result in of_all):
            lines.append(f"  version?    {count:5}  ({told}; graded all the same)")
    if by["graded"]:
        scores = [result["score"] for result in by["graded"]]
        most = by["graded"][0]["max_score"]
        lines += [f"  mean        {statistics.fmean(scores):5.2f} of {most:g}, median {statistics.median(scores):g}"]
    return "\n".join(lines + ([before] if before else []))


def details(made: list[dict]) -> list[str]:
    """A line for each that is unreadable, not graded or set aside, and for each note."""
    of_all = [result for result in made if not result["submission"]["duplicate_of"]]
    kinds = [(status, [result for result in of_all if result["status"] == status]) for status in ("unreadable", "not graded")]
    kinds.append(("set aside", [result for result in made if result["submission"]["duplicate_of"]]))
    lines = [f"{heading}: {named(result)}: {result['reason']}" for heading, group in kinds for result in group]
    return lines + [f"note: {named(result)}: {note}" for result in of_all for note in result["notes"]]


def named(result: dict) -> str:
    """Whose it is, and where it lay."""
    return f"{result['submission']['student']} ({result['submission']['source']})"


def number(count: int, what: str) -> str:
    """A count with its noun.

    >>> number(1, "row"), number(2, "row")
    ('1 row', '2 rows')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def _but(group: list[dict]) -> str:
    """Of those without marks of their own, how many have points that a teacher set."""
    count = sum(any(row["points"] is not None for row in (result.get("adjusted") or {}).get("by_hand", ())) for result in group)
    return f", but {count} with points set by hand" if count else ""


def _cost(late: list[dict]) -> str:
    costs = [result["adjusted"]["late"] for result in late if result.get("adjusted") and result["adjusted"]["late"]]
    lost = sum(of["after"] < of["before"] for of in costs)
    told = f"points are subtracted from {lost}" if lost else "nothing is subtracted"
    marked = sum("handed_in" not in of for of in costs)  # Canvas's download has a mark in the name, and no time
    return told + (f"; {marked} with a LATE mark alone, which does not say by how much" if marked else "")
