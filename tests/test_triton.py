"""The Triton kernels: exact on a GPU and, on a machine without one, in Triton's interpreter; and compiled for GPUs without needing one."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (on Linux)")

from qlab.matmul import Int8Linear, int4_matmul, int4_triton, int8_matmul, layers, packed, product, reference  # noqa: E402
from qlab.matmul import triton as ours  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# one row, tall, wide, odd everywhere, the tile's size and one more or less, K beyond a step, and nothing at all
SHAPES = [(1, 1, 1), (1, 300, 70), (300, 5, 3), (3, 5, 300), (63, 127, 65), (64, 128, 64), (65, 129, 63), (130, 257, 131), (2, 1000, 2),
          (0, 3, 4), (3, 0, 4), (3, 4, 0)]


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)).to(DEVICE)


def differing(a, b, c):
    return int((c.cpu().numpy() != a.cpu().numpy().astype(np.int64) @ b.cpu().numpy().astype(np.int64)).sum())


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_zero_elements_differ(m, k, n):
    a, b = random(m, k), random(k, n, seed=1)
    c = int8_matmul(a, b, "triton")
    assert c.dtype == torch.int32 and c.shape == (m, n) and differing(a, b, c) == 0
    a_t, b_t = random(k, m).T, random(n, k, seed=1).T
    assert differing(a_t, b_t, int8_matmul(a_t, b_t, "triton")) == 0


def test_zero_elements_differ_for_any_strides():
    for a in (random(20, 30)[::2], random(10, 90)[:, ::3], random(1, 30).expand(10, 30), random(12, 31)[1:11, 1:]):
        b = random(30, 14, seed=1)[:, ::2]
        assert differing(a, b, int8_matmul(a, b, "triton")) == 0


def test_the_largest_sums():
    for value in (-128, 127):
        a = torch.full((2, 4096), value, dtype=torch.int8, device=DEVICE)
        assert int8_matmul(a, a.T, "triton").eq(4096 * value**2).all()
    k = reference.MAX_K - 1
    a = torch.full((1, k), -128, dtype=torch.int8, device=DEVICE)
    assert int8_matmul(a, a.T, "triton").item() == k * 2**14


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("group", [1, 3])
def test_every_tile_and_group_gives_the_same(block, group, monkeypatch):
    if not ours.INTERPRETED:
        pytest.skip("on a GPU the tuner tries the tiles")
    monkeypatch.setattr(ours, "INTERPRETED_TILE", {"BLOCK_M": block, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP_M": group})
    a, b = random(100, 70), random(70, 90, seed=1)
    assert differing(a, b, ours.matmul(a, b)) == 0


@pytest.mark.parametrize("out_dtype", ours.OUT_DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("m, k, n", [(1, 64, 33), (70, 100, 65)])
def test_the_fused_epilogue_is_the_one_in_steps(m, k, n, relu, out_dtype):
    a, b, g = random(m, k), random(k, n, seed=1), torch.Generator().manual_seed(0)
    row, column, bias = (torch.rand(size, generator=g).to(DEVICE) / 99 for size in (m, n, n))
    zero = torch.randint(-9, 9, (m,), generator=g, dtype=torch.int32).to(DEVICE)
    sums = b.sum(0, dtype=torch.int32)
    for arguments in ((row, column), (row[:1], column, bias), (row, column, bias, zero, sums), (row[:1], column, None, zero[:1], sums)):
        fused = ours.scaled_matmul(a, b, *arguments, relu=relu, out_dtype=out_dtype)
        apart = reference.epilogue(reference.matmul(a, b), *arguments, relu=relu, out_dtype=out_dtype)
        assert fused.dtype == out_dtype
        if ours.INTERPRETED:
            assert torch.equal(fused, apart)
        else:  # the compiler may fuse y * scale + bias: one rounding less
            assert (fused.double() - apart.double()).abs().max() <= 2 * torch.finfo(out_dtype).eps * apart.abs().max()


@pytest.mark.parametrize("dtype", layers.FLOATS)
@pytest.mark.parametrize("m, k, n", [(1, 256, 100), (17, 130, 30), (3, 1, 1)])
def test_weight_only_is_a_product_with_decoded_weights(m, k, n, dtype):
    x, w = torch.randn(m, k, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype), random(n, k)
    scale, bias = torch.rand(n, device=DEVICE) / 99, torch.randn(n, device=DEVICE, dtype=dtype)
    exact = x.double() @ (w.double() * scale.double()[:, None]).T + bias.double()
    y = ours.weight_only(x, w, scale, bias)
    assert y.dtype == dtype and (y - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()
    assert torch.equal(ours.weight_only(x.T.contiguous().T, w.T.contiguous().T, scale, bias), y)  # other strides, the same numbers


@pytest.mark.parametrize("m, k", [(1, 1), (5, 4097), (7, 100), (0, 3), (2, 0)])
@pytest.mark.parametrize("dtype", layers.FLOATS)
def test_quantized_rows_are_those_of_torch(m, k, dtype):
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    x[:1] = 0
    if k > 3:
        x[-1, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])  # a scale of 1 and three ties
        x[-1, 4:].clamp_(-2, 2)
    for ours_, torchs in zip(ours.quantize_rows(x), layers.quantize_rows(x)):
        assert torch.equal(ours_, torchs)


@pytest.mark.parametrize("k", [1, 37, 4097])
@pytest.mark.parametrize("dtype", layers.FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_have_no_codes(value, dtype, k):
    x = torch.randn(4, k, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    healthy, (x[1, 0], x[2, -1]) = x.clone(), (value, value)
    codes, scale = ours.quantize_rows(x)
    assert scale[1:3].isnan().all() and not codes[1:3].any()
    for some, all_ in zip((codes, scale), ours.quantize_rows(healthy)):
        assert torch.equal(some[[0, 3]], all_[[0, 3]])


def test_rows_of_the_smallest_and_largest_numbers():
    x = torch.tensor([[1e-45, 0.0], [1e-38, -1e-45], [3.4e38, -1.0], [1e-36, -2e-36]], device=DEVICE)
    for ours_, torchs in zip(ours.quantize_rows(x), layers.quantize_rows(x)):
        assert torch.equal(ours_, torchs)


@pytest.mark.parametrize("activations", ["token", (0.03, 0), (0.03, -7), None])
@pytest.mark.parametrize("dtype", layers.FLOATS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # the interpreter's NumPy says what the test wants
def test_a_row_that_is_not_finite_is_nan_through_the_fused_kernel(value, relu, dtype, activations):
    layer = nn.Linear(130, 70, device=DEVICE)
    x = torch.randn(3, 130, device=DEVICE).to(dtype)
    sick = x.clone()
    sick[1, 7], sick[1, 100] = value, -value  # weights alone: infinity minus infinity, or NaN times 0
    layer.weight.data[:, [7, 100]] = 1.0
    layer = Int8Linear.from_float(layer, activations, relu, backend="triton")
    y, healthy = layer(sick), layer(x)
    assert y[1].isnan().all() and healthy.isfinite().all() and torch.equal(y[[0, 2]], healthy[[0, 2]]) and y.dtype == dtype


@pytest.mark.parametrize("activations", ["token", (0.03, -7), None])
def test_the_layer_through_triton_is_the_layer_through_torch(activations):
    torch.manual_seed(0)
    layer, x = nn.Linear(130, 70, device=DEVICE), torch.randn(3, 5, 130, device=DEVICE)
    one, other = (Int8Linear.from_float(layer, activations, backend=backend)(x) for backend in ("triton", "reference"))
    assert (one - other).abs().max() <= 1e-6 * other.abs().max()


@pytest.mark.parametrize("zeros", [None, "whole", "real"])
@pytest.mark.parametrize("bits, dtype", [(2, torch.float16), (4, torch.float32), (4, torch.bfloat16), (8, torch.float16)])
def test_packed_weights_are_multiplied_exactly(bits, dtype, zeros):
    rng = np.random.default_rng(bits)
    for m, n, groups, group_size in ((1, 3, 3, 32), (5, 65, 2, 8), (17, 1, 1, 200), (2, 7, 2, 72)):  # groups of any length; odd N
        codes, scale = rng.integers(0, 2**bits, (n, groups * group_size)), 2.0 ** rng.integers(-1, 2, (n, groups))
        zero = {None: np.full((n, groups), 2 ** (bits - 1)), "whole": rng.integers(0, 2**bits, (n, groups)),
                "real": rng.integers(0, 2**bits, (n, groups)) / 2}[zeros]
        weights = packed.pack_codes(torch.tensor(codes, device=DEVICE), torch.tensor(scale, dtype=torch.float16),
                                    zero if zeros else None, bits)
        x = rng.integers(-7, 8, (m, groups * group_size)).astype(np.float32)
        exact = x.astype(np.float64) @ ((codes - np.repeat(zero, group_size, 1)) * np.repeat(scale, group_size, 1)).T
        y = int4_matmul(torch.tensor(x, device=DEVICE, dtype=dtype), weights, "triton")
        assert y.dtype == dtype and torch.equal(y.cpu(), torch.tensor(exact, dtype=torch.float32).to(dtype)), (m, n, groups, group_size)
    given = torch.tensor(x, device=DEVICE, dtype=dtype)
    for each in (given.repeat_interleave(2, 1)[:, ::2], given.T.contiguous().T, given[:, None].expand(-1, 3, -1)):
        assert torch.equal(int4_matmul(each, weights, "triton"), y if each.dim() == 2 else y[:, None].expand(-1, 3, -1))


def test_packed_weights_keep_rows_that_are_not_finite_apart_and_groups_end_with_a_byte():
    x, weights = torch.ones(3, 32, device=DEVICE), packed.pack_codes(torch.full((2, 32), 9, device=DEVICE), torch.ones(2))
    x[1, 3] = math.nan
    y = int4_matmul(x, weights, "triton")
    assert y[1].isnan().all() and y[[0, 2]].eq(32).all() and int4_matmul(x[:0], weights, "triton").shape == (0, 2)
    with pytest.raises(RuntimeError, match="groups of 3 codes of 4 bits do not end with a byte: use backend='reference'"):
        int4_matmul(x[:, :6], packed.pack_codes(torch.ones(2, 6, dtype=torch.int64, device=DEVICE), torch.ones(2, 2)), "triton")


def test_packed_weights_without_a_gpu(monkeypatch):
    monkeypatch.setattr(ours, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="Triton cannot compute here: the operands are not on CUDA"):
        int4_triton.matmul(torch.ones(1, 32), packed.pack_codes(torch.ones(2, 32, dtype=torch.int64), torch.ones(2)))


def test_bad_input():
    a = random(2, 3)
    with pytest.raises(ValueError, match="out_dtype is torch.int8, and must be one of torch.float32, torch.float16, torch.bfloat16"):
        ours.scaled_matmul(a, a.T, torch.ones(1), torch.ones(2), out_dtype=torch.int8)
    with pytest.raises(TypeError, match="a has dtype torch.float32, and must be torch.int8"):
        int8_matmul(a.float(), a.T, "triton")


def test_without_the_interpreter_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.setattr(ours, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="Triton cannot compute here: the operands are not on CUDA. Use backend='torch', or set"):
        ours.matmul(torch.zeros(2, 2, dtype=torch.int8), torch.zeros(2, 2, dtype=torch.int8))


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=os.environ | environment)


def test_without_triton_the_error_says_what_to_install():
    done = python("import sys; sys.modules['triton'] = None; import torch; from qlab.matmul import int8_matmul;"
                  "a = torch.zeros(2, 2, dtype=torch.int8); int8_matmul(a, a); int8_matmul(a, a, 'triton')")
    assert "ImportError: Triton 3.4 or newer is not installed: pip install triton (on Linux), or use backend='torch'." in done.stderr


def test_triton_imported_too_early_is_told():
    done = python("import triton.language, qlab.matmul.triton", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert "set TRITON_INTERPRET=1 before Python starts, or import this module first." in done.stderr


def test_the_kernels_compile_to_int8_tensor_core_instructions(tmp_path):
    """For Ampere and Hopper, on any machine: int8 products summed in int32, the large tile on Hopper by WGMMA from the copy engine."""
    done = subprocess.run([sys.executable, Path(__file__).with_name("triton_compile.py")], capture_output=True, text=True, timeout=200,
                          env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        used = " ".join(row["instructions"])
        if row["kernel"] == "product_kernel":
            hopper = row["capability"] == 90
            assert ("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8" if hopper else "mma.sync.aligned.m16n8k32.row.col") in used
            assert "s32.s8.s8" in used and "f32" not in used
            assert ("cp.async.bulk.tensor" in used) == row["descriptors"]
            assert row["keeps_nan"] == row["fused"]  # by its ReLU; the plain maximum instruction drops it
            assert row["shared"] <= (232_448 if hopper else 166_912)  # bytes that a block may have: CUDA C++ programming guide
        elif row["kernel"] == "weight_only_kernel":
            assert "f32.bf16.bf16.f32" in used
        elif row["kernel"] == "packed_kernel":  # codes become the type of x, and sums are float32
            assert "f32.bf16.bf16" in used or "f32.f16.f16" in used
            assert row["shared"] <= (232_448 if row["capability"] == 90 else 166_912)
    assert [row["kernel"] for row in rows].count("packed_kernel") == 4 and len(rows) == 11


def test_a_tile_suits_its_matrix():
    if ours.INTERPRETED:
        from triton import Config

        assert isinstance(ours.TILES[0], Config)
    for rows in (1, 16, 33, 4096):
        kept = ours._worth_trying(ours.TILES, {"M_BUCKET": rows})
        assert kept and all(config.kwargs["BLOCK_M"] <= max(16, 2 * rows) for config in kept)
    assert product.choose("cpu")[0] == "torch"  # Triton's interpreter is never chosen by itself
