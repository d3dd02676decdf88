"""The page that one student may see: the points, and of a public test that failed its input, what was expected, and what came.

Everything on it is escaped text, and the page forbids itself to load or run anything. Nothing of hidden tests is on it: only the fields
`reason` and `public_failed`, which module mark makes of public things, the scores, and nothing of a teacher's note or of the output.
"""

from html import escape

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
pre { margin: 0; white-space: pre-wrap; font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
"""
LOCKED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def frame(title: str, body: str, style: str = STYLE) -> str:
    """A whole page that loads nothing and runs nothing; title is escaped here, body must be HTML."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{LOCKED}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
            f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n")


def page(result: dict) -> str:
    """The feedback page of one result."""
    who = result["submission"]
    heading = f"<h1>{escape(result['assignment'])}</h1>\n<p class=\"soft\">{escape(who['student'])}, {escape(who['source'])}" \
              f"{', handed in late' if who['late'] else ''}</p>"
    if result["score"] is None:
        later = '\n<p class="total">Not graded yet</p>\n<p>This is no mark: it will be graded again.</p>'
        return frame(result["assignment"], heading + later)
    share = 100 * result["score"] / result["max_score"] if result["max_score"] else 0
    total = f"<p class=\"total\">{result['score']:g} of {result['max_score']:g} points</p>\n" \
            f"<div class=\"bar\"><div style=\"width:{share:.1f}%\"></div></div>"
    told = f"<p class=\"bad\">Your notebook could not be read: {escape(result['reason'])}.</p>" if result["reason"] else ""
    return frame(result["assignment"], "\n".join([heading, total, told, *(_question(question) for question in result["questions"])]))


def _question(question: dict) -> str:
    good = question["state"] == "passed"
    return (f'<section>\n<div class="head"><h2>{escape(question["id"])}</h2><span class="{"good" if good else "bad"}">'
            f"{question['score']:g} of {question['points']:g}</span></div>\n<p>{escape(question['reason'])}</p>"
            f"{_failed(question['public_failed'])}\n</section>")


def _failed(failed: dict | None) -> str:
    if not failed:
        return ""
    rows = [("call", failed["call"]), *failed["inputs"].items(), ("expected", failed["expect"]), ("got", failed["got"])]
    rows += [(name, failed[name]) for name in ("why", "hint") if failed.get(name)]
    lines = [f"<tr><th>{escape(name)}</th><td><pre>{escape(str(text))}</pre></td></tr>" for name, text in rows]
    return "\n<table>\n" + "\n".join(lines) + "\n</table>"
