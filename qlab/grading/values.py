"""Typed JSON: how an answer travels from a student's process, which nobody trusts, to the grader, which compares plain values.

    VALUE = {"t": "none"} | {"t": "bool", "v": true} | {"t": "int", "v": "12"} | {"t": "float", "v": "0x1.8p+0"}
          | {"t": "str", "v": "text"} | {"t": "list" or "tuple", "v": [VALUE, ...]} | {"t": "dict", "v": [[key, VALUE], ...]}
          | {"t": "tensor" or "array", "dtype": "float32", "shape": [2, 3], "data": base64 of the little-endian bytes}
          | {"t": "error", "type": "ValueError", "bases": [...], "message": "..."} | {"t": "unsupported", "type": "Foo"}

Nothing is ever unpickled, and no method of a student's object decides anything: `encode` looks at exact types only, so an object that
pretends to be a tensor, or whose `__eq__` always says True, arrives as "unsupported". The grader's side (`decode`, `show`) uses NumPy
and the standard library, never torch; `restore` is for the worker, which hands the inputs of a case to the student's function. What is
compared, and how, is in module compare.
"""

import base64
import binascii
import math
import sys

import numpy as np

from qlab.translate import tr

MAX_BYTES = 64 * 2**20  # of data in one value
MAX_ITEMS = 100_000
MAX_DEPTH = 20
MAX_DIGITS = 4300
_TOO_LONG = 10**MAX_DIGITS
MAX_TEXT = 500  # of an error's message

_NUMPY = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64 complex64 complex128".split()
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in _NUMPY}
_NARROW = {"bfloat16": np.dtype("<u2"), "float8_e4m3fn": np.dtype("u1"), "float8_e5m2": np.dtype("u1")}  # their bits: NumPy lacks them
_KEYS = {"none": set(), "tensor": {"dtype", "shape", "data"}, "array": {"dtype", "shape", "data"},
         "error": {"type", "bases", "message"}, "unsupported": {"type"}}  # fmt: skip
_TYPES = {"bool": bool, "int": str, "float": str, "str": str, "list": list, "tuple": list, "dict": list}  # of "v" in JSON


class _Unsupported(Exception):
    pass


def encode(obj: object) -> dict:
    """The VALUE of an object; what has none, or is too large, is {"t": "unsupported", "type": its name}. Never raises.

    A torch.nn.Parameter is a tensor, a NumPy scalar an array of shape (), a torch.Size a tuple, an exception an "error"; every other
    subclass is unsupported. Limits: 64 MiB of data, depth 20, 100,000 items, integers of 4,300 digits.

    >>> encode((1, [True, None]))
    {'t': 'tuple', 'v': [{'t': 'int', 'v': '1'}, {'t': 'list', 'v': [{'t': 'bool', 'v': True}, {'t': 'none'}]}]}
    >>> encode(np.array([1, 2], dtype=np.int8))
    {'t': 'array', 'dtype': 'int8', 'shape': [2], 'data': 'AQI='}
    >>> encode(type("Tensor", (), {})())
    {'t': 'unsupported', 'type': 'Tensor'}
    """
    try:
        return _encode(obj, 0, {"items": MAX_ITEMS, "bytes": MAX_BYTES})
    except _Unsupported as reason:
        return {"t": "unsupported", "type": str(reason)}
    except Exception as error:  # an object whose methods raise
        return {"t": "unsupported", "type": type(error).__name__}


def _spend(left: dict, what: str, amount: int) -> None:
    left[what] -= amount
    if left[what] < 0:
        raise _Unsupported("too large")


def _encode(obj, depth: int, left: dict) -> dict:
    if depth > MAX_DEPTH:
        raise _Unsupported("too large")
    _spend(left, "items", 1)
    kind = type(obj)
    torch = sys.modules.get("torch")
    if obj is None:
        return {"t": "none"}
    if kind is bool:
        return {"t": "bool", "v": obj}
    if kind is int:
        if abs(obj) >= _TOO_LONG:  # before str, whose time grows with the square of the digits
            raise _Unsupported("too large")
        return {"t": "int", "v": str(obj)}
    if kind is float:
        return {"t": "float", "v": obj.hex() if math.isfinite(obj) else str(obj)}
    if kind is str:
        _spend(left, "bytes", len(obj.encode()))  # raises where half a surrogate pair makes it no text
        return {"t": "str", "v": obj}
    if kind in (list, tuple) or (torch is not None and kind is torch.Size):
        return {"t": "list" if kind is list else "tuple", "v": [_encode(item, depth + 1, left) for item in obj]}
    if kind is dict:
        if any(type(key) is not str for key in obj):
            raise _Unsupported("a dict whose keys are not all str")
        _spend(left, "bytes", sum(len(key.encode()) for key in obj))
        return {"t": "dict", "v": [[key, _encode(item, depth + 1, left)] for key, item in obj.items()]}
    if kind is np.ndarray or (isinstance(obj, np.generic) and kind.__module__ == "numpy"):
        return _encode_array(np.asarray(obj), left)
    if torch is not None and kind in (torch.Tensor, torch.nn.Parameter):
        return _encode_tensor(obj, torch, left)
    if isinstance(obj, BaseException):
        return _error(obj)
    raise _Unsupported(str(kind.__name__)[:100])


def _encode_array(array: np.ndarray, left: dict) -> dict:
    if array.dtype.name not in _DTYPES:
        raise _Unsupported(f"a NumPy array of dtype {array.dtype.name}"[:100])
    _spend(left, "bytes", array.size * array.itemsize)
    data = array.astype(_DTYPES[array.dtype.name]).tobytes()
    return {"t": "array", "dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def _encode_tensor(tensor, torch, left: dict) -> dict:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES and dtype not in _NARROW:
        raise _Unsupported(f"a tensor of dtype {dtype}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise _Unsupported("a tensor that is sparse or has no data")
    _spend(left, "bytes", tensor.numel() * tensor.element_size())
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    bits = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    if sys.byteorder == "big" and flat.numel():
        bits = bits.reshape(-1, flat.element_size())[:, ::-1]
    return {"t": "tensor", "dtype": dtype, "shape": list(tensor.shape), "data": base64.b64encode(bits.tobytes()).decode()}


def _error(error: BaseException) -> dict:
    try:
        message = str(error).encode(errors="replace").decode()
    except Exception:
        message = ""
    bases = [base.__name__[:100] for base in type(error).__mro__ if issubclass(base, BaseException)][:50]
    return {"t": "error", "type": type(error).__name__[:100], "bases": bases, "message": message[:MAX_TEXT]}


def decode(value: dict) -> object:
    """The object that a VALUE stands for, made of Python and NumPy only; ValueError with one sentence if it is not exactly a VALUE.

    A tensor and an array are a NumPy array; bfloat16 and the two float8 formats become float32, which holds them exactly. An "error" and an
    "unsupported" have no object: the VALUE itself comes back.

    >>> decode(encode({"a": (1, 2.5), "b": np.eye(2, dtype=np.int8)}))
    {'a': (1, 2.5), 'b': array([[1, 0],
           [0, 1]], dtype=int8)}
    >>> decode({"t": "tensor", "dtype": "bfloat16", "shape": [1], "data": "gD8="})
    array([1.], dtype=float32)
    >>> decode({"t": "tensor", "dtype": "float32", "shape": [2], "data": "gD8="})
    Traceback (most recent call last):
    ValueError: a tensor of dtype float32 and shape (2,) takes 8 bytes, not 2.
    """
    return _decode(value, 0, {"items": MAX_ITEMS})


def _decode(value, depth: int, left: dict) -> object:
    left["items"] -= 1
    if depth > MAX_DEPTH or left["items"] < 0:
        raise ValueError(f"a value has at most {MAX_ITEMS:,} items and {MAX_DEPTH} levels.")
    kind = value.get("t") if type(value) is dict else None
    if type(kind) is not str or kind not in _KEYS.keys() | _TYPES.keys() or value.keys() != {"t"} | _KEYS.get(kind, {"v"}):
        raise ValueError(f'a value is a dict with "t" and what its type needs, not {str(value)[:80]}.')
    if kind in ("tensor", "array"):
        return _decode_array(value)
    if kind in ("error", "unsupported"):
        bases = value.get("bases", [])
        texts = [value["type"], value.get("message", ""), *(bases if type(bases) is list else [None])]
        if any(type(text) is not str or len(text) > MAX_TEXT for text in texts) or len(texts) > 60:
            raise ValueError(f"an error is described by texts of at most {MAX_TEXT} characters.")
        return value
    if kind == "none":
        return None
    content = value["v"]
    if type(content) is not _TYPES[kind]:
        raise ValueError(f'"v" of a value of type {kind} is a {_TYPES[kind].__name__}, not a {type(content).__name__}.')
    if kind == "int":
        if not (content.removeprefix("-").isdecimal() and content.isascii() and len(content) <= MAX_DIGITS + 1):
            raise ValueError(f"an int is decimal text of at most {MAX_DIGITS} digits, not {content[:40]!r}.")
        return int(content)
    if kind == "float":
        try:
            return float.fromhex(content[:40])
        except (ValueError, OverflowError):
            raise ValueError(f"a float is hexadecimal text, not {content[:40]!r}.") from None
    if kind == "dict":
        if any(type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str for pair in content):
            raise ValueError("a dict is a list of [key, value], each key a str.")
        items = {key: _decode(item, depth + 1, left) for key, item in content}
        if len(items) != len(content):
            raise ValueError("a dict names each key once.")
        return items
    if kind in ("list", "tuple"):
        items = [_decode(item, depth + 1, left) for item in content]
        return items if kind == "list" else tuple(items)
    return content


def _decode_array(value: dict) -> np.ndarray:
    dtype, shape, data = value["dtype"], value["shape"], value["data"]
    known = _DTYPES if value["t"] == "array" else _DTYPES | _NARROW
    if type(dtype) is not str or dtype not in known:
        raise ValueError(f"the dtype of a {value['t']} is one of {', '.join(known)}, not {str(dtype)[:40]}.")
    sizes = shape if type(shape) is list and len(shape) <= 32 else [None]
    if any(type(n) is not int or n < 0 for n in sizes) or math.prod(n or 1 for n in sizes) >= 2**40:
        raise ValueError(f"a shape is a list of at most 32 sizes, not {str(shape)[:80]}.")
    try:
        raw = base64.b64decode(data if type(data) is str else "?", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the data of a tensor or array are base64 text.") from None
    size = known[dtype].itemsize * math.prod(shape)
    if len(raw) != size:
        raise ValueError(f"a {value['t']} of dtype {dtype} and shape {tuple(shape)} takes {size} bytes, not {len(raw)}.")
    codes = np.frombuffer(raw, known[dtype]).reshape(shape)
    if dtype == "bfloat16":  # the upper half of a float32
        return (codes.astype("<u4") << 16).view("<f4").astype(np.float32)
    if dtype == "float8_e5m2":  # the upper half of a float16
        return (codes.astype("<u2") << 8).view("<f2").astype(np.float32)
    if dtype == "float8_e4m3fn":
        exponent, fraction = (codes >> 3 & 15).astype(int), (codes & 7) / 8
        size = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 7), fraction * 2.0**-6)  # the smallest exponent is subnormal
        size = np.where(codes & 127 == 127, np.nan, size)
        return np.where(codes & 128, -size, size).astype(np.float32)
    return codes.astype(codes.dtype.newbyteorder("="))


def restore(value: dict) -> object:
    """The object that a VALUE stands for, with torch.Tensor for tensors: for the worker. ValueError as `decode`.

    >>> restore(encode({"x": __import__("torch").tensor([1.5, 2.0]).bfloat16()}))
    {'x': tensor([1.5000, 2.0000], dtype=torch.bfloat16)}
    """
    if type(value) is dict and value.get("t") in ("list", "tuple", "dict") and type(value.get("v")) is list:
        decode(value)
        if value["t"] == "dict":
            return {key: restore(item) for key, item in value["v"]}
        items = [restore(item) for item in value["v"]]
        return items if value["t"] == "list" else tuple(items)
    numbers = decode(value)
    if value["t"] != "tensor":
        return numbers
    import torch

    tensor = torch.from_numpy(np.array(numbers))
    return tensor.to(getattr(torch, value["dtype"]))


def show(value: dict, limit: int = 600) -> str:
    """A VALUE as text of at most `limit` characters for a reader; long tensors are shortened.

    >>> show(encode({"a": [1, 2.5, "x"], "b": np.array([[1, 2]], dtype=np.uint8)}))
    "{'a': [1, 2.5, 'x'], 'b': array([[1, 2]], dtype=uint8)}"
    """
    text = _show(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def _show(value: dict) -> str:
    kind = value["t"]
    if kind in ("tensor", "array"):
        numbers = decode(value)
        edge = 3 if numbers.size > 200 else 1000
        text = np.array2string(numbers, separator=", ", prefix=f"{kind}(", threshold=200, edgeitems=edge, precision=6)
        empty = f", shape={tuple(value['shape'])}" if not numbers.size else ""
        return f"{kind}({text}{empty}, dtype={value['dtype']})"
    if kind == "error":
        return f"{value['type']}: {value['message']}" if value["message"] else value["type"]
    if kind == "unsupported":
        if value["type"] == "too large":
            return tr("something too large to compare")
        return tr("an object that cannot be compared ({kind})", kind=value["type"])
    if kind in ("list", "tuple"):
        shown = [_show(item) for item in value["v"][:50]] + ["..."] * (len(value["v"]) > 50)
        if kind == "list":
            return f"[{', '.join(shown)}]"
        return f"({shown[0]},)" if len(shown) == 1 else f"({', '.join(shown)})"
    if kind == "dict":
        return "{" + ", ".join([f"{key!r}: {_show(item)}" for key, item in value["v"][:50]] + ["..."] * (len(value["v"]) > 50)) + "}"
    return repr(decode(value))
