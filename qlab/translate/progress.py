"""How much of another edition is done, and the files in which a translator goes on."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from qlab import saving
from qlab.translate import FOLDER, code, extract, glossary, pages, po

CODE_HEAD = ("The words inside of the pages' code: comments, docstrings, hints, questions. Everything else of the code is shared.",)


def check(root: Path, asked: str, paths: Sequence[Path], must: Sequence[str]) -> tuple[list[str], bool]:
    """(lines to print, whether all is well): a line for each page, one for the library's words, and below each what is wrong with it.

    must: how the names of the pages begin of which nothing may be missing.
    """
    terms = glossary.read(root / "translations" / asked / "glossary.md")
    lines, good = [], True
    for path in paths:
        found, said = _page(path, asked)
        promised = path.name.startswith(tuple(must))
        stale = [f"cell {cell.id} is stale" for cell in found if cell.state == "stale"]
        missing = [f"cell {cell.id} is missing" for cell in found if cell.state == "missing"]
        unsaid = [f"no translation of {one[:60]!r}" for one, other in said.items() if not other]
        broken = _broken(path, asked, found, said, terms) if len(missing) < len(found) else []
        told = stale + broken + (missing + unsaid if promised else [])
        done = len(found) - len(missing) - len(stale), len(said) - len(unsaid)
        share = f"{done[0]:3} of {len(found):3} texts, {done[1]:3} of {len(said):3} words in code"
        lines += [f"{path.parent.name + '/' + path.stem:46} {share}", *(f"    {one}" for one in told)]
        good = good and not told
    now, have = extract.of_library(), po.read(FOLDER / f"{asked}.po")
    left = [one for one in now if not have.get(one)]
    broken = [f"{one[:60]!r}: {why}" for one in now if have.get(one) for why in _values(one, have[one])]
    lines += [f"{'what the library says':46} {len(now) - len(left):3} of {len(now):3} words", *(f"    {one}" for one in broken),
              *(f"    no translation of {one[:60]!r}" for one in left)]
    return lines, good and not broken and not left


def _page(path: Path, asked: str) -> tuple[list[pages.Cell], dict[str, str]]:
    notebook, known = pages.load(path), pages.words(path, asked)
    words = [one for cell in notebook.cells if cell.cell_type == "code" for one in code.words(cell.source)]
    return pages.cells(notebook, pages.read(pages.place(path, asked))), {one: known.get(one, "") for one in words}


def _broken(path: Path, asked: str, found: list[pages.Cell], said: dict[str, str], terms) -> list[str]:
    told = pages.problems(path, asked)
    for cell in found:
        if cell.state == "done":
            told += [f"cell {cell.id}: {why}" for why in glossary.strays(cell.english, cell.text, terms)]
    return told + [f"{one[:40]!r}: {why}" for one, other in said.items() if other for why in glossary.strays(one, other, terms)]


def _values(one: str, other: str) -> list[str]:
    """What a word of the library has lost: the values in braces, and tags."""
    from qlab.translate import survives

    before, after = survives.parts(one), survives.parts(other)
    return [f"{kind} differs" for kind in ("expression", "tag", "code") if before[kind] != after[kind]]


def refresh(root: Path, asked: str, paths: Iterable[Path] | None) -> list[Path]:
    """Writes the files that a translator fills, for these pages or for all that are begun, all of them or none; gives their paths."""
    every = sorted(path for folder in ("notebooks", "exercises") for path in (root / folder).glob("*.ipynb"))
    chosen = [path for path in every if pages.place(path, asked).is_file()] if paths is None else list(paths)
    begun = [path for path in every if path in chosen or pages.place(path, asked).is_file()]
    written = {pages.place(path, asked): pages.skeleton(path, asked) for path in chosen}
    now: dict[str, str] = {}
    for path in begun:
        for one in _page(path, asked)[1]:
            now.setdefault(one, f"{path.parent.name}/{path.stem}")
    shared = root / "translations" / asked / "code.po"
    written[shared] = extract.merged(po.read(shared) if shared.is_file() else {}, now, CODE_HEAD, extract.kept(shared))
    library = FOLDER / f"{asked}.po"
    if library.is_relative_to(root.resolve()):  # of this clone
        written[library] = extract.merged(po.read(library), extract.of_library(), kept=extract.kept(library))
    for path in written:
        saving.make_folder(path.parent)
    saving.write({path: text.encode() for path, text in written.items()})
    return list(written)
