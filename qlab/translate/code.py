"""The words inside of a code cell: comments, docstrings, hints, and what a question says. Everything else of it is shared.

A word is known by its English text, as in gettext; that of an f-string is its source, {expressions} included. A string counts as words

    in a cell that asks (predict, quiz)      wherever it stands, if it holds a letter
    in any other cell                        as a docstring, or as the hint of a case

What a cell prints is not translated: its outputs are the English page's.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping

from qlab.lab import hidden
from qlab.translate import columns

LEFT = ("# YOUR CODE HERE",)  # nbgrader's mark
COLUMNS = 88


def words(source: str) -> list[str]:
    """What a translator has to translate of a cell, in its order; a cell that is no Python has nothing.

    >>> words("# three bits\\nx = f(3)  # (n, 3)\\nwidgets.quiz([(f'Is {x} even?', ['Yes', '4'], 0, 'It is.')])")
    ['# three bits', 'Is {x} even?', 'Yes', 'It is.']
    """
    tree = parsed(source)
    if tree is None:
        return []
    found = [(node.lineno, node.col_offset, template(node)) for node in _strings(tree)]
    found += [(line, column, text) for line, column, _, text in _comments(source)]
    return list(dict.fromkeys(text for *_, text in sorted(found)))


def replaced(source: str, known: Mapping[str, str]) -> str:
    """The cell with the words that are known in the other language; a string that grows long is cut into several lines.

    Raises ValueError where a translation changes more than words: no Python, or other expressions in an f-string.

    >>> print(replaced('hint = f(x, hint="twice x")  # as above', {"twice x": "两倍的 x", "# as above": "# 同上"}))
    hint = f(x, hint="两倍的 x")  # 同上
    """
    tree = parsed(source)
    if tree is None:
        return source
    made = source
    for node in sorted(_strings(tree), key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if known.get(template(node)):
            made = _put(made, node, known[template(node)])
    for line, column, count, text in reversed(list(_comments(made))):
        if known.get(text):
            lines = made.split("\n")
            before = lines[line - 1].encode()[:column].decode()
            lines[line - 1 : line - 1 + count] = _wrapped(known[text], before, alone=not before.strip())
            made = "\n".join(lines)
    if (after := parsed(made)) is None or shape(after) != shape(tree):
        raise ValueError(f"the translation of {source.strip().splitlines()[0][:60]!r} changes more than words.")
    return made


def shape(tree: ast.Module) -> str:
    """The syntax tree as text, the words that may be translated left out, the expressions inside of them kept.

    >>> shape(ast.parse("quiz(['a'], hint=f'{x:g} b')")) == shape(ast.parse("quiz(['c'], hint=f'd {x:g}')"))
    True
    """
    tree = ast.parse(ast.unparse(tree))
    for node in list(_strings(tree)):
        if isinstance(node, ast.JoinedStr):
            inner = sorted((part for part in node.values if isinstance(part, ast.FormattedValue)), key=ast.dump)
            node.values = inner
        else:
            node.value, node.kind = "", None
    return ast.dump(tree)


def parsed(source: str) -> ast.Module | None:
    """A cell's syntax tree; None for one that is no plain Python.

    >>> parsed("%matplotlib inline") is None
    True
    """
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def template(node: ast.Constant | ast.JoinedStr) -> str:
    """A string's text; of an f-string its source, without the quotes.

    >>> template(ast.parse("f'{n:,} weights'", mode="eval").body)
    '{n:,} weights'
    """
    if isinstance(node, ast.Constant):
        return node.value
    whole = "".join(part.value.replace("{", "{{").replace("}", "}}") if isinstance(part, ast.Constant) else
                    ast.unparse(ast.JoinedStr([part]))[2:-1] for part in node.values)
    return whole


def _strings(tree: ast.Module) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The nodes of the strings that are words."""
    if hidden.question(tree):
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
        for node in ast.walk(tree):
            text = isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)
            if text and id(node) not in inside and re.search(r"[^\W\d_]", template(node)):
                yield node
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False):
            yield node.body[0].value
        elif isinstance(node, ast.keyword) and node.arg == "hint" and isinstance(getattr(node.value, "value", None), str):
            yield node.value


def _comments(source: str) -> Iterator[tuple[int, int, int, str]]:
    """(line, column in bytes, number of lines, text) of each comment that holds a word; lines of comment below each other are one."""
    lines, last = source.split("\n"), None
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, IndentationError):
        return
    for token in tokens:
        if token.type != tokenize.COMMENT:
            continue
        line, column = token.start
        alone = not lines[line - 1][:column].strip()
        if last and alone and last[4] and line == last[0] + last[2] and column == last[1]:
            last = (*last[:2], last[2] + 1, f"{last[3]} {token.string.lstrip('# ')}", True)
            continue
        yield from _told(last, lines)
        last = line, column, 1, token.string, alone
    yield from _told(last, lines)


def _told(comment: tuple | None, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    if comment and re.search("[A-Za-z]{2}", comment[3]) and comment[3] not in LEFT:
        line, column, count, text, _ = comment
        yield line, len(lines[line - 1][:column].encode()), count, text


def _put(source: str, node: ast.Constant | ast.JoinedStr, said: str) -> str:
    """The source with this string in place of the node's."""
    lines = [line.encode() for line in source.split("\n")]
    first, last = node.lineno - 1, node.end_lineno - 1
    before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    indent = " " * columns(before.decode())
    if before.lstrip() == b"" and b'"""' in lines[first]:
        text = '"""' + said.replace("\\", "\\\\") + '"""'
    else:
        pieces = _cut(said, max(30, COLUMNS - 3 - len(indent)))
        quoted = [json.dumps(piece, ensure_ascii=False) for piece in pieces]
        if isinstance(node, ast.JoinedStr):
            quoted = ["f" + piece if "{" in piece or "}" in piece else piece for piece in quoted]
        text = ("\n" + indent).join(quoted)
    made = b"\n".join([*lines[:first], before + text.encode() + after, *lines[last + 1 :]])
    return made.decode()


def _cut(said: str, most: int) -> list[str]:
    """The text in pieces of at most so many columns (most), cut between words or Chinese letters, never inside of a tag or of braces."""
    pieces, line = [], ""
    for part in re.findall(r"\{[^{}]*\}|<[^<>]*>|&\w+;|[A-Za-z0-9_.,*/+\-]+ ?|.", said, re.DOTALL):
        if line and columns(line + part) > most and not re.fullmatch(r"[，。；：、？！）”.,;:?!)]", part):
            pieces.append(line)
            line = ""
        line += part
    return [*pieces, line]


def _wrapped(said: str, before: str, alone: bool) -> list[str]:
    if not alone:
        return [before + said]
    pieces = _cut(said.removeprefix("# "), max(30, COLUMNS - 2 - columns(before)))
    return [f"{before}# {piece.strip()}" for piece in pieces]

