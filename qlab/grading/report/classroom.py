"""The class at a glance, for its teacher: how the scores lie, which question was hard, and what was commonly got wrong.

A question's success rate is the share of graded notebooks with its full points. A wrong answer is named after the wrong solution of the
bundle that gives the same answers to all hidden cases; one that is like none of them by the reason that its student reads.
"""

import base64
import io
import statistics
import warnings
from collections import Counter

from qlab.grading import results
from qlab.grading.report.feedback import STYLE, frame
from qlab.grading.report.text import clean, markup

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8C8C8C", "#333333"  # Okabe and Ito (2008), as in the course's pictures
COMMONEST = 3
WIDE = STYLE + "\nbody { max-width: 62rem; } img { width: 100%; height: auto; background: #ffffff; } th { width: auto; }\n"


def success(graded: list[dict], bundle: dict) -> list[dict]:
    """For each question {"id", "points", "passed", "tried", "wrong": [(what, how many), ...] with the commonest first}.

    >>> question = {"id": "q1", "state": "failed", "reason": "A public test fails.", "answers_like": "floor for round"}
    >>> success([{"questions": [question]}] * 2, {"questions": [{"id": "q1", "points": 3}]})
    [{'id': 'q1', 'points': 3, 'passed': 0, 'tried': 2, 'wrong': [('floor for round', 2)]}]
    """
    rows = []
    for asked in bundle["questions"]:
        given = [question for result in graded for question in result["questions"] if question["id"] == asked["id"]]
        wrong = Counter(mistake(question) for question in given if question["state"] != "passed")
        rows.append({"id": asked["id"], "points": asked["points"], "passed": sum(question["state"] == "passed" for question in given),
                     "tried": len(given), "wrong": sorted(wrong.items(), key=lambda item: (-item[1], item[0]))})
    return rows


def mistake(question: dict) -> str:
    """What is wrong with a result's question, in the words that many results share; "" if it passed.

    >>> mistake({"state": "missing", "answers_like": None, "reason": "The cell of this question stopped: NameError: x"})
    'The cell of this question stopped'
    """
    if question["state"] == "passed":
        return ""
    return question["answers_like"] or question["reason"].partition(": ")[0].rstrip(".")  # after the colon is one student's own error


def picture(counts: list[dict], bundle: dict) -> bytes:
    """A PNG: the histogram of the scores above, each question's success rate and its commonest wrong answers below."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    graded = [result for result in counts if result["status"] == "graded"]
    rows = success(graded, bundle)
    lines = [1 + min(COMMONEST, len(row["wrong"])) for row in rows]
    heights = [2.9, 0.9 + 0.27 * sum(lines) + 0.2 * len(rows)]
    with style.context("default"):  # whatever style the program around it has set
        figure = Figure(figsize=(8, sum(heights)), dpi=150, layout="constrained", facecolor="white")
        figure.get_layout_engine().set(h_pad=0.12)
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _histogram(above, graded, bundle)
        _questions(below, rows, lines)
        stream = io.BytesIO()
        with warnings.catch_warnings(action="ignore"):  # a sign that the font lacks is a box, and no reason to stop
            figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _histogram(ax, graded: list[dict], bundle: dict) -> None:
    most, scores = results.max_score(bundle), [result["score"] for result in graded]
    whole = most <= 30 and all(score == int(score) for score in [most, *scores])
    edges = [k - 0.5 for k in range(int(most) + 2)] if whole else [most * k / 20 for k in range(21)]
    heights, _, _ = ax.hist(scores, bins=edges, color=BLUE, edgecolor="white")
    ax.set_ylim(0, 1.15 * max([1, *heights]))  # room for the word above the tallest bar
    ax.set_xlim(edges[0] - 0.01 * most, edges[-1] + 0.01 * most)
    ax.set_xlabel(f"score, of {most:g} points")
    ax.set_ylabel("notebooks")
    ax.yaxis.get_major_locator().set_params(integer=True)
    if whole:
        ax.set_xticks(range(0, int(most) + 1, max(1, round(most / 15))))
    title = f"{bundle['assignment']}: {len(graded)} graded"
    if scores:
        mean = statistics.fmean(scores)
        title += f", mean {mean:.2f}, median {statistics.median(scores):g}"
        ax.axvline(mean, color=ORANGE, linewidth=1.5)
        where = {"xycoords": ("data", "axes fraction"), "xytext": (4, 0), "textcoords": "offset points", "va": "top"}
        ax.annotate("mean", (mean, 1), **where, color=ORANGE, fontsize=9)
    ax.set_title(title, loc="left", fontsize=11)
    _plain(ax)


def _questions(ax, rows: list[dict], lines: list[int]) -> None:
    y, ticks = 0.0, []
    for row, count in zip(rows, lines):
        share = row["passed"] / row["tried"] if row["tried"] else 0
        ax.barh(y, 100, height=0.8, color="#EDEDED")
        ax.barh(y, 100 * share, height=0.8, color=BLUE)
        inside = share > 0.5
        ax.text(100 * share + (-1 if inside else 1), y, f"{100 * share:.0f} %, {row['passed']} of {row['tried']}", va="center",
                ha="right" if inside else "left", color="white" if inside else INK, fontsize=9)
        for k, (what, how_many) in enumerate(row["wrong"][:COMMONEST]):
            what = clean(what)
            text = what if len(what) <= 88 else what[:87] + "…"
            ax.text(0.5, y + 0.9 + 0.75 * k, f"{how_many} × {text}".replace("$", r"\$"), va="center", color=ORANGE, fontsize=8.5)
        ticks.append((y, f"{row['id']}\n{row['points']:g} points" if count > 1 else f"{row['id']}, {row['points']:g} points"))
        y += 0.75 * count + 0.75
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    ax.set_ylim(y - 0.2, -0.6)
    ax.set_xlim(0, 100)
    ax.set_xlabel("full points, % of the graded notebooks")
    ax.set_title("Questions, and the commonest wrong answers", loc="left", fontsize=11)
    _plain(ax)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _plain(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK, labelsize=9)


def page(counts: list[dict], bundle: dict, png: bytes) -> str:
    """The picture and its numbers in one HTML file, all wrong answers in it."""
    graded = [result for result in counts if result["status"] == "graded"]
    others = Counter(result["status"] for result in counts if result["status"] != "graded")
    told = "".join(f", {how_many} {status}" for status, how_many in sorted(others.items()))
    rows = "\n".join(
        f"<tr><td>{markup(row['id'])}</td><td>{row['points']:g}</td><td>{row['passed']} of {row['tried']}</td><td>"
        + ("<br>".join(f"{how_many} × {markup(what)}" for what, how_many in row["wrong"]) or "none") + "</td></tr>"
        for row in success(graded, bundle))
    return frame(bundle["assignment"], f"""<h1>{markup(bundle['assignment'])}: the class</h1>
<p class="soft">{len(graded)} graded{told}. For the teacher only: wrong answers are named as the hidden tests know them.</p>
<p><img alt="Histogram of the scores and success rate of each question" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>
<table>
<tr><th>question</th><th>points</th><th>full points</th><th>wrong answers, the commonest first</th></tr>
{rows}
</table>""", WIDE)
