"""A live figure without a kernel: one picture, and a slider or a list for each control that swaps it (static/qlab.js).

Without a script the reader sees the first picture, with its text and the values of the controls.
"""

import html
import json

from qlab.lab.questions import plain
from qlab.translate import into


def figure(found: dict, folder: str, name: str, language: str = "") -> str:
    """HTML of a figure, on one line.

    found: of qlab.site.frames, one figure; folder: where its pictures lie, as the page writes it; name: unique on the page;
    language: the page's, of qlab.translate.
    """
    axes, frames = found["axes"], found["frames"]
    first = frames[",".join(str(axis["at"]) for axis in axes)]
    settings = ", ".join(f"{axis['label']} = {axis['words'][axis['at']]}" for axis in axes)
    notes = [into(language, "Here {settings}.", settings="; ".join(found["fixed"])) if found["fixed"] else "",
             into(language, "Some steps are left out; in JupyterLab the figure has them all.")
             if any(axis["thinned"] for axis in axes) else ""]
    missing = into(language, "These settings do not go together; the picture is the last that did.")
    spoken = ' lang="en"' if language else ""  # what a figure says is drawn from the English page
    data = {"missing": missing, "folder": folder, "frames": frames, "labels": [axis["label"] for axis in axes],
            "words": [axis["words"] for axis in axes]}
    controls = "".join(_control(axis, name, i) for i, axis in enumerate(axes))
    height = round(found["height"] * found["css_width"] / found["width"])
    script = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return (f'<figure class="qlab-frames" id="{name}"><div class="qlab-controls">{controls}</div>'
            f'<img src="{folder}/{first[0]}" alt="{html.escape(_alt(settings, first[1]))}" width="{found["css_width"]}" height="{height}">'
            f'<figcaption><span class="qlab-said" role="status"{spoken}>{first[1]}</span>'
            f'<span class="qlab-note"> {" ".join(filter(None, notes))}</span></figcaption>'
            f'<script type="application/json">{script}</script></figure>')


def _alt(settings: str, text: str) -> str:
    return f"Live figure: {settings}. {plain(text)}"


def _control(axis: dict, name: str, number: int) -> str:
    """A slider for values in an order, else a list; both by the keyboard too."""
    label, words, at = html.escape(axis["label"]), [html.escape(word) for word in axis["words"]], axis["at"]
    control = f"{name}-{number}"
    if axis["ordered"]:
        return (f'<span><label for="{control}">{label}</label><input type="range" id="{control}" min="0" max="{len(words) - 1}" '
                f'value="{at}" aria-valuetext="{words[at]}"><output for="{control}">{words[at]}</output></span>')
    options = "".join(f'<option value="{i}"{" selected" if i == at else ""}>{word}</option>' for i, word in enumerate(words))
    return f'<span><label for="{control}">{label}</label><select id="{control}">{options}</select></span>'
