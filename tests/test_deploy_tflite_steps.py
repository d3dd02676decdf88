"""Steps of other people's networks in a .tflite file: by hand and at random, in four runtimes, against the integers of NumPy."""

import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest
import step_reference
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install qlab[deploy]")

from qlab.deploy import files, tflite  # noqa: E402
from qlab.nets import integer, ptq  # noqa: E402
from qlab.nets.integer import Grid, Step  # noqa: E402
from qlab.nets.softmax import softmax_multiplier  # noqa: E402

NO_MICRO = importlib.util.find_spec("tflite_micro") is None
KERNELS = [name for name in tflite.KERNELS if name != "micro" or not NO_MICRO]
PROBABILITY = Grid(1 / 256, -128, -128, 127)
UNIT = (1, 1)


def grid(scale=0.05, zero_point=-7):
    return Grid(float(np.float32(scale)), zero_point, -128, 127)


class Chain:
    """A network of steps in the making: each call adds one and gives its output's name."""

    def __init__(self, into=None):
        self.grids, self.steps = {"x": into or grid()}, []

    def __call__(self, kind, *inputs, to=None, name=None, relu=False, m=None, n=None, real=None, **fields):
        name = name or f"{kind}{len(self.steps)}"
        out = to or self.grids[inputs[0]]
        if real is not None:
            m, n = integer.multiplier(real)
        options = {key: fields.pop(key) for key in list(fields) if key not in ("weight", "bias", "table")}
        step = Step(kind, name, inputs, name, (*(self.grids[i] for i in inputs), out), relu, m=m, n=n, options=options, **fields)
        self.steps.append(step)
        self.grids[name] = out
        return name

    def network(self):
        last = self.steps[-1].output
        return integer.IntegerNetwork(tuple(self.steps), "x", last, self.grids["x"], self.grids[last])

    # Kinds whose multipliers follow from scales

    def conv(self, source, outs, channels, kernel=UNIT, groups=1, stride=UNIT, padding=(0, 0), **options):
        layer = self.layer(source, (outs, channels // groups, *kernel), **options)
        return self("conv", source, **layer, stride=stride, padding=padding, dilation=UNIT, groups=groups)

    def linear(self, source, outs, inputs, **options):
        return self("linear", source, **self.layer(source, (outs, inputs), **options))

    def layer(self, source, size, to=None, relu=False):
        rng, to, into = np.random.default_rng(0), to or grid(0.06, 3), self.grids[source].scale
        weight = torch.from_numpy(rng.integers(-127, 128, size).astype(np.int8))
        scale = np.float32(to.scale / into / np.sqrt(weight[0].numel()) / 75 * rng.uniform(0.5, 1, len(weight)))
        bias = torch.from_numpy(rng.integers(-2000, 2000, len(weight)).astype(np.int32))
        return {"to": to, "relu": relu, "weight": weight, "bias": bias, "real": into * torch.from_numpy(scale).double() / to.scale}

    def mul(self, a, b, to=None, relu=False):
        to = to or grid(self.grids[a].scale * self.grids[b].scale * 50, 11)
        return self("mul", a, b, to=to, relu=relu, real=[self.grids[a].scale * self.grids[b].scale / to.scale])

    def add(self, a, b, to=None, relu=False):
        to, twice = to or grid(0.09, -20), 2 * max(self.grids[a].scale, self.grids[b].scale)
        real = [self.grids[a].scale / twice, self.grids[b].scale / twice, twice / (2**20 * to.scale)]
        return self("add", a, b, to=to, relu=relu, real=real)

    def cat(self, *inputs, dim=1, to=None):
        to = to or self.grids[inputs[0]]
        return self("cat", *inputs, to=to, real=[self.grids[i].scale / to.scale for i in inputs], dim=dim)

    def table(self, source, to=None, smooth=False):
        codes = np.random.default_rng(0).integers(-128, 128, 256).astype(np.int8)
        codes = np.sort(codes) if smooth else codes
        return self("table", source, to=to or grid(0.03, 4), table=torch.from_numpy(codes))

    def softmax(self, source):
        m, n = softmax_multiplier(self.grids[source].scale)
        return self("softmax", source, to=PROBABILITY, m=torch.tensor([m], dtype=torch.int32), n=torch.tensor([n], dtype=torch.int8))

    def mean(self, source, kernel, stride, to=None):
        to, share = to or grid(0.04, -9), float(np.float32(1 / math.prod(kernel)))
        return self("mean", source, to=to, real=[self.grids[source].scale * share / to.scale], kernel_size=kernel, stride=stride)

    def windows(self, source, rows, columns, to=None, relu=False, share=None):
        to, into = to or grid(0.04, -9), self.grids[source].scale
        sizes = [(b - a) * (d - c) for a, b in rows for c, d in columns]
        real = [into * float(np.float32(share or 1 / size)) / to.scale for size in sizes]
        return self("windows", source, to=to, relu=relu, real=real, rows=tuple(rows), columns=tuple(columns))

    def relu6(self, source):
        from qlab.deploy.tflite_limits import code_of
        return self("relu6", source, high=code_of(6.0, self.grids[source]))


def random_codes(shape, n=12, seed=0):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, (n, *shape)).astype(np.int8))
    codes[0], codes[1] = -128, 127
    return codes


def differences(chain, shape, tmp_path, n=12):
    """The largest difference of codes under each set of kernels, and the operators."""
    network, codes = chain.network() if isinstance(chain, Chain) else chain, random_codes(shape, n)
    about = tflite.export(network, tmp_path / "net.tflite", shape)
    want = step_reference.network(network, codes)
    found = {}
    for kernels in KERNELS:
        got = tflite.run(tmp_path / "net.tflite", codes, kernels).numpy()
        assert got.shape == want.shape and got.dtype == np.int8
        found[kernels] = int(np.abs(got.astype(int) - want).max())
    return found, [layer["operator"] for layer in about.layers]


def adaptive(size, wanted):
    return [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]


def clipped(size, kernel, stride, padding):
    count = (size + 2 * padding - kernel) // stride + 1
    return [(max(0, i * stride - padding), min(size, i * stride - padding + kernel)) for i in range(count)]


CASES = {}


def case(shape, operators=None, exact=("micro", "reference"), others=1):
    """A case: what builds it, its image's shape, the operators it becomes, who is bit for bit, and how far the others may be."""
    def keep(build):
        CASES[build.__name__.replace("_", " ")] = (build, shape, operators, exact, others)
        return build
    return keep


ALL = ("micro", "reference", "builtin", "xnnpack")


@case((3, 4, 5), ["CAST", "ADD", "GATHER"], ALL)
def table(c):
    c.table("x")


@case((6,), ["CAST", "ADD", "GATHER"], ALL)
def table_of_one_dimension(c):
    c.table("x")


@case((3, 4, 5), ["RELU6"], ALL)
def relu6(c):
    c.relu6("x")


@case((3, 4, 5), ["MUL"])
def product(c):
    c.mul("x", "x")


@case((3, 4, 5), ["MUL"])
def product_with_relu(c):
    c.mul("x", "x", relu=True)


@case((3, 4, 5), ["DEPTHWISE_CONV_2D", "MUL"], others=3)
def squeeze_and_excitation(c):
    c.mul("x", c.mean("x", (4, 5), (4, 5)))


@case((3, 4, 5), ["DEPTHWISE_CONV_2D", "MUL"], others=3)
def excitation_first(c):
    c.mul(c.mean("x", (4, 5), (4, 5)), "x")


@case((3, 4, 5), ["DEPTHWISE_CONV_2D", "ADD"], others=3)
def sum_with_broadcasting(c):
    c.add(c.mean("x", (4, 5), (4, 5)), "x")


@case((4, 3, 5), None, others=3)
def sum_of_row_and_column(c):
    c.add(c("slice", "x", dim=2, start=0, stop=1, step=1), c("slice", "x", dim=3, start=1, stop=2, step=1))


@case((3, 4, 5), ["STRIDED_SLICE", "STRIDED_SLICE", "CONCATENATION"], ALL)
def cat_of_one_grid(c):
    c.cat(c("slice", "x", dim=1, start=0, stop=1, step=1), c("slice", "x", dim=1, start=1, stop=3, step=1))


@case((3, 4, 5), None, others=2)
def cat_of_other_grids(c):
    c.cat("x", c.conv("x", 2, 3), c.conv("x", 4, 3, to=grid(0.2, -60)), to=grid(0.11, 5))


@case((3, 4, 5), ["QUANTIZE"])
def cat_of_one(c):
    c.cat("x", to=grid(0.07, 20))


@case((3, 4, 5), ["QUANTIZE"])
def cat_of_one_to_finer(c):
    c.cat("x", to=grid(0.021, 20))


@case((3, 4, 5), ["QUANTIZE", "CONCATENATION"])
def cat_of_the_same_twice_by_columns(c):
    c.cat("x", "x", dim=-1, to=grid(0.07, 20))


@case((2, 3, 3), ["CONCATENATION", "CONCATENATION", "CONCATENATION"], ALL)
def cat_of_many(c):
    c.cat(*["x"] * 23, dim=1)


@case((7,), ["CONCATENATION"], ALL)
def cat_of_vectors(c):
    c.cat("x", "x", dim=1)


@case((6, 4, 5), ["RESHAPE", "TRANSPOSE", "RESHAPE"], ALL)
def channel_shuffle(c):
    c("reshape", c("permute", c("reshape", "x", shape=(2, 3, 4, 5)), dims=(0, 2, 1, 3, 4)), shape=(6, 4, 5))


@case((6, 4, 5), ["CONV_2D"])
def shuffle_and_back_around_a_convolution(c):
    a = c("reshape", c("permute", c("reshape", "x", shape=(2, 3, 4, 5)), dims=(0, 2, 1, 3, 4)), shape=(6, 4, 5))
    b = c("reshape", c("permute", c("reshape", a, shape=(3, 2, 4, 5)), dims=(0, 2, 1, 3, 4)), shape=(6, 4, 5))
    c.conv(b, 4, 6, (3, 3))


@case((12, 3, 5), None, ALL)
def pixel_shuffle(c):
    c("reshape", c("permute", c("reshape", "x", shape=(3, 2, 2, 3, 5)), dims=(0, 1, 4, 2, 5, 3)), shape=(3, 6, 10))


@case((2, 3, 4, 5), None, ALL)
def permuted_image_of_four_sizes(c):
    c.table(c("permute", "x", dims=(0, 4, 2, 1, 3)))


@case((3, 4, 5), None, ALL)
def flattened_map_at_the_end(c):
    c("flatten", "x", start_dim=1, end_dim=-1)


@case((3, 4, 5), None, ALL)
def rows_first(c):
    c("permute", "x", dims=(0, 2, 1, 3))


@case((3, 4, 5), ["RESHAPE", "FULLY_CONNECTED"], ("micro",))
def linear_after_permute_and_flatten(c):
    """In whichever order the map lies, the weights' columns follow: no transposition."""
    c.linear(c("flatten", c("permute", "x", dims=(0, 2, 3, 1)), start_dim=1, end_dim=-1), 4, 60)


@case((5, 6), ["FULLY_CONNECTED"], ("micro",))
def linear_of_the_last_of_two_dimensions(c):
    c.linear("x", 4, 6)


@case((3, 4, 6), None, ("micro",))
def linear_of_the_last_of_three_dimensions(c):
    c.linear("x", 4, 6)


@case((2, 3, 2, 6), None, ("micro",))
def linear_of_the_last_of_four_dimensions(c):
    c.linear("x", 4, 6)


@case((3, 20), None, others=2)
def convolutions_of_one_dimension(c):
    a = c("reshape", c.conv(c("reshape", "x", shape=(3, 1, 20)), 4, 3, (1, 3)), shape=(4, 18))
    b = c("reshape", c.conv(c("reshape", a, shape=(4, 1, 18)), 5, 4, (1, 3), stride=(1, 2)), shape=(5, 8))
    c("permute", b, dims=(0, 1, 2))


@case((6, 4, 5), ["STRIDED_SLICE"], ALL)
def slice_of_channels(c):
    c("slice", "x", dim=1, start=1, stop=None, step=2)


@case((6, 4, 5), ["STRIDED_SLICE"], ALL)
def slice_of_rows_from_the_end(c):
    c("slice", "x", dim=2, start=-3, stop=-1, step=1)


@case((6, 4, 5), [], ALL)
def slice_of_all(c):
    c("slice", "x", dim=-1, start=0, stop=100, step=1)


@case((2, 3, 4, 5), None, ALL)
def slice_of_four_sizes(c):
    c("slice", "x", dim=2, start=1, stop=3, step=1)


@case((6,), ["STRIDED_SLICE"], ALL)
def slice_of_a_vector(c):
    c("slice", "x", dim=1, start=0, stop=5, step=3)


@case((3, 4, 5), ["PAD"], ALL)
def padding_with_the_zero_point(c):
    c("pad", "x", padding=(1, 2, 0, 3), code=-7)


@case((3, 4, 5), ["PADV2"], ALL)
def padding_with_another_code(c):
    c("pad", "x", padding=(1, 0), code=55)


@case((3, 4, 5), ["PADV2"], ALL)
def padding_of_channels(c):
    c("pad", "x", padding=(0, 0, 0, 0, 1, 2), code=-128)


@case((3, 4, 5), ["STRIDED_SLICE", "PAD"], ALL)
def padding_that_crops(c):
    c("pad", "x", padding=(-1, 2, 1, -2), code=-7)


@case((3, 4), ["PAD"], ALL)
def padding_of_two_dimensions(c):
    c("pad", "x", padding=(1, 2), code=-7)


@case((2, 3, 4, 5), None, ALL)
def padding_of_four_sizes(c):
    c("pad", "x", padding=(1, 2, 0, 1), code=-7)


@case((3, 4, 5), None, ALL)
def stretch(c):
    c("stretch", "x", stride=(2, 3), extra=(0, 0))


@case((3, 4, 5), None, ALL)
def stretch_of_rows(c):
    c("stretch", "x", stride=(3, 1), extra=(1, 0))


@case((3, 4, 5), None, ALL)
def stretch_with_more(c):
    c("stretch", "x", stride=(2, 2), extra=(1, 4))


@case((3, 4, 5), None, ALL)
def stretch_of_nothing(c):
    c("stretch", "x", stride=(1, 1), extra=(1, 0))


@case((3, 4, 5), None)
def transposed_convolution(c):
    c.conv(c("stretch", "x", stride=(2, 2), extra=(1, 1)), 4, 3, (3, 3), padding=(1, 1))


@case((3, 13, 13), ["DEPTHWISE_CONV_2D"])
def windows_that_are_regular(c):
    c.windows("x", adaptive(13, 6), adaptive(13, 6))


@case((3, 10, 10), ["TRANSPOSE", "RESHAPE", "CONV_2D", "TRANSPOSE", "RESHAPE"])
def windows_uneven(c):
    c.windows("x", adaptive(10, 7), adaptive(10, 7))


@case((4, 2, 2), None)
def windows_that_repeat(c):
    c.windows("x", adaptive(2, 7), adaptive(2, 7), relu=True)


@case((3, 9, 8), None)
def windows_with_padding(c):
    c.windows("x", clipped(9, 3, 1, 1), clipped(8, 3, 1, 1))


@case((3, 9, 8), None)
def windows_with_padding_that_counts(c):
    c.windows("x", clipped(9, 3, 2, 1), clipped(8, 3, 2, 1), share=1 / 9)


@case((3, 5, 7), ["MAX_POOL_2D"], ALL)
def maximum_rounded_up(c):
    c("maxpool", "x", kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=True)


@case((3, 8, 8), None, ALL)
def maximum_rounded_up_with_padding(c):
    c("maxpool", "x", kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=True)


@case((3, 10, 6), ["PADV2", "MAX_POOL_2D"], ALL)
def maximum_rounded_up_at_one_side(c):
    c("maxpool", "x", kernel_size=(3, 2), stride=3, padding=0, dilation=1, ceil_mode=True)


@case((11,), ["SOFTMAX"])
def softmax(c):
    c.softmax("x")


@case((3, 4, 5), None)
def softmax_of_columns(c):
    c.softmax("x")


@case((5, 6), ["SOFTMAX"])
def softmax_of_two_dimensions(c):
    c.softmax("x")


@case((3, 4, 5), None, others=4)
def two_ways_and_a_tensor_read_thrice(c):
    a = c.conv("x", 4, 3, relu=True)
    b, t = c.conv(a, 4, 4, (3, 3), padding=(1, 1), groups=4), c.table(a, smooth=True)
    c.cat(c.add(a, b), c.mul(a, t), a, to=grid(0.1, 0))


@case((2, 3, 4, 5), None, others=2)
def product_of_four_sizes(c):
    c.mul("x", c("slice", "x", dim=2, start=0, stop=1, step=1))


@case((3, 4, 5), None, others=2)
def sum_of_a_map_and_its_transposed(c):
    c.add(c("permute", "x", dims=(0, 3, 2, 1)), c("reshape", "x", shape=(5, 4, 3)))


@pytest.mark.parametrize("name", CASES)
def test_a_step(name, tmp_path):
    build, shape, operators, exact, others = CASES[name]
    chain = Chain()
    build(chain)
    found, written = differences(chain, shape, tmp_path)
    print(name, found, written)
    assert operators is None or written == operators
    assert all(largest <= (0 if kernels in exact else others) for kernels, largest in found.items()), found


def factors(count, parts, rng):
    """Random sizes whose product is count."""
    sizes = [1] * parts
    for prime in (2, 3, 5, 7, 11, 13):
        while count % prime == 0:
            sizes[int(rng.integers(parts))] *= prime
            count //= prime
    return tuple([*sizes[:-1], sizes[-1] * count])


def random_moves(rng):
    """A chain of steps that move codes and look them up, which every runtime does exactly; and its image's shape."""
    shape = first = tuple(int(n) for n in rng.integers(1, 7, rng.integers(1, 5)))
    chain, name = Chain(grid(0.07, int(rng.integers(-128, 128)))), "x"
    for _ in range(rng.integers(1, 7)):
        kind = rng.choice(["reshape", "permute", "slice", "pad", "stretch", "flatten", "relu", "table", "cat", "relu6", "maxpool"])
        dim = int(rng.integers(len(shape))) + 1
        if kind == "reshape":
            shape = factors(math.prod(shape), int(rng.integers(1, 6)), rng)
            name = chain("reshape", name, shape=shape)
        elif kind == "flatten":
            shape = (*shape[:dim - 1], math.prod(shape[dim - 1:]))
            name = chain("flatten", name, start_dim=dim, end_dim=-1)
        elif kind == "permute":
            order = [int(d) for d in rng.permutation(len(shape))]
            shape, name = tuple(shape[d] for d in order), chain("permute", name, dims=(0, *(d + 1 for d in order)))
        elif kind == "slice":
            start, step = int(rng.integers(0, shape[dim - 1])), int(rng.integers(1, 4))
            shape = tuple(len(range(start, size, step)) if d == dim - 1 else size for d, size in enumerate(shape))
            name = chain("slice", name, dim=dim, start=start, stop=None, step=step)
        elif kind == "pad" and math.prod(shape) < 3000:
            padding = tuple(int(p) for p in rng.integers(0, 3, 2 * min(len(shape), int(rng.integers(1, 3)))))
            shape = tuple(size + sum(padding[2 * (len(shape) - 1 - d):][:2]) for d, size in enumerate(shape))
            name = chain("pad", name, padding=padding, code=int(rng.integers(-128, 128)))
        elif kind == "stretch" and len(shape) == 3 and math.prod(shape) < 3000:
            stride, extra = (tuple(int(n) for n in rng.integers(low, 4, 2)) for low in (1, 0))
            shape = (shape[0], *((size - 1) * s + 1 + e for size, s, e in zip(shape[1:], stride, extra)))
            name = chain("stretch", name, stride=stride, extra=extra)
        elif kind == "maxpool" and len(shape) == 3:
            kernel, stride = (tuple(int(n) for n in rng.integers(1, 1 + np.minimum(3, shape[1:]))) for _ in range(2))
            options = {"kernel_size": kernel, "stride": stride, "padding": tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)}
            name = chain("maxpool", name, **options, dilation=1, ceil_mode=bool(rng.integers(2)))
            shape = None
        elif kind == "cat" and math.prod(shape) < 3000:
            name = chain.cat(name, name, dim=dim)
            shape = tuple(2 * size if d == dim - 1 else size for d, size in enumerate(shape))
        elif kind in ("relu", "table", "relu6"):
            name = chain(kind, name) if kind == "relu" else getattr(chain, kind)(name)
        network = chain.network() if chain.steps else None
        if shape is None:
            shape = tuple(network.run(torch.zeros(1, *first, dtype=torch.int8)).shape[1:])
    return network, first


@pytest.mark.parametrize("seed", range(80))
def test_random_moves_are_exact_in_every_runtime(seed, tmp_path):
    network, shape = random_moves(np.random.default_rng(seed))
    if network is not None:
        found, _ = differences(network, shape, tmp_path, n=3)
        assert set(found.values()) == {0}


def random_arithmetic(rng):
    """A step of new codes, of scales over some decades; and its image's shape."""
    def any_grid(near, within):
        return grid(near * 10 ** rng.uniform(-within, 1), int(rng.choice([-128, 0, 127, rng.integers(-128, 128)])))

    into, kind = any_grid(10 ** rng.uniform(-3, 3), 0), rng.choice(["mul", "mul pixel", "add pixel", "cat", "windows", "softmax", "relu6"])
    chain, shape = Chain(into), tuple(int(n) for n in rng.integers(1, 8, 3))
    first = chain("slice", "x", dim=3, start=0, stop=1, step=1)
    if kind.startswith("mul"):
        to = any_grid(into.scale**2 * 100, 3)
        chain.mul(*(["x", "x"] if kind == "mul" else ["x", first] if rng.integers(2) else [first, "x"]), to=to, relu=bool(rng.integers(2)))
    elif kind == "add pixel":
        chain.add(*(["x", first] if rng.integers(2) else [first, "x"]), to=any_grid(into.scale, 3))
    elif kind == "cat":
        chain.cat("x", first, dim=3, to=any_grid(into.scale, 8))
    elif kind == "windows":
        sides = []
        for size in shape[1:]:
            starts = [int(s) for s in np.sort(rng.integers(0, size, rng.integers(1, 6)))]
            sides.append([(s, int(rng.integers(s + 1, size + 1))) for s in starts])
        chain.windows("x", *sides, to=any_grid(into.scale, 2), relu=bool(rng.integers(2)))
    else:
        getattr(chain, kind)("x")
    return chain.network(), shape


@pytest.mark.skipif(NO_MICRO, reason="tflite-micro is not installed: pip install qlab[deploy] (Linux on x86-64 alone)")
def test_random_arithmetic_runs_in_all_or_is_refused(tmp_path):
    written = refused = 0
    for seed in range(150):
        try:
            network, shape = random_arithmetic(np.random.default_rng(seed))
        except ValueError:  # scales too far apart for a multiplier
            continue
        try:
            found, _ = differences(network, shape, tmp_path)
        except ValueError as error:
            assert network.steps[-1].name in str(error) and str(error).endswith("."), error
            refused += 1
            continue
        written += 1
        assert all(largest <= (kernels != "micro") for kernels, largest in found.items()), (seed, found, network)
    assert written > 90 and refused > 5


# What is refused


def refused(build, shape, match, tmp_path):
    chain = Chain()
    build(chain)
    with pytest.raises(ValueError, match=match) as refusal:
        tflite.export(chain.network(), tmp_path / "net.tflite", shape)
    assert str(refusal.value).endswith(".") and not list(tmp_path.iterdir())


ONE = {"real": [1.0]}
REFUSED = {
    "a product of another multiplier": (lambda c: c("mul", "x", "x", to=grid(1), **ONE), (4,), "mul0 has other multipliers than its"),
    "a product too large for its codes": (lambda c: c.mul("x", "x", to=grid(0.05**2 / 2)), (4,), "mul0 may reach .* hold that in 16 bits"),
    "a cat of another multiplier": (lambda c: c("cat", "x", to=grid(1), dim=1, **ONE), (4,), "cat0 has other multipliers than its"),
    "a cat too large for its codes": (lambda c: c.cat("x", to=grid(1e-9)), (4,), "cat0 multiplies the codes of x by 5e.07, and QUANTIZE"),
    "a cat that clamps at 6.0": (lambda c: c.cat("x", to=replace(grid(0.06, -128), high=-28)), (4,), "cat0 clamps at the code of 6.0"),
    "a ReLU6 that clamps elsewhere": (lambda c: c("relu6", "x", high=100), (4,), "relu60 clamps at the code 100, and .* here 113"),
    "a softmax of another multiplier": (lambda c: c("softmax", "x", to=PROBABILITY, **ONE), (4,), "softmax0 has other multipliers"),
    "a softmax of other codes": (lambda c: c("softmax", "x", to=grid(1), **ONE), (4,), "softmax0 gives probabilities as Grid.*SOFTMAX"),
    "a softmax of many classes": (lambda c: c.softmax("x"), (512,), "x has 512 classes, and SOFTMAX takes less than 512"),
    "the batch elsewhere": (lambda c: c("permute", "x", dims=(1, 0)), (1,), "permute0 puts the batch at another place, dims=.1, 0."),
    "the batch in part": (lambda c: c("slice", "x", dim=0, start=0, stop=1, step=1), (4,), "slice0 takes some images of a batch, and"),
    "the batch flattened": (lambda c: c("flatten", "x", start_dim=0, end_dim=-1), (4, 2), "flatten0 gives .8,. for one image, and must"),
    "nothing left": (lambda c: c("slice", "x", dim=1, start=4, stop=4, step=1), (4,), "slice0 gives .1, 0. for one image, and must"),
    "padding of many dimensions": (lambda c: c("pad", "x", padding=(1,) * 6, code=0), (2, 2, 2, 2), "pad0 pads 3 of 4 dimensions, and"),
    "terms of other ranks": (lambda c: c.add("x", c("reshape", "x", shape=(4, 1))), (4,), r"add1 combines tensors of the shapes .4,. and"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_refused_by_name(name, tmp_path):
    refused(*REFUSED[name], tmp_path)


def test_a_relu6_of_tiny_codes_is_refused(tmp_path):
    chain = Chain(grid(5e-9))
    chain("relu6", "x", high=127)
    with pytest.raises(ValueError, match="relu60 reads codes of the scale 5e-09, and RELU6 takes one above 5.6e-09"):
        tflite.export(chain.network(), tmp_path / "net.tflite", (4,))


def test_names_that_are_taken_get_a_number(tmp_path):
    """Each constant can be told from the others."""
    chain = Chain()
    chain.linear(chain.linear("x", 3, 4), 2, 3)
    network = chain.network()
    network = replace(network, steps=tuple(replace(step, name="twin") for step in network.steps))
    tflite.export(network, tmp_path / "net.tflite", (4,))
    assert set(tflite.constants(tmp_path / "net.tflite")) == {"twin weight", "twin bias", "twin weight 2", "twin bias 2"}


# Whole networks, from float32


class Excited(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.hardswish(self.conv(x))
        x = x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return torch.softmax(self.last(x.mean((2, 3))), 1)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        kept, changed = F.relu(self.first(x)).chunk(2, dim=1)
        x = torch.cat((kept, F.silu(self.second(changed))), 1)
        n, channels, rows, columns = x.size()
        x = x.view(n, 2, channels // 2, rows, columns).transpose(1, 2).contiguous().view(n, -1, rows, columns)
        return self.last(x.mean([2, 3]))


NETWORKS = {
    "squeeze and excitation": (Excited, (3, 8, 8)),
    "channel shuffle": (Shuffled, (3, 8, 8)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3),
                                            nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3)), (3, 30)),
    "autoencoder": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), nn.Sigmoid()),
                    (1, 8, 8)),
    "vectors": (lambda: nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 20)), (20,)),
    "uneven pooling": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.LeakyReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, 2, 1),
                                             nn.AdaptiveAvgPool2d((7, 2)), nn.Flatten(), nn.Linear(84, 4)), (3, 13, 13)),
    "tokens": (lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(48, 3)),
               (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_from_elsewhere(name, tmp_path):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = integer.convert(ptq.quantize(make().eval(), torch.randn(40, *shape)), shape)
    found, _ = differences(network, shape, tmp_path, n=40)
    assert found.pop("micro", 0) == 0 and max(found.values()) <= 3
    about, images = files.read_description(tmp_path / "net.tflite"), torch.randn(3, *shape)
    logits = tflite.run(tmp_path / "net.tflite", images, KERNELS[-1])
    assert about.input.shape == shape and logits.shape[1:] == about.output.shape
    assert KERNELS[-1] != "micro" or torch.equal(logits, network.decode(network(images)))
