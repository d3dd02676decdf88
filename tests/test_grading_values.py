"""Typed JSON: what travels arrives unchanged, what is not exactly a value is refused, and comparing is strict."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.grading import values
from qlab.grading.compare import compare
from qlab.grading.values import decode, encode, restore, show

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
DTYPES = [getattr(torch, name) for name in (*values._DTYPES, *values._NARROW)]


def same(a, b):
    """Equal in value and in type, NaN included; independent of compare."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return (a != a and b != b) or (a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b)))


@given(PLAIN)
def test_python_objects_arrive_unchanged(thing):
    sent = json.loads(json.dumps(encode(thing)))
    assert same(decode(sent), thing) and same(restore(sent), thing)
    assert compare(sent, encode(thing)) == ""
    assert isinstance(show(sent), str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,), (2, 0, 3)])
def test_tensors_arrive_bit_for_bit(dtype, shape):
    generator = torch.Generator().manual_seed(1)
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=generator)
    tensor = bits.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    sent = json.loads(json.dumps(encode(tensor)))
    back = restore(sent)
    assert back.dtype is dtype and back.shape == tensor.shape
    plain = tensor.to(torch.float32) if dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2) else tensor
    assert np.array_equal(decode(sent), plain.numpy(), equal_nan=not dtype.is_complex) or dtype.is_complex
    if dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) and not (plain != plain).any():
        assert torch.equal(back, tensor)
    assert compare(sent, encode(tensor)) == ""


def test_every_float8_and_bfloat16_decodes_as_torch_says():
    for dtype, kind in ((torch.float8_e4m3fn, torch.uint8), (torch.float8_e5m2, torch.uint8), (torch.bfloat16, torch.int16)):
        codes = torch.arange(256, dtype=torch.uint8) if kind is torch.uint8 else torch.arange(-(2**15), 2**15, dtype=torch.int16)
        tensor = codes.view(dtype)
        assert np.array_equal(decode(encode(tensor)), tensor.float().numpy(), equal_nan=True)


def test_views_parameters_and_scalars():
    grid = torch.arange(12.0).reshape(3, 4)
    assert np.array_equal(decode(encode(grid.T[1:])), grid.T[1:].numpy())
    assert encode(torch.nn.Parameter(grid)) == encode(grid)
    assert encode(grid.clone().requires_grad_() * 1) == encode(grid)
    assert encode(np.asfortranarray(grid.numpy()))["data"] == encode(grid)["data"]
    assert encode(np.float32(0.5)) == {**encode(np.array(0.5, dtype=np.float32)), "t": "array"}
    assert encode(grid.shape) == encode((3, 4))
    assert encode(np.arange(3).astype(">i4")) == encode(np.arange(3, dtype=np.int32))
    assert np.array_equal(decode(encode(torch.tensor([1 + 2j]).conj())), [1 - 2j])


class Loud:
    def __getattr__(self, name):
        raise RuntimeError("touched")


class Sub(torch.Tensor):
    pass


class Text(str):
    pass


class Whole(int):
    pass


@pytest.mark.parametrize(("thing", "name"), [
    (object(), "object"), (Text("x"), "Text"), (Whole(1), "Whole"), (type("Dict", (dict,), {})(a=1), "Dict"),
    (torch.zeros(2).as_subclass(Sub), "Sub"), ({1: 2}, "a dict whose keys are not all str"),
    (np.array(["a"]), "a NumPy array of dtype str32"),
    (np.array([object()]), "a NumPy array of dtype object"), (torch.zeros(2).to_sparse(), "a tensor that is sparse or has no data"),
    (torch.zeros(2, device="meta"), "a tensor that is sparse or has no data"), (torch.zeros(1).expand(2**40), "too large"),
    (np.broadcast_to(np.float32(0), (2**20, 2**20)), "too large"), ([0] * 200_000, "too large"), ({1}, "set"),
    (lambda: 1, "function"), (torch.float32, "dtype"), ("\ud800", "UnicodeEncodeError"), (np.ma.masked_array([1]), "MaskedArray"),
])  # fmt: skip
def test_what_is_no_value_is_unsupported(thing, name):
    assert encode(thing) == {"t": "unsupported", "type": name}
    assert decode(encode(thing)) == encode(thing)
    assert compare(encode(thing), encode(1)).startswith("expected an int, got ")


def test_an_object_that_cannot_be_touched_is_unsupported():
    assert encode([1, Loud()]) == {"t": "unsupported", "type": "Loud"}


def test_depth_and_cycles():
    deep = []
    for _ in range(values.MAX_DEPTH):
        deep = [deep]
    assert encode(deep)["t"] == "list" and encode([deep]) == {"t": "unsupported", "type": "too large"}
    loop = []
    loop.append(loop)
    assert encode(loop) == {"t": "unsupported", "type": "too large"}
    assert encode(10**5000) == {"t": "unsupported", "type": "too large"} and decode(encode(10**4299)) == 10**4299


def test_errors():
    bases = ["KeyError", "LookupError", "Exception", "BaseException"]
    assert encode(KeyError("x")) == {"t": "error", "type": "KeyError", "message": "'x'", "bases": bases}
    assert len(encode(ValueError("x" * 10_000))["message"]) == 500
    mute = type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})
    assert encode(mute())["message"] == ""


@pytest.mark.parametrize("bad", [
    None, 1, "none", [], {}, {"t": 1}, {"t": []}, {"t": "none", "v": None}, {"t": "bool"}, {"t": "bool", "v": 1}, {"t": "int", "v": 1},
    {"t": "int", "v": "0x10"}, {"t": "int", "v": "\u0664"}, {"t": "int", "v": "9" * 5000}, {"t": "int", "v": ""},
    {"t": "float", "v": "one"}, {"t": "float", "v": "0x1p99999"}, {"t": "str", "v": None}, {"t": "list", "v": "ab"},
    {"t": "list", "v": [1]}, {"t": "tuple", "v": {}}, {"t": "dict", "v": {}}, {"t": "dict", "v": [[1, {"t": "none"}]]},
    {"t": "dict", "v": [["a", {"t": "none"}], ["a", {"t": "none"}]]}, {"t": "dict", "v": [["a"]]}, {"t": "unsupported", "type": 1},
    {"t": "error", "type": "E", "bases": "E", "message": ""}, {"t": "error", "type": "E", "bases": [1], "message": ""},
    {"t": "error", "type": "E", "bases": ["E"] * 99, "message": ""}, {"t": "error", "type": "E", "bases": [], "message": "x" * 501},
    *({"t": "array", "dtype": "int8", "shape": [1], "data": "AA==", **change} for change in (
        {"dtype": "object"}, {"dtype": "bfloat16"}, {"dtype": 1}, {"dtype": None}, {"shape": [2]}, {"shape": 1}, {"shape": [-1, -1]},
        {"shape": [True]}, {"shape": [1.0]}, {"shape": [1] * 40}, {"shape": [0, 2**80]}, {"shape": [2**62, 4]}, {"data": "AA"},
        {"data": "!!"}, {"data": 1}, {"data": ""}, {"data": "AA==\n"}, {"extra": 1})),
])  # fmt: skip
def test_what_is_not_exactly_a_value_is_refused(bad):
    with pytest.raises(ValueError, match=r"^[a-z\"].*\.$"):
        decode(bad)


def test_a_value_of_great_depth_is_refused():
    deep = {"t": "none"}
    for _ in range(50):
        deep = {"t": "list", "v": [deep]}
    with pytest.raises(ValueError, match="at most 100,000 items and 20 levels"):
        decode(deep)


def test_compare_says_why_not():
    def why(got, expect, **rules):
        return compare(encode(got), encode(expect), **rules)

    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert why(a, b) == "1 of 2 elements differs: expected 2.5 at [1], got 2.0; the largest error is 0.5, and 0 is allowed."
    assert why(a, b, tol=0.5) == "" and "0.4 is allowed" in why(a, b, tol=0.4)
    assert why(a.double(), a) == "expected dtype float32, got float64." and why(a.double(), a, dtype=False) == ""
    assert why(a.reshape(2, 1), a, dtype=False) == "expected shape (2,), got (2, 1)."
    assert why(a.numpy(), a) == "expected a tensor, got a NumPy array." and why(a.numpy(), a, dtype=False) == ""
    assert why(1, 1.0) == "expected a float, got an int." and why(1, 1.0, dtype=False) == ""
    assert why(torch.tensor(1), 1.0, dtype=False) == ""
    assert why(True, 1) == "expected an int, got a bool." and why(True, 1, dtype=False) == "expected an int, got a bool."
    assert why([1, (2, 3)], [1, (2, 4)]) == "In item 1, item 1: expected 4, got 3."
    assert why([1], [1, 2]) == "expected a list of 2 items, got 1." and why((1,), [1]) == "expected a list, got a tuple."
    assert why({"a": 1}, {"b": 1}) == "expected the keys ['b'], got ['a']." and why({"a": 1}, {"a": 2}) == "In key 'a': expected 2, got 1."
    assert why({"a": 1, "b": 2}, {"b": 2, "a": 1}) == ""
    assert why(None, 1) == "expected an int, got None." and why("a", "b") == "expected 'b', got 'a'."
    assert why(ValueError("no"), 1) == "expected an int, got ValueError: no."
    assert why(10**400, 10**400 + 1) != "" and why(10**400, 10**400) == "" and why(10**400, 1.0, dtype=False) != ""
    assert why(1.0, float("inf"), tol=1e300) != "" and why(float("nan"), 1.0, tol=1e300) != ""


@pytest.mark.parametrize("right, wrong, numbers", [
    (0.5, 0.25, (np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).bfloat16(),
                 torch.nn.Parameter(torch.tensor(0.5)))),
    (3, 4, (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.int8))),
    (2**63 - 1, 2**63 - 2, (np.int64(2**63 - 1), torch.tensor(2**63 - 1))),
    (True, False, (np.bool_(True), np.array(True), torch.tensor(True))),
    (float("nan"), 0.0, (np.float64("nan"), torch.tensor(float("nan")))),
])
def test_a_number_of_numpy_or_torch_is_a_number(right, wrong, numbers):
    for number in numbers:
        for wrap in (lambda x: x, lambda x: [x], lambda x: (1, x), lambda x: {"a": x}):
            assert compare(encode(wrap(number)), encode(wrap(right))) == "", (number, right)
            assert compare(encode(wrap(number)), encode(wrap(wrong))) != "", (number, wrong)


def test_a_number_of_another_kind_or_shape_is_none():
    def why(got, expect):
        return compare(encode(got), encode(expect))

    assert why(np.float64(2), 2) == "expected an int, got a NumPy float64."
    assert why(np.int64(2), 2.0) == "expected a float, got a NumPy int64."
    assert why(np.bool_(True), 1) == "expected an int, got a NumPy bool."
    assert why(np.int64(1), True) == "expected a bool, got a NumPy int64."
    assert why(torch.tensor(2.0), 2) == "expected an int, got a tensor." and why(np.complex64(2), 2.0) != ""
    assert why(np.array([0.5]), 0.5) == "expected a float, got a NumPy array."
    assert why(torch.tensor([2]), 2) == "expected an int, got a tensor."
    assert why(np.float32(0.1), 0.1).startswith("expected 0.1, got 0.100000001")  # rounded, and said so
    assert why(0.5, np.float64(0.5)) == "expected a NumPy array, got a float."  # an array of shape () was asked for


def test_nan_infinity_and_zero():
    nan, inf = float("nan"), float("inf")
    for make in (lambda *x: torch.tensor(x), lambda *x: np.array(x), lambda *x: list(x), lambda *x: tuple(x)):
        for tol in (0.0, 1e9):
            assert compare(encode(make(nan, inf, -inf, 0.0)), encode(make(nan, inf, -inf, -0.0)), tol) == ""
            for got, expect in ((nan, 1.0), (1.0, nan), (inf, -inf), (inf, 1.0), (1.0, inf), (nan, inf)):
                assert compare(encode(make(got, 0.0)), encode(make(expect, 0.0)), tol) != ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(0, 10), st.data())
def test_tolerance_bounds_the_largest_error(numbers, tol, data):
    other = [x + data.draw(st.floats(-20, 20)) for x in numbers]
    expected = max(abs(a - b) for a, b in zip(numbers, other)) <= tol  # NumPy's float64 rounds as Python's
    assert (compare(encode(np.array(other)), encode(np.array(numbers)), tol) == "") == expected
    assert (compare(encode(other), encode(numbers), tol) == "") == expected


@given(PLAIN, PLAIN)
def test_compare_without_tolerance_is_equality(a, b):
    def zero(thing):  # -0.0 counts as 0.0
        return json.loads(json.dumps(encode(thing)).replace('"-0x0.0p+0"', '"0x0.0p+0"'))

    def ordered(value):
        if value["t"] == "dict":
            return {"t": "dict", "v": sorted([[k, ordered(v)] for k, v in value["v"]], key=lambda pair: pair[0])}
        return {"t": value["t"], "v": [ordered(v) for v in value["v"]]} if value["t"] in ("list", "tuple") else value

    assert (compare(encode(a), encode(b)) == "") == (ordered(zero(a)) == ordered(zero(b)))


def test_show_is_short():
    assert show(encode(torch.zeros(0, 3))) == "tensor([], shape=(0, 3), dtype=float32)"
    assert show(encode((1,))) == "(1,)" and show(encode(ValueError())) == "ValueError"
    assert show(encode(object())) == "an object that cannot be compared (object)"
    for thing in (torch.rand(100, 100, 100), "x" * 9999, list(range(9999)), [[["x" * 99] * 99] * 9]):
        assert len(show(encode(thing))) <= 600


def test_the_grader_needs_no_torch():
    """Decoding and comparing tensors leaves torch unimported, so nothing of a student's can reach a pickle or a tensor's methods."""
    script = """import json, sys
from qlab.grading import compare, mark, values
from qlab.grading.sandbox import bwrap, drive
value = json.loads(sys.argv[1])
values.decode(value), compare.compare(value, value), values.show(value)
print("torch" in sys.modules)"""
    sent = json.dumps(encode(torch.ones(2).bfloat16()))
    assert subprocess.run([sys.executable, "-c", script, sent], capture_output=True, text=True, check=True).stdout == "False\n"
