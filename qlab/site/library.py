"""The library's documentation, from its docstrings: one page a package, Markdown. The sources are read, not run.

What a package shows is what a reader of the course meets: the modules that its pages, exercises, texts and experiments import, or that
the package itself names. Of these the functions and classes without an underscore, with the examples that run as doctests.
"""

import ast
import re
import textwrap
from functools import cache
from pathlib import Path

import nbformat

PACKAGES = ("quant", "nets", "matmul", "llm", "search", "deploy")
LITERAL = re.compile(r"`[^`]+`")


def modules(root: Path) -> dict[str, Path]:
    """The library's documented modules and packages, in the order of their names: qlab.quant, qlab.quant.linear, ..."""
    found = {}
    for package in PACKAGES:
        folder = root / "qlab" / package
        used = _used(root, package)
        found[f"qlab.{package}"] = folder / "__init__.py"
        found |= {f"qlab.{package}.{path.stem}": path for path in sorted(folder.glob("*.py")) if path.stem in used}
    return found


def page(package: str, known: dict[str, Path]) -> str:
    """Markdown of a package's page; package: qlab.quant, say."""
    inside = [name for name in known if name.startswith(f"{package}.")]
    parts = [f"# {package}", _text(ast.get_docstring(_tree(known[package])) or "")]
    for name in inside:
        tree, short = _tree(known[name]), name.rpartition(".")[2]
        parts += [f"## {name}", _text(ast.get_docstring(tree) or "")]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and ast.get_docstring(node):
                parts += _documented(node, short)
    return "\n\n".join(parts) + "\n"


def _used(root: Path, package: str) -> set[str]:
    """The modules of a package that the course's pages and texts import, and those that the package imports or lists."""
    names = set()
    for text in (*_texts(root), (root / "qlab" / package / "__init__.py").read_text(encoding="utf-8")):
        names |= set(re.findall(rf"qlab\.{package}\.(\w+)", text))
        for listed in re.findall(rf"from qlab\.{package} import \(?([\w,\s]+)", text) + re.findall(r"__all__ = \[(.*?)\]", text):
            names |= set(re.findall(r"\w+", listed))
    return names - {"__init__"}


@cache
def _texts(root: Path) -> tuple[str, ...]:
    pages = [*(root / "notebooks").glob("*.ipynb"), *(root / "exercises").glob("*.ipynb")]
    texts = [*(root / "docs").rglob("*.md"), *(root / "qlab" / "lab" / "experiments").glob("*.py"), root / "README.md"]
    return (*("\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells) for path in pages),
            *(path.read_text(encoding="utf-8") for path in texts if path.is_file()))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _documented(node: ast.FunctionDef | ast.ClassDef, module: str) -> list[str]:
    """Heading, signature and docstring of a function or a class, and those of its methods."""
    if isinstance(node, ast.FunctionDef):
        return [f"### {module}.{node.name}", _signature(node), _text(ast.get_docstring(node))]
    fields = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign) and not ast.unparse(line.target).startswith("_")]
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    parts = [f"### {module}.{node.name}", _code("\n    ".join([f"class {node.name}{f'({bases})' if bases else ''}", *fields])),
             _text(ast.get_docstring(node))]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
            parts += [_signature(method), _text(ast.get_docstring(method))]
    return parts


def _signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    whole = f"{node.name}({ast.unparse(node.args)}){returns}"
    if len(whole) > 88:
        arguments = textwrap.wrap(ast.unparse(node.args), 84, break_long_words=False, break_on_hyphens=False)
        whole = f"{node.name}(\n    " + "\n    ".join(arguments) + f"\n){returns}"
    return _code(whole)


def _code(source: str, language: str = "python") -> str:
    return f"```{language}\n{source}\n```"


def _text(doc: str) -> str:
    """A docstring as Markdown: paragraphs, what is indented or laid out in columns as it stands, examples as a session."""
    parts = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        lines = block.split("\n")
        if lines[0].lstrip().startswith(">>>"):
            parts.append(_code(textwrap.dedent(block), "pycon"))
        elif all(line.startswith("    ") for line in lines):
            parts.append(_code(textwrap.dedent(block), "text"))
        elif any(line.startswith("    ") for line in lines[1:]):
            start = next(i for i, line in enumerate(lines) if line.startswith("    "))
            parts += [_escaped(" ".join(lines[:start])), _code(textwrap.dedent("\n".join(lines[start:])), "text")]
        else:
            parts.append(_escaped(" ".join(lines)))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Text in which only `code` means something to Markdown."""
    marks = [*LITERAL.finditer(text)]
    plain = LITERAL.split(text)
    escaped = [re.sub(r"([\\`*_\[\]<>|$#~{}&])", r"\\\1", part) for part in plain]
    return "".join(part + (marks[i][0] if i < len(marks) else "") for i, part in enumerate(escaped))
