"""gettext's .po files, as much of them as the course needs: comments, msgid, msgstr. No plural forms, no contexts, no .mo beside them.

    # who it is for
    msgid "Lock in my guess"
    msgstr "确定我的猜测"
"""

import ast
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from qlab import saving

ESCAPES = {"\\": r"\\", '"': r'\"', "\n": r"\n", "\t": r"\t", "\r": r"\r"}
LINE = re.compile(r'(?:(msgid|msgstr) )?(".*")$')


def read(path: str | Path) -> dict[str, str]:
    """msgid -> msgstr, "" where there is no translation yet; the header, whose msgid is empty, is left out.

    Raises ValueError with the line's number for anything else, and OSError where the file cannot be read.
    """
    found: list[list[str]] = []
    for number, line in enumerate(saving.read(path).decode("utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.match(line)
        if not match or not (match[1] or found):
            raise ValueError(f"{path}, line {number} is {line[:40]!r}, and must be msgid or msgstr and a text in quotes.")
        if match[1]:
            if match[1] != ("msgstr" if len(found) % 2 else "msgid"):
                raise ValueError(f"{path}, line {number}: a {match[1]} stands where the other of msgid and msgstr belongs.")
            found.append([])
        try:
            found[-1].append(ast.literal_eval(match[2]))  # the escapes of a .po file are Python's
        except (SyntaxError, ValueError):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is no text in quotes.") from None
    texts = ["".join(text) for text in found]
    if len(texts) % 2:
        raise ValueError(f"{path} ends without the msgstr of its last msgid.")
    pairs = list(zip(texts[::2], texts[1::2]))
    ids = [one for one, _ in pairs]
    if twice := [one for one in ids if ids.count(one) > 1]:
        raise ValueError(f"{path} has two entries for {twice[0][:60]!r}.")
    return {one: other for one, other in pairs if one}


def text(entries: Mapping[str, str], comments: Mapping[str, str] | None = None, head: Iterable[str] = ()) -> str:
    """A .po file of these entries, in their order. comments: msgid -> where it stands; head: lines of comment at the top.

    >>> print(text({"half a step": "半步"}, head=["Words of one page."]))
    # Words of one page.
    msgid ""
    msgstr "Content-Type: text/plain; charset=UTF-8\\n"
    <BLANKLINE>
    msgid "half a step"
    msgstr "半步"
    <BLANKLINE>
    """
    blocks = ["\n".join([*(f"# {line}".rstrip() for line in head), 'msgid ""', r'msgstr "Content-Type: text/plain; charset=UTF-8\n"'])]
    for one, other in entries.items():
        where = [f"#: {comments[one]}"] if comments and one in comments else []
        blocks.append("\n".join([*where, f"msgid {_quoted(one)}", f"msgstr {_quoted(other)}"]))
    return "\n\n".join(blocks) + "\n"


def _quoted(said: str) -> str:
    """In quotes; on several lines where it has line breaks, or is long."""
    lines = said.splitlines(keepends=True)
    if len(lines) < 2:
        lines = textwrap.wrap(said, 110, expand_tabs=False, replace_whitespace=False, drop_whitespace=False, break_on_hyphens=False) or [""]
    quoted = ['"' + "".join(ESCAPES.get(letter, letter) for letter in line) + '"' for line in lines]
    return "\n".join(['""', *quoted] if len(quoted) > 1 else quoted)
