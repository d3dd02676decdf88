"""Steps of other people's networks in a .tflite file: made by hand, in four runtimes, against the integers of NumPy."""

import importlib.util
import math

import numpy as np
import pytest
import step_reference
import torch

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install qlab[deploy]")

from qlab.deploy import tflite  # noqa: E402
from qlab.nets import integer  # noqa: E402
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
