"""The words that the library says to a reader: the literals that its code gives to `tr` and `into`.

    words of qlab/          found in the source, as gettext's own tools would
    qlab/translate/zh.po    their translations; `qlab translate` adds the new ones, and puts those that are gone at the end, as comments
"""

import ast
from pathlib import Path

from qlab.translate import FOLDER, po

ARGUMENT = {"tr": 0, "into": 1}  # where the text stands
HEAD = ("What the library says: check(), the widgets and the commands. qlab translate refreshes the list.",)


def of_source(source: str, name: str = "") -> list[str]:
    """The words of one module. Raises ValueError where tr is given what is no literal, which nobody could translate.

    >>> of_source('raise ValueError(tr("no {x}", x=1) + tr("none"))')
    ['no {x}', 'none']
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ARGUMENT:
            text = node.args[ARGUMENT[node.func.id]] if len(node.args) > ARGUMENT[node.func.id] else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found.append((node.lineno, node.col_offset, text.value))
            elif not name.startswith("qlab/translate/"):  # which hands on the texts of others
                raise ValueError(f"{name}, line {node.lineno}: {node.func.id} needs a literal text.")
    return [text for *_, text in sorted(found)]


def of_library(folder: Path = FOLDER.parent) -> dict[str, str]:
    """word -> the module that says it first, for all of qlab but this package's own rooms."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "qlab.translate import" not in source:
            continue
        name = path.relative_to(folder.parent).as_posix()
        for text in of_source(source, name):
            found.setdefault(text, name)
    return found


def merged(old: dict[str, str], now: dict[str, str], head: tuple[str, ...] = HEAD, kept: list[str] | None = None) -> str:
    """A .po file of the words that there are now, with the old translations; those whose word is gone follow as comments.

    now: word -> where it stands; kept: comments from before.

    >>> print(merged({"gone": "没了", "half": "一半"}, {"half": "a.py", "new": "b.py"}, head=()).split("\\n\\n", 1)[1])
    #: a.py
    msgid "half"
    msgstr "一半"
    <BLANKLINE>
    #: b.py
    msgid "new"
    msgstr ""
    <BLANKLINE>
    #~ msgid "gone"
    #~ msgstr "没了"
    <BLANKLINE>
    """
    text = po.text({one: old.get(one, "") for one in now}, now, head)
    gone = {one: other for one, other in old.items() if other and one not in now}
    comments = ["#~ " + line if line else "" for line in po.text(gone).split("\n\n", 1)[1].splitlines()] if gone else []
    return "\n".join([text, *(kept or []), *comments]).rstrip("\n") + "\n"


def kept(path: Path) -> list[str]:
    """The comments in which a .po file keeps what is gone."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line.startswith("#~")]
