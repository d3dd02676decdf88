"""An ONNX file that holds one operator, written by hand: nothing but ONNX Runtime needs to be installed for it (onnx.proto).

A protocol buffer is a list of fields, each with a number that says what it is; a field is an integer, or a length and so many bytes, which
may be a protocol buffer again. The numbers below are those of onnx.proto: a model holds a graph, the graph a node, constants, inputs and
an output, the node the names of its operands and its attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

FLOAT, UINT8, INT32 = 1, 2, 6  # ONNX's numbers for the kinds of elements
KINDS = {np.dtype(np.float32): FLOAT, np.dtype(np.uint8): UINT8}


def model(operator: str, inputs: Sequence[str], operands: Mapping[str, int | np.ndarray], output: tuple[str, int],
          attributes: Mapping[str, int] = {}, domain: str = "") -> bytes:
    """The ONNX file of output = operator(*inputs).

    operands: by name, an array, which becomes a constant, or the kind (FLOAT, ...) of a matrix that is given at each run; output: its name
    and kind; attributes: integers; domain: of operators that are not ONNX's own.

    >>> len(model("MatMulInteger", ["a", "b"], {"a": UINT8, "b": np.zeros((3, 2), np.uint8)}, ("c", INT32)))
    98
    """
    node = [part for name in inputs for part in field(1, name)] + field(2, output[0]) + field(4, operator)
    for name, value in attributes.items():
        node += field(5, field(1, name) + field(3, value) + field(20, 2))                   # 2: an integer
    graph = field(1, node + (field(7, domain) if domain else [])) + field(2, "product")
    for name, operand in operands.items():
        graph += field(11, _matrix(name, operand)) if isinstance(operand, int) else field(5, _constant(name, operand))
    graph += field(12, _matrix(*output))
    operators = field(8, field(1, "") + field(2, 13)) + (field(8, field(1, domain) + field(2, 1)) if domain else [])
    return b"".join(field(1, 8) + field(7, graph) + operators)                              # format 8, operators 13


def _matrix(name: str, kind: int) -> list:
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, 2 * field(1, []))))  # two sizes that nothing is said of


def _constant(name: str, array: np.ndarray) -> list:
    data = memoryview(np.ascontiguousarray(array)).cast("B") if array.ndim else array.tobytes()
    return [*(part for size in array.shape for part in field(1, size)), *field(2, KINDS[array.dtype]), *field(8, name), *field(9, [data])]


def field(number: int, value: int | str | list) -> list:
    """One field of a protocol buffer in parts: its number and kind, then an integer, or the length and the bytes, which are not copied."""
    if isinstance(value, int):
        return [varint(number << 3) + varint(value)]
    value = [value.encode()] if isinstance(value, str) else value
    return [varint(number << 3 | 2) + varint(sum(map(len, value))), *value]


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte says that another follows.

    >>> varint(300).hex()
    'ac02'
    """
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)
