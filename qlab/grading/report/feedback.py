"""The page that one student may see: the points, and of a public test that failed its input, what was expected, and what came.

Everything on it is escaped text, and the page forbids itself to load or run anything. Nothing of hidden tests is on it: only the fields
`reason` and `public_failed`, which module mark makes of public things, the scores, and nothing of the grader's note or of the output.
What a teacher set by hand, and the comment, stands beside what the grader gave.
"""

from collections.abc import Iterable

from qlab.grading.report import words
from qlab.grading.report.text import markup

STYLE = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --soft: #5a5a5a; --line: #d9d9d9; --page: #ffffff; --box: #f5f6f7; --good: #00734f; --bad: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a8a8a8; --line: #444444; --page: #181a1b; --box: #222526; --good: #4cc79d; --bad: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 2.5rem auto; max-width: 46rem; padding: 0 1.25rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0; } p { margin: .35rem 0; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.total { font-size: 2rem; font-weight: 600; margin: 1.25rem 0 .25rem; }
.bar { height: .6rem; margin-bottom: 1.75rem; background: var(--box); border: 1px solid var(--line); border-radius: .3rem; }
.bar div { height: 100%; background: var(--good); border-radius: .3rem; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.head { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; }
table { border-collapse: collapse; width: 100%; margin-top: .6rem; background: var(--box); }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem; border: 1px solid var(--line); font-size: .9rem; }
th { font-weight: 500; color: var(--soft); width: 7.5rem; white-space: nowrap; }
.hand { border-left: 3px solid var(--good); padding-left: .7rem; white-space: pre-wrap; }
pre { margin: 0; white-space: pre-wrap; font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
"""
LOCKED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def frame(title: str, body: str, style: str = STYLE) -> str:
    """A whole page that loads nothing and runs nothing; title is escaped here, body must be HTML."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{LOCKED}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
            f"<title>{markup(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n")


def page(result: dict) -> str:
    """The feedback page of one result."""
    return frame(result["assignment"], body(result))


def body(result: dict) -> str:
    """What is on that page, as HTML."""
    who, late = result["submission"], (result.get("adjusted") or {}).get("late")
    lines = [f"<h1>{markup(result['assignment'])}</h1>",
             f"<p class=\"soft\"><bdi>{markup(who['student'])}</bdi>, <bdi>{markup(who['source'])}</bdi>"
             f"{', handed in late' if who['late'] else ''}</p>"]
    if who.get("extended"):
        lines.append(f"<p class=\"soft\">Your deadline was extended to {markup(words.deadline(who).partition(',')[0])}.</p>")
    if result["score"] is None:
        lines += ['<p class="total">Not graded yet</p>', "<p>This is no mark: it will be graded again.</p>"]
        return "\n".join(lines + _hand(words.of_all(result)))
    share = 100 * result["score"] / result["max_score"] if result["max_score"] else 0
    lines += [f"<p class=\"total\">{result['score']:.12g} of {result['max_score']:.12g} points</p>",
              f"<div class=\"bar\"><div style=\"width:{share:.1f}%\"></div></div>"]
    if late:
        lines.append(f'<p class="bad">{markup(words.lateness(late))}</p>')
    if result["reason"]:
        lines.append(f"<p class=\"bad\">Your notebook could not be read: {markup(result['reason'])}.</p>")
    return "\n".join([*lines, *_hand(words.of_all(result)), *(_question(question) for question in result["questions"])])


def _hand(lines: Iterable[str]) -> list[str]:
    """What a teacher says."""
    return [f'<p class="hand">{markup(line)}</p>' for line in lines]


def _question(question: dict) -> str:
    good = question["score"] == question["points"]
    return (f'<section>\n<div class="head"><h2>{markup(question["id"])}</h2><span class="{"good" if good else "bad"}">'
            f"{question['score']:.12g} of {question['points']:.12g}</span></div>\n"
            f"{''.join(_hand(words.by_hand(question.get('by_hand'))))}<p>{markup(question['reason'])}</p>{_failed(question['public_failed'])}\n</section>")


def _failed(failed: dict | None) -> str:
    if not failed:
        return ""
    rows = [("call", failed["call"]), *failed["inputs"].items(), ("expected", failed["expect"]), ("got", failed["got"])]
    rows += [(name, failed[name]) for name in ("why", "hint") if failed.get(name)]
    lines = [f"<tr><th>{markup(name)}</th><td><pre>{markup(text)}</pre></td></tr>" for name, text in rows]
    return "\n<table>\n" + "\n".join(lines) + "\n</table>"
