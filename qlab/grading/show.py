"""An expected answer and the one that came, as text aligned column by column, with carets under what differs.

A tensor too large to print is cut around the first element that differs.
"""

import math

import numpy as np

from qlab.grading import values
from qlab.translate import tr

ROWS, COLUMNS = 8, 10


def beside(expect: dict, got: dict, tol: float = 0.0) -> tuple[str, str]:
    """Two VALUEs (see `values`) as text. Tensors of one shape are aligned; the items of tuples and lists of one length stand one a line.

    >>> for block in beside(values.encode(np.array([0, 191, 255])), values.encode(np.array([0, 90, 255]))):
    ...     print(block)
    [  0, 191, 255]
    [  0,  90, 255]
           ^^
    """
    if expect["t"] == got["t"] and expect["t"] in ("tuple", "list") and len(expect["v"]) == len(got["v"]) > 0:
        pairs = [beside(one, other, tol) for one, other in zip(expect["v"], got["v"])]
        return tuple("\n".join(_indent(tr("item {n}: ", n=n), pair[side]) for n, pair in enumerate(pairs)) for side in (0, 1))
    if "shape" in expect and "shape" in got and expect["shape"] == got["shape"] and expect["dtype"] == got["dtype"]:
        right, given = values.decode(expect), values.decode(got)
        if right.size and right.ndim and right.dtype.kind in "biuf":
            return _aligned(right, given, tol)
    return values.show(expect), values.show(got)


def _indent(title: str, block: str) -> str:
    return title + block.replace("\n", "\n" + " " * len(title))


def _aligned(right: np.ndarray, given: np.ndarray, tol: float) -> tuple[str, str]:
    """Rows of columns of one width; a tensor of more than two dimensions is shown as the rows of its last one."""
    right, given = (array.reshape(math.prod(array.shape[:-1]), array.shape[-1]) for array in (right, given))
    with np.errstate(all="ignore"):
        wrong = ~((right == given) | ((right != right) & (given != given)) | (abs(right.astype(float) - given.astype(float)) <= tol))
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    top, left = (int(min(max(0, at - size // 2), max(0, length - size)))
                 for at, size, length in ((row, ROWS, right.shape[0]), (column, COLUMNS, right.shape[1])))
    window = (slice(top, top + ROWS), slice(left, left + COLUMNS))
    wrong = wrong[window]
    blocks = [_texts(array[window], 6) for array in (right, given)]
    if (wrong & (blocks[0] == blocks[1])).any():  # six digits hide the difference
        blocks = [_texts(array[window], 17) for array in (right, given)]
    width = max(len(text) for block in blocks for line in block for text in line)
    before, after = "..., " if left else "", ", ..." if left + COLUMNS < right.shape[1] else ""
    shown = []
    for which, block in enumerate(blocks):
        lines = ["..."] if top else []
        for line, bad in zip(block, wrong):
            lines.append(f"[{before}{', '.join(text.rjust(width) for text in line)}{after}]")
            if which and bad.any():
                carets = ["^" * len(text) if off else "" for text, off in zip(line, bad)]
                lines.append((" " * (1 + len(before)) + "  ".join(caret.rjust(width) for caret in carets)).rstrip())
        shown.append("\n".join(lines + (["..."] if top + ROWS < right.shape[0] else [])))
    return shown[0], shown[1]


def _texts(array: np.ndarray, digits: int) -> np.ndarray:
    """Each element as text; floats with so many digits, or as many as tell them apart."""
    if array.dtype.kind != "f":
        return np.array([[str(value) for value in line] for line in array.tolist()])
    write = (lambda value: f"{value:.{digits}g}") if digits < 10 else (lambda value: np.format_float_scientific(value, unique=True))
    return np.array([[write(value) for value in line] for line in array])
