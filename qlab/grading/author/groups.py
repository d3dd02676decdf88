"""The groups of a question: which cases give which of its points.

    @hidden("q1", points=1)   the cases of this function are a group, and give 1 point if all of them pass
    @hidden("q1")             the cases without points, public ones among them, are one more group: it gives what is left of the points

Each group gives its points alone. Where every hidden case is in a group with points, nothing is left for the public cases without: they
must then pass for each group. A question without such points is one group, all or nothing, and is written as it always was.
"""

from fractions import Fraction

from qlab.grading import mark


def divide(points: float, functions: list[tuple[str, str, float | None, list[int]]]) -> list[dict] | None:
    """The groups of a question of so many points, {"name", "points", "cases"}; None where no function has points of its own.

    functions: (name, "public" or "hidden", its points or None, the indices of its cases). The group of the others has the name "".
    Raises ValueError, half a sentence, where the points do not add up or a group is empty.

    >>> divide(3, [("examples", "public", None, [0]), ("draws", "hidden", None, [1, 2]), ("edges", "hidden", 1, [3])])
    [{'name': '', 'points': 2, 'cases': [0, 1, 2]}, {'name': 'edges', 'points': 1, 'cases': [3]}]
    """
    groups = [{"name": name, "points": worth, "cases": found} for name, _, worth, found in functions if worth is not None]
    if not groups:
        return None
    for group in groups:
        if not group["cases"]:
            raise ValueError(f"{group['name']} has points and no case")
    others = [(kind, found) for _, kind, worth, found in functions if worth is None and found]
    cases = [index for _, found in others for index in found]
    given = mark.total(group["points"] for group in groups)
    if any(kind == "hidden" for kind, _ in others):
        left = Fraction(str(points)) - Fraction(str(given))
        if left <= 0:
            raise ValueError(f"its groups give {given:g} of {points:g} points, and must leave some for the hidden cases without points")
        return [{"name": "", "points": mark.total([points, -given]), "cases": cases}, *groups]
    if Fraction(str(given)) != Fraction(str(points)):
        raise ValueError(f"its groups give {given:g} points, and must give all {points:g}, for no hidden case is left without points")
    return [{**group, "cases": cases + group["cases"]} for group in groups]


def check(groups: list[dict], cases: list[dict], blank: list[dict]) -> None:
    """Holds each group to the rules for a question: the blank's answers get none of its points, and some wrong solution fails it.

    cases with their "wrong" answers. Raises ValueError, half a sentence.
    """
    for group in groups:
        title = group["name"] or "the cases without points"
        asked = [(cases[index], blank[index]) for index in group["cases"]]
        if not any(mark.why_wrong(case, answer) for case, answer in asked):
            raise ValueError(f"a blank answer gets the points of {title}")
        own = [case for case, _ in asked if case["kind"] == "hidden"] or [case for case, _ in asked]
        if not any(mark.why_wrong(case, answer) for case in own for answer in case["wrong"].values()):
            raise ValueError(f"no wrong solution fails {title}: its {group['points']:g} points are given to any of them")
