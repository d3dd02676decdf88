"""A page a student for whoever reads the answers, the teacher or an assistant, and an index of them that filters by question and mistake.

On a page: the code of each answer with the output that its cell was saved with, the case that failed with its inputs, what was expected and
what came, the wrong solution that gives the same answers; the other cells; what was printed while it was graded.

Hidden inputs are on these pages. They lie in a folder of their own, not in the one of the exports that students or platforms get, and each
says that it is for the teacher. Code, outputs and names are a stranger's: all of it is escaped, the pages load nothing, and the one script
is let through by its hash alone (Content Security Policy level 3, section 2.3.1), so that no text on them can become another.
"""

import base64
import hashlib
from collections import Counter
from html import escape

from qlab.grading import values
from qlab.grading.report import answers
from qlab.grading.report.classroom import mistake
from qlab.grading.report.feedback import LOCKED, STYLE, frame
from qlab.grading.report.words import by_hand, lateness, of_all

FOR_THE_TEACHER = "For the teacher: hidden inputs are on this page. It is not for students."
WIDE = STYLE + """
body { max-width: 62rem; } h3 { font-size: .95rem; margin: .9rem 0 .2rem; } .warn { border: 1px solid var(--bad); padding: .3rem .7rem; }
pre { background: var(--box); border: 1px solid var(--line); padding: .5rem .7rem; } td pre { border: 0; padding: 0; }
nav { display: flex; gap: 1.5rem; margin-bottom: 1rem; } summary { cursor: pointer; margin-top: .6rem; }
.index th { width: auto; } .index td, .index th { font-size: .85rem; }
#students th { min-width: 9rem; } #students th:nth-child(2) { min-width: 4rem; } #students th:last-child { min-width: 18rem; }
select { font: inherit; max-width: 28rem; } label { margin-right: 1rem; }
[hidden] { display: none; }
@media print { nav, .filter { display: none; } body { margin: 0; max-width: none; } section { break-inside: avoid-page; } }
"""
SCRIPT = """
const question = document.getElementById("question"), mistake = document.getElementById("mistake");
const rows = document.querySelectorAll("#students tbody tr"), shown = document.getElementById("shown");
const of = (element, place) => element.dataset.question === place || element.dataset.question === "all";
function filter() {
  for (const option of mistake.options)
    option.hidden = option.disabled = question.value !== "" && option.value !== "" && !of(option, question.value);
  if (mistake.selectedOptions[0].disabled) mistake.value = "";
  let count = 0;
  for (const row of rows) {
    const cells = Array.from(row.querySelectorAll("td[data-question]"))
      .filter(cell => question.value === "" || of(cell, question.value));
    const on = cells.some(cell => mistake.value !== "" ? cell.dataset.mistake === mistake.value
                                  : question.value === "" || cell.dataset.mistake !== "");
    row.hidden = !on;
    count += on;
  }
  shown.textContent = count + " of " + rows.length + " shown";
  history.replaceState(null, "", "#" + question.value + "," + mistake.value);
}
function fromAddress() {
  [question.value, mistake.value] = (location.hash.slice(1) + ",").split(",");
  if (question.selectedIndex < 0) question.value = "";
  if (mistake.selectedIndex < 0) mistake.value = "";
  filter();
  window.scrollTo(0, 0);
}
question.addEventListener("change", filter);
mistake.addEventListener("change", filter);
window.addEventListener("hashchange", fromAddress);
fromAddress();
"""
ACROSS = WIDE + "body { max-width: none; }"  # the index: a column a question, so it takes the window's width
_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


def pages(made: list[dict], bundle: dict, cells: dict[str, tuple[dict, ...]]) -> dict[str, str]:
    """File name: content of all pages. made: the results that count, in their order; cells: of each that could be read, by its id."""
    names = [f"{result['submission']['id']}.html" for result in made]
    found = {"index.html": index(made, bundle)}
    for k, result in enumerate(made):
        before, after = names[k - 1] if k else None, names[k + 1] if k + 1 < len(names) else None
        found[names[k]] = page(result, bundle, cells.get(result["submission"]["id"], ()), before, after)
    return found


# A student's page


def page(result: dict, bundle: dict, cells: tuple[dict, ...], before: str | None = None, after: str | None = None) -> str:
    """The page of one result; before and after are file names of its neighbours'."""
    who = result["submission"]
    links = [(before, "previous"), ("index.html", "all"), (after, "next")]
    way = "<nav>" + "".join(f'<a href="{escape(link)}">{word}</a>' if link else f'<span class="soft">{word}</span>' for link, word in links)
    score = "no score" if result["score"] is None else f"{result['score']:g} of {result['max_score']:g} points"
    late = (result.get("adjusted") or {}).get("late")
    told = [result["reason"], *result["notes"], *([lateness(late)] if late else [])]
    asked = {question["id"]: question for question in bundle["questions"]}
    others = "\n".join(_code(cell) for cell in answers.others(cells, bundle))
    printed = result.get("stdout_tail", "")
    return frame(f"{answers.visible(who['student'])}: {result['assignment']}", "\n".join([
        way + "</nav>", f"<h1>{_text(who['student'])}</h1>",
        f'<p class="soft">{escape(result["assignment"])}, {_text(who["source"])}{", late" if who["late"] else ""}</p>',
        f'<p class="warn">{FOR_THE_TEACHER}</p>', f'<p class="total">{escape(score)}</p>',
        *(f"<p>{_text(text)}</p>" for text in told if text), *_hand(of_all(result)),
        *(_question(question, asked[question["id"]], cells) for question in result["questions"] if question["id"] in asked),
        f"<details><summary>The other cells</summary>\n{others}\n</details>" if others else "",
        f"<section>\n<h2>Printed while it was graded, the end of it</h2>\n{_pre(printed)}\n</section>" if printed.strip() else ""]), WIDE)


def _question(question: dict, asked: dict, cells: tuple[dict, ...]) -> str:
    good = question["state"] == "passed"
    like = f"<p>It answers as the wrong solution <b>{_text(question['answers_like'])}</b> does.</p>" if question["answers_like"] else ""
    cell = answers.of_question(cells, asked)
    parts = [f'<div class="head"><h2>{escape(question["id"])}</h2><span class="{"good" if good else "bad"}">'
             f"{question['score']:g} of {question['points']:g}, {escape(question['state'])}</span></div>",
             *_hand(by_hand(question.get("by_hand"))), f"<p>{_text(question['reason'])}</p>", like,
             f'<p class="soft">{_text(question["note"])}</p>' if question["note"] else "",
             *(f"<p>{_text(_part(group))}</p>" for group in question.get("groups", ())),
             _code(cell) if cell else '<p class="soft">No cell has this question\'s id or defines its function.</p>']
    parts += [_failed(title, k, question, asked) for title, k in _cases(question).items()]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _hand(lines: list[str]) -> list[str]:
    """What a teacher says, apart from what the grader does."""
    return [f'<p class="hand">{_text(line)}</p>' for line in lines]


def _part(group: dict) -> str:
    like = f", as the wrong solution {group['answers_like']}" if group["answers_like"] else ""
    return f"{_named(group)}: {group['score']:g} of {group['points']:g}{like}"


def _named(group: dict) -> str:
    return group["name"] or "the cases without points of their own"


def _cases(question: dict) -> dict[str, int]:
    """A heading, and the index of the case: the first that failed, in the question and in each of its groups."""
    found = {} if question["failed_case"] is None else {"The case that failed first": question["failed_case"]}
    for group in question.get("groups", ()):
        if group["failed_case"] is not None and group["failed_case"] not in found.values():
            found[f"In {_named(group)}"] = group["failed_case"]
    return found


def _failed(title: str, k: int, question: dict, asked: dict) -> str:
    if k >= len(asked["cases"]):  # of another bundle
        return ""
    case = asked["cases"][k]
    rows = [("about", case["about"]), ("setup", case["setup"].strip("\n")), ("call", case["call"])]
    rows += [(name, values.show(value)) for name, value in case["inputs"].items()]
    rows += [("expected", case["raises"] or values.show(case["expect"])),
             ("got", question.get("failed_answers", {}).get(str(k), "no answer is kept")), ("hint", case["hint"])]
    lines = [f"<tr><th>{escape(name)}</th><td>{_pre(text)}</td></tr>" for name, text in rows if text]
    return f"<h3>{escape(title)}: a {case['kind']} one</h3>\n<table>\n" + "\n".join(lines) + "\n</table>"


def _code(cell: dict) -> str:
    output = f"<h3>Its output, as it was saved</h3>\n{_pre(cell['output'])}" if cell.get("output") else ""
    return _pre(cell["source"]) + output


def _pre(text: str) -> str:
    return f"<pre>\n{_text(text)}</pre>"  # HTML drops a line end after the tag, and would drop the text's own first one


def _text(text) -> str:
    return escape(answers.visible(str(text)))


# The index

ALL = "all"  # the place of what holds for all questions
BY_HAND = " (by hand)"

def index(made: list[dict], bundle: dict) -> str:
    """All students in one table, with a filter by question and by mistake, and how often each mistake was made."""
    asked = [question["id"] for question in bundle["questions"]]
    cells = [_cells(result, asked) for result in made]
    count = Counter((place, wrong) for row in cells for place, _, wrong in row if wrong)
    order = sorted(count, key=lambda item: (item[0] == ALL, item[0], -count[item], item[1]))
    number = {item: n for n, item in enumerate(order)}
    called = {str(place): name for place, name in enumerate(asked)} | {ALL: ALL}
    rows = [(n, place, escape(called[place]), _text(wrong), count[place, wrong]) for (place, wrong), n in number.items()]
    options = "".join(f'<option value="{n}" data-question="{place}">{name}: {wrong} ({many})</option>'
                      for n, place, name, wrong, many in rows)
    counted = "\n".join(f'<tr><td>{name}</td><td>{many}</td><td><a href="#{place.replace(ALL, "")},{n}">{wrong}</a></td></tr>'
                        for n, place, name, wrong, many in rows)
    body = "\n".join(_row(result, row, number, len(asked)) for result, row in zip(made, cells))
    return frame(f"{bundle['assignment']}: all students", f"""<h1>{escape(bundle['assignment'])}: all students</h1>
<p class="warn">{FOR_THE_TEACHER}</p>
<p class="filter"><label>question <select id="question"><option value="">all</option>
{"".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(asked))}</select></label>
<label>mistake <select id="mistake"><option value="">all</option>{options}</select></label> <span class="soft" id="shown"></span></p>
<table class="index" id="students">
<thead><tr><th>student</th><th>score</th>{"".join(f"<th>{escape(name)}</th>" for name in asked)}<th>to know</th></tr></thead>
<tbody>
{body}
</tbody>
</table>
<section>
<h2>Mistakes</h2>
<table class="index">
<tr><th>question</th><th>how many</th><th>mistake</th></tr>
{counted}
</table>
</section>
<script>{SCRIPT}</script>""", ACROSS).replace(LOCKED, f"{LOCKED}; script-src 'sha256-{_HASH}'", 1)


def _cells(result: dict, asked: list[str]) -> list[tuple[str, str, str]]:
    """What stands in a row: (the question's place, its points, its mistake or ""), or one for all where nothing was graded."""
    if result["status"] != "graded" and not result["questions"]:
        return [(ALL, "", result["status"])]
    of = {question["id"]: question for question in result["questions"]}
    none = "" if result["status"] == "graded" else result["status"]
    return [(str(place), *((_points(of[name]), mistake(of[name])) if name in of else ("", none))) for place, name in enumerate(asked)]


def _points(question: dict) -> str:
    return f"{question['score']:g}{BY_HAND if (question.get('by_hand') or {}).get('points') is not None else ''}"


def _row(result: dict, cells: list[tuple[str, str, str]], number: dict, width: int) -> str:
    who = result["submission"]
    told = [*(["late"] if who["late"] else []), *([result["reason"]] if result["reason"] else []), *result["notes"], *of_all(result)]
    parts = [f'<td colspan="{width if place == ALL else 1}" data-question="{place}" data-mistake="{number.get((place, wrong), "")}">'
             f'{": ".join(filter(None, (points, _text(wrong))))}</td>' for place, points, wrong in cells]
    set_to = [row for row in (result.get("adjusted") or {}).get("by_hand", ()) if not row["question"] and row["points"] is not None]
    score = "" if result["score"] is None else f"{result['score']:g}{BY_HAND if set_to else ''}"
    return (f'<tr><td><a href="{escape(who["id"])}.html">{_text(who["student"])}</a></td><td>{score}</td>{"".join(parts)}'
            f"<td>{_text('; '.join(told))}</td></tr>")
