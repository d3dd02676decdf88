"""The C file against the integer-only network, bit for bit: on this machine, under its sanitizers, and on a Cortex-M in QEMU."""

import ctypes
import re
import shutil
import signal
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from c_library import one_program
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qlab.deploy import arena, c, c_source, cortex_m, files, tflite
from qlab.lab import data, zoo
from qlab.nets import integer, ptq
from qlab.nets.integer import Grid, IntegerNetwork, Step
from qlab.quant import linear

pytestmark = [pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason=c.NO_COMPILER),
              pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")]
TEST = data.load("test").images
needs_arm = pytest.mark.skipif(cortex_m.missing() is not None, reason=str(cortex_m.missing()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def exported(folder):
    """The zoo's networks, each with its path, exported once."""
    made, images = {}, data.calibration(128).images

    def make(name):
        if name not in made:
            network = integer.convert(ptq.quantize(zoo.load(name), images))
            c.export(network, folder / f"{name}.c")
            made[name] = network, folder / f"{name}.c"
        return made[name]

    return make


def codes_of(shape, n=8, seed=0):
    """Images of codes, the first of them at the ends of the range."""
    codes = torch.randint(-128, 128, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    codes[0], codes[1] = -128, 127
    return codes


def network_of(net, shape, **options):
    torch.manual_seed(0)
    net = net()
    return integer.convert(ptq.quantize(net, torch.randn(64, *shape), **options), shape)


# The arithmetic


@pytest.fixture(scope="module")
def scaled(folder):
    """The kernels' multiplication, as a function of arrays."""
    source = folder / "scaled.c"
    kernel = (c_source.KERNELS / "requantize.c").read_text()
    signature = "void many(const int32_t *a, const int32_t *m, const int32_t *n, int32_t *y, int k)"
    source.write_text(f"#include <stdint.h>\n{kernel}\n{signature};\n{signature}\n{{\n    for (int i = 0; i < k; i++) {{\n"
                      "        y[i] = scaled(a[i], m[i], n[i]);\n    }\n}\n")
    c.compile_c([source], folder / "scaled.so", "-O2", "-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    many = ctypes.CDLL(str(folder / "scaled.so")).many

    def call(a, m, n):
        arrays = [np.ascontiguousarray(v, dtype=np.int32) for v in np.broadcast_arrays(a, m, n)]
        y = np.zeros_like(arrays[0])
        many(*(ctypes.c_void_p(v.ctypes.data) for v in (*arrays, y)), y.size)
        return y

    return call


EDGES = [-2**31, -2**31 + 1, -2**30 - 1, -2**30, -3, -2, -1, 0, 1, 2, 3, 2**30 - 1, 2**30, 2**31 - 1]


def test_scaled_is_multiply_at_the_edges(scaled):
    a, m, n = np.meshgrid(EDGES, [0, 2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1], range(-31, 31), indexing="ij")
    ours = integer.multiply(*(torch.from_numpy(v.astype(np.int32)) for v in (a, m, n)))
    np.testing.assert_array_equal(scaled(a, m, n), ours.numpy())


@given(st.lists(st.tuples(st.integers(-2**31, 2**31 - 1), st.integers(2**30, 2**31 - 1), st.integers(-31, 30)), min_size=1))
def test_scaled_is_multiply(scaled, triples):
    a, m, n = np.array(triples).T
    ours = integer.multiply(*(torch.from_numpy(v.astype(np.int32)) for v in (a, m, n)))
    np.testing.assert_array_equal(scaled(a, m, n), ours.numpy())


# Whole networks on this machine


@pytest.mark.parametrize("name, images", [("cnn", 200), ("depthwise", 200), ("resnet", 30), ("lenet300", 200), ("lenet5", 200)])
def test_the_zoo_is_bit_for_bit_the_integer_network(name, images, exported):
    network, path = exported(name)
    codes = network.encode(TEST[:images])
    expected = network.run(codes)
    assert torch.equal(c.run(path, codes), expected)
    assert torch.equal(c.run(path, TEST[:20]), network.decode(expected[:20]))                # floats in, logits out
    assert expected.unique().numel() > 50


class Odd(nn.Module):
    """A layer that runs twice, one without bias, sums, a mean of windows, dilation, groups, ReLUs that follow no layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(6, 10, 3, padding=2, dilation=2, groups=2)
        self.mean, self.last = nn.AvgPool2d((2, 3), stride=1), nn.Linear(10 * 2 * 2, 3)

    def forward(self, patch):
        x = F.relu(self.first(patch))
        y = self.twice(x) + self.twice(torch.relu(x))
        y = self.grouped(F.max_pool2d(F.relu(y + x), 2).relu())
        return self.last(torch.flatten(self.mean(y), 1))


class FlattenedSum(nn.Module):
    """A sum of two flattened maps, and all that may follow it where it is the output."""

    def __init__(self, *after):
        super().__init__()
        self.a, self.b, self.after = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Sequential(*after)

    def forward(self, x):
        return self.after(self.a(x).flatten(1) + self.b(x).flatten(1))


class FlatSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(16, 12)

    def forward(self, patch):
        return torch.flatten(self.conv(patch), 1) + self.fc(torch.flatten(patch, 1))


def seq(*layers):
    return lambda: nn.Sequential(*(layer() for layer in layers))


def conv(*args, **options):
    return lambda: nn.Conv2d(*args, **options)


def pool(*args, **options):
    return lambda: nn.MaxPool2d(*args, **options)


SMALL = {
    "odd": (Odd, (3, 11, 17)),
    "vector": (seq(lambda: nn.Linear(7, 9), nn.ReLU, lambda: nn.Linear(9, 3, bias=False)), (7,)),
    "map out": (conv(2, 5, 3, stride=(2, 1), padding=(0, 2)), (2, 6, 5)),
    "flat out": (seq(conv(2, 5, 3), nn.ReLU, nn.Flatten), (2, 6, 5)),
    "flat ReLU out": (seq(conv(3, 4, 1), nn.Flatten, nn.ReLU), (3, 4, 4)),
    "flat second ReLU out": (seq(conv(3, 4, 1), nn.ReLU, nn.Flatten, nn.ReLU, nn.ReLU, nn.Flatten), (3, 3, 5)),
    "flat ReLU of the image": (seq(nn.Flatten, nn.ReLU), (3, 2, 4)),
    "flat pooling out": (seq(lambda: nn.MaxPool2d(2), nn.Flatten, nn.ReLU), (3, 4, 6)),
    "flat mean out": (seq(lambda: nn.AvgPool2d(2), nn.Flatten, nn.ReLU), (3, 4, 6)),
    "flat sum out": (FlattenedSum, (1, 2, 2)),
    "flat sum, ReLU out": (lambda: FlattenedSum(nn.ReLU()), (1, 3, 2)),
    "flat sum, two ReLUs out": (lambda: FlattenedSum(nn.ReLU(), nn.ReLU()), (1, 3, 2)),
    "flat sum of two orders": (FlatSum, (1, 4, 4)),
    "fully connected map": (seq(conv(2, 3, 1), lambda: nn.Linear(5, 4), nn.ReLU), (2, 3, 5)),
    "flat twice": (seq(conv(2, 5, 3), nn.Flatten, nn.ReLU, nn.Flatten, lambda: nn.Linear(60, 4)), (2, 6, 5)),
    "depthwise": (seq(conv(7, 7, (3, 2), groups=7, padding=(2, 1), dilation=(2, 1), stride=2), nn.ReLU), (7, 9, 6)),
    "two for each": (conv(3, 6, 3, groups=3, padding=1), (3, 5, 4)),
    "wide padding": (seq(conv(2, 4, 1, padding=2), conv(4, 4, 3, padding=4, groups=4)), (2, 3, 3)),
    "same": (conv(2, 4, (4, 3), padding="same", dilation=(1, 2)), (2, 7, 6)),
    "valid": (conv(4, 8, 1, padding="valid"), (4, 3, 3)),
    "pooling": (seq(pool(3, stride=2, padding=1, ceil_mode=True), pool((2, 3), stride=(1, 2), dilation=(2, 1)), conv(5, 2, 1)),
                (5, 12, 13)),
    "means": (seq(lambda: nn.AdaptiveAvgPool2d((2, 3)), conv(4, 4, 1), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten), (4, 6, 9)),
    "no layer": (seq(lambda: nn.AvgPool2d(2)), (3, 4, 4)),
}


@pytest.mark.parametrize("name, bits", [(name, (8, 3)[i % 2]) for i, name in enumerate(SMALL)])
def test_small_networks_agree(name, bits, tmp_path):
    """Each a file of its own, without a warning: with what it needs, and nothing else. All of them at 8 bits: under the sanitizers."""
    net, shape = SMALL[name]
    network = network_of(net, shape, activation_bits=bits)
    c.export(network, tmp_path / "net.c", image_shape=shape)
    codes = codes_of(shape)
    expected = network.run(codes)
    assert torch.equal(c.run(tmp_path / "net.c", codes), expected) and expected.unique().numel() > 2


def test_a_clamp_at_6_and_multipliers_above_1(tmp_path):
    """What convert does not make: ReLU6 as a clamp at the code of 6.0, and n > 0, whose shift to the left saturates."""
    torch.manual_seed(0)
    grids = Grid(0.1, -20, -128, 127), Grid(0.05, -128, -128, -128 + 120)
    weight = torch.randint(-127, 128, (9, 5), dtype=torch.int8)
    bias = torch.tensor([2**30, 2**26, 2**14, 2**9, 2**7, 2**5, 2**3, 0, 2**29], dtype=torch.int32)
    m, n = integer.multiplier([2.0**k for k in (-23, -20, -8, -3, 0, 1, 5, 20, 29)])
    step = Step("linear", "fc", ("x",), "y", grids, relu=True, weight=weight, bias=bias, m=m, n=n)
    network = IntegerNetwork((step,), "x", "y", *grids)
    c.export(network, tmp_path / "net.c", image_shape=(5,))
    codes = codes_of((5,), 50)
    # torch adds the zero-point to a sum at the end of int32, which then wraps; away from that end the two agree
    expected, products = network.run(codes), integer.multiply((codes.int() + 20) @ weight.T.int() + bias, m, n)
    inside = products.abs() < 2**31 - 256
    ours = c.run(tmp_path / "net.c", codes)
    assert torch.equal(ours[inside], expected[inside]) and inside.float().mean() > 0.3
    assert torch.equal(ours, (products.long() - 128).clamp(-128, -8).to(torch.int8)) and ours.max() == -8 and ours.unique().numel() > 3


def test_shared_weights_are_stored_once(tmp_path):
    network = network_of(Odd, (3, 11, 17))
    about = c.export(network, tmp_path / "odd.c", image_shape=(3, 11, 17))
    text = (tmp_path / "odd.c").read_text()
    assert c.weight_bytes(about) == sum(p.numel() for name, p in Odd().named_parameters() if "weight" in name)
    assert text.count("[324] = {") == 1 and text.count(".weight = twice_weight") == 2       # 6 x 6 x 3 x 3


# What the file is


def test_the_arena_is_as_small_as_any_plan_allows(exported):
    for name, ceiling in (("cnn", 31360), ("depthwise", 31360), ("resnet", 43904), ("lenet300", 400), ("lenet5", 14400)):
        network, path = exported(name)
        about = c.describe(path)
        needed = max(sum(entry["bytes"] for entry in layer["memory"]) for layer in about.layers)
        assert c.arena_bytes(about) == needed == ceiling                                    # two maps in sequence; the resnet's three
        assert f"_ARENA {ceiling} " in path.with_suffix(".h").read_text()


lives = st.tuples(st.integers(1, 60), st.integers(0, 7), st.integers(0, 4))


@given(st.lists(lives, max_size=9), st.sampled_from([1, 4, 16]))
def test_a_plan_keeps_apart_what_lives_together(sizes, align):
    tensors = [arena.Tensor(str(i), size, first, first + more) for i, (size, first, more) in enumerate(sizes)]
    addresses, total = arena.plan(tensors, align)
    taken = {t: set(range(addresses[t.name], addresses[t.name] + t.size)) for t in tensors}
    steps = [[taken[t] for t in tensors if t.first <= step <= t.last] for step in range(12)]
    assert all(sum(map(len, alive)) == len(set().union(*alive)) for alive in steps)
    assert all(a % align == 0 for a in addresses.values()) and total >= arena.lower_bound(tensors)
    assert total == max((addresses[t.name] + t.size for t in tensors), default=0)
    assert arena.lower_bound(tensors) == max((sum(map(len, alive)) for alive in steps), default=0)


def test_the_file_needs_nothing_and_shows_two_names(exported, folder):
    _, path = exported("resnet")
    c.compile_c([path], folder / "resnet.o", "-O2", "-c")
    symbols = subprocess.run(["nm", folder / "resnet.o"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r" U (\w+)", symbols)) <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}
    assert re.findall(r" T (\w+)", symbols) == ["resnet_argmax", "resnet_run"]
    assert not re.search(r"\b(float|double|malloc|calloc|free)\b", path.read_text())
    assert re.findall(r'#include (\S+)', path.read_text()) == ['"resnet.h"', "<string.h>", "<arm_acle.h>"]


@pytest.mark.parametrize("option", ["-O0", "-Os", "-O3"])
def test_no_warnings_at_any_optimization(option, exported, folder):
    for name in ("cnn", "depthwise", "resnet"):
        c.compile_c([exported(name)[1]], folder / "any.o", option, "-c", "-Wconversion", "-Wshadow", "-Wundef")


def test_the_description_says_what_is_inside(exported):
    network, path = exported("depthwise")
    about = c.describe(path)
    assert (about.format, about.network, about.input.shape, about.output.shape) == ("C99", "depthwise", (1, 28, 28), (10,))
    assert (about.input.scale, about.output.zero_point) == (network.grid_in.scale, network.grid_out.zero_point)
    assert c.weight_bytes(about) == sum(s.weight.numel() for s in network.steps if s.weight is not None) == 69952
    by_name = {layer["name"]: layer for layer in about.layers}
    assert by_name["block1_depthwise"]["about"] == "depthwise convolution 3 x 3, stride 2, padding 1, ReLU"
    assert by_name["block1_depthwise"]["products"] == 9 * 14 * 14 * 32
    comment = "/* block1_depthwise: depthwise convolution 3 x 3, stride 2, padding 1, ReLU; 28 x 28 x 32 -> 14 x 14 x 32; 56448 products */"
    assert comment in path.read_text()
    assert about.nbytes == path.stat().st_size


MAIN = """#include <stdio.h>
{includes}
int main(void)
{{
    static int8_t image[784], logits[10];
    while (fread(image, 1, 784, stdin) == 784) {{
        {calls}
    }}
    return 0;
}}
"""
CALL = 'NAME_run(image, logits); printf("%d ", (int)NAME_argmax(logits)); for (int i = 0; i < 10; i++) { printf("%d ", logits[i]); }'


def run_main(folder, paths, codes, *options):
    """The program of one main with these networks: for each image and network the class, then ten codes."""
    names = [path.stem for path in paths]
    main = folder / "main.c"
    includes, calls = (" \n".join(text.replace("NAME", name) for name in names) for text in ('#include "NAME.h"', CALL))
    main.write_text(MAIN.format(includes=includes, calls=calls))
    c.compile_c([main, *paths], folder / "main", "-g", *options)
    done = subprocess.run([folder / "main"], input=codes.numpy().tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return torch.tensor(list(map(int, done.stdout.split()))).view(len(codes), len(names), 11)


def first_largest(codes):
    return torch.from_numpy(np.argmax(codes.numpy(), 1))                                    # numpy promises the first


def test_two_networks_in_one_program_under_the_sanitizers(exported, folder):
    """Addresses, alignment, overflow, shifts: nothing that C leaves undefined happens, on images and on the ends of the range."""
    pairs = [exported(name) for name in ("cnn", "depthwise", "resnet", "lenet5")]
    codes = torch.cat([codes_of((1, 28, 28), 4), pairs[0][0].encode(TEST[:2])])
    found = run_main(folder, [path for _, path in pairs], codes, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for (network, _), rows in zip(pairs, found.unbind(1)):
        expected = network.run(codes)
        assert torch.equal(rows[:, 1:].to(torch.int8), expected) and torch.equal(rows[:, 0], first_largest(expected))


def test_small_networks_under_the_sanitizers(tmp_path):
    """Every kernel with odd sizes, the pool's padding, groups, dilation; each network of SMALL in a process of its own."""
    networks = {name: (network_of(net, shape), shape) for name, (net, shape) in SMALL.items()}
    run = one_program(networks, tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for name, (network, shape) in networks.items():
        codes = codes_of(shape)
        assert torch.equal(run(name, codes), network.run(codes)), name


# Bad input


@pytest.fixture
def tiny():
    return network_of(seq(conv(1, 4, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(16, 2)), (1, 4, 4))


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def with_step(network, **changes):
    step = Step(**{"kind": "sorting", "name": "ranks", "inputs": (network.output,), "output": "r",
                   "grids": (network.grid_out,) * 2} | changes)
    return IntegerNetwork((*network.steps, step), network.input, step.output, network.grid_in, network.grid_out)


PART = {"dim": 1, "start": 0, "stop": 2, "step": 1}


@pytest.mark.parametrize("change, message", [
    (lambda net: {"network": nn.Linear(2, 2)}, "network is a Linear, and must be an IntegerNetwork"),
    (lambda net: {"network": with_step(net)}, "ranks is a sorting, and C has add, cat, conv, flatten, linear, "),
    (lambda net: {"image_shape": (1, -1, 4)}, r"image_shape is \(1, -1, 4\), and must be .* fixed and positive"),
    (lambda net: {"image_shape": (1, None, 4)}, "fixed and positive"),
    (lambda net: {"image_shape": (4, 4)}, r"image_shape is \(4, 4\), which _0 cannot take"),
    (lambda net: {"image_shape": (1, 1, 4, 4)}, "image_shape is .* and must be"),
    (lambda net: {"network": with_step(net, kind="slice", options=PART | {"dim": -2})}, "ranks is a slice with dim -2, and must"),
    (lambda net: {"network": with_step(net, kind="slice", options=PART | {"start": 2})},
     r"ranks then gives values of the shape \(0,\)"),
    (lambda net: {"network": with_step(net, kind="permute", options={"dims": (1, 0)})}, r"ranks is a permute with dims \(1, 0\)"),
    (lambda net: {"network": with_step(net, kind="cat", options={"dim": 0}, m=net.steps[0].m[:1], n=net.steps[0].n[:1])},
     "ranks is a cat with dim 0"),
    (lambda net: {"image_shape": (1, 5, 5)}, r"image_shape is \(1, 5, 5\), which _3 cannot take"),
    (lambda net: {"name": "2net"}, "name is '2net', and must be a C name"),
    (lambda net: {"name": "net-2"}, "must be a C name"),
    (lambda net: {"path": "net.txt"}, "must end in .c"),
    (lambda net: {"network": with_step(net, kind="flatten", options={"start_dim": 0, "end_dim": -1})},
     "ranks is a flatten with start_dim 0, and must leave the first dimension as it is"),
    (lambda net: {"network": IntegerNetwork((), "x", "x", net.grid_in, net.grid_in)}, "computes nothing"),
])
def test_export_refuses(change, message, tiny, tmp_path):
    arguments = {"network": tiny, "path": "net.c", "image_shape": (1, 4, 4)} | change(tiny)
    with pytest.raises((TypeError, ValueError), match=message):
        c.export(**arguments | {"path": tmp_path / arguments["path"]})
    assert leftovers(tmp_path) == []


def test_nothing_is_half_written(tiny, tmp_path):
    """A full disk, a folder that is not there, one that stands in the way; what was there before stays."""
    resource, path = pytest.importorskip("resource"), tmp_path / "net.c"
    c.export(tiny, path, image_shape=(1, 4, 4))
    before = {name: (tmp_path / name).read_bytes() for name in leftovers(tmp_path)}
    assert list(before) == ["net.c", "net.c.json", "net.h"]
    kept, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 2500):                                                               # room for no file; for the header alone
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError, match="cannot write .*net"):
                c.export(tiny, path, image_shape=(1, 4, 4), name="other")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, kept)
    assert {name: (tmp_path / name).read_bytes() for name in leftovers(tmp_path)} == before
    with pytest.raises(OSError, match="cannot write .*: name a place"):
        c.export(tiny, tmp_path / "nowhere" / "net.c", image_shape=(1, 4, 4))
    for blocked in ("a.c", "b.h"):
        (tmp_path / blocked).mkdir()
        with pytest.raises(OSError, match=f"cannot write .*{blocked}"):
            c.export(tiny, (tmp_path / blocked).with_suffix(".c"), image_shape=(1, 4, 4))
    assert leftovers(tmp_path) == ["a.c", "b.h", *before]


def test_run_refuses(tiny, tmp_path, monkeypatch):
    path = tmp_path / "net.c"
    c.export(tiny, path, image_shape=(1, 4, 4))
    for x, error, message in (
        (torch.zeros(2, 1, 5, 4), ValueError, r"x has the shape \(2, 1, 5, 4\), and must have \(n, 1, 4, 4\)"),
        (torch.zeros(1, 4, 4), ValueError, "must have"), (torch.zeros(2, 1, 4, 4, dtype=torch.int32), TypeError, "x is torch.int32"),
        ([[1.0]], TypeError, "x is list"),
    ):
        with pytest.raises(error, match=message):
            c.run(path, x)
    assert c.run(path, torch.zeros(0, 1, 4, 4)).shape == (0, 2)
    other = tmp_path / "other.c"
    with pytest.raises(FileNotFoundError, match="there is no .*other.c"):
        c.run(other, torch.zeros(1, 1, 4, 4))
    c.export(network_of(SMALL["vector"][0], (7,)), other, image_shape=(7,), name="net")
    shutil.copy(tmp_path / "other.h", tmp_path / "net.h")
    c._library.cache_clear()
    with pytest.raises(ValueError, match="cannot be compiled .*net.h was written for another network"):
        c.run(path, torch.zeros(1, 1, 4, 4))
    text = path.read_text()
    path.write_text(text.replace("int32_t scaled(", "int32_t Scaled("))
    with pytest.raises(ValueError, match="net.c is damaged"):
        c.run(path, torch.zeros(1, 1, 4, 4))
    path.write_text(text)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    c._library.cache_clear()
    with pytest.raises(FileNotFoundError, match="there is no C compiler here: install gcc"):
        c.run(path, torch.zeros(1, 1, 4, 4))
    with pytest.raises(FileNotFoundError, match="no arm-none-eabi-gcc and no qemu-system-arm here: apt-get install gcc-arm-none-eabi"):
        cortex_m.measure(path)
    with pytest.raises(ValueError, match="cpu is 'cortex-m0', and must be one of cortex-m3, cortex-m4, cortex-m7"):
        cortex_m.run(path, torch.zeros(1, 1, 4, 4), cpu="cortex-m0")


# On a Cortex-M


@needs_arm
@pytest.mark.parametrize("name, cpu, images", [
    ("depthwise", "cortex-m4", 40), ("cnn", "cortex-m4", 40), ("resnet", "cortex-m4", 5), ("lenet5", "cortex-m4", 20),
    ("depthwise", "cortex-m3", 10), ("cnn", "cortex-m7", 10),
])
def test_the_zoo_on_a_cortex_m_is_bit_for_bit_the_integer_network(name, cpu, images, exported):
    network, path = exported(name)
    codes = network.encode(TEST[:images])
    assert torch.equal(cortex_m.run(path, codes, cpu), network.run(codes))


@needs_arm
@pytest.mark.parametrize("name, cpu", [
    *((name, "cortex-m4") for name in SMALL), *((name, "cortex-m3") for name in ("odd", "depthwise", "pooling", "flat sum of two orders")),
])
def test_small_networks_agree_with_and_without_dsp_instructions(name, cpu, tmp_path):
    """Without, the C is what runs on this machine too; a few networks are enough there."""
    net, shape = SMALL[name]
    network = network_of(net, shape)
    c.export(network, tmp_path / "net.c", image_shape=shape)
    codes = codes_of(shape)
    assert torch.equal(cortex_m.run(tmp_path / "net.c", codes, cpu), network.run(codes))


@needs_arm
def test_the_compiler_takes_dsp_instructions_where_there_are_any(exported, folder):
    def instructions(cpu):
        program = cortex_m.build(exported("depthwise")[1], folder / f"{cpu}.elf", cpu)
        return subprocess.run(["arm-none-eabi-objdump", "-d", program], capture_output=True, text=True, check=True).stdout

    with_dsp, without = instructions("cortex-m4"), instructions("cortex-m3")
    for name in ("smlad", "sxtb16", "sxtab16", "smlabb", "smlatt"):
        assert name in with_dsp and name not in without


@needs_arm
@pytest.mark.parametrize("optimize", ["-O0", "-Os", "-O3"])
def test_no_warnings_for_a_cortex_m_at_any_optimization(optimize, exported, folder):
    for name in ("cnn", "depthwise", "resnet"):
        cortex_m.build(exported(name)[1], folder / "any.elf", optimize=optimize)


@needs_arm
def test_flash_ram_and_instructions(exported, folder):
    network, path = exported("depthwise")
    found, program, binary = cortex_m.measure(path, TEST[:1]), cortex_m.build(path, folder / "depthwise.elf"), folder / "flash.bin"
    subprocess.run(["arm-none-eabi-objcopy", "-O", "binary", program, binary], check=True)
    assert found["flash_bytes"] == binary.stat().st_size                                    # what would be burnt into the chip
    assert found["flash_bytes"] <= 1.15 * found["weight_bytes"] + 20 * 1024
    assert found["code_bytes"] + found["constant_bytes"] == found["network_flash_bytes"] < found["flash_bytes"]
    assert 100 < found["stack_bytes"] < 600
    ram = found["arena_bytes"] + 784 + 10 + found["stack_bytes"]
    assert ram <= found["ram_bytes"] <= ram + 16                                            # nothing else but padding
    assert found["products"] == 4608064 and 1 < found["instructions"] / found["products"] < 8


@needs_arm
def test_dsp_instructions_make_it_three_times_shorter(exported):
    counts = {cpu: cortex_m.measure(exported("cnn")[1], cpu=cpu)["instructions"] for cpu in ("cortex-m3", "cortex-m4")}
    assert counts["cortex-m3"] > 3 * counts["cortex-m4"]


@needs_arm
@pytest.mark.parametrize("name", ["cnn", "depthwise"])
def test_ram_is_below_the_arena_of_tflite_micro(name, exported, folder):
    for library in ("tflite_micro", "ai_edge_litert"):
        pytest.importorskip(library, reason="tflite-micro and ai-edge-litert are not both installed: pip install qlab[deploy].")
    network, path = exported(name)
    tflite.export(network, folder / f"{name}.tflite")
    theirs = tflite.arena(folder / f"{name}.tflite")
    # the stack, the image and the logits are in ours; half of their structures' bytes, for pointers of 4 bytes instead of 8
    assert cortex_m.measure(path)["ram_bytes"] <= theirs["activations"] + theirs["persistent"] // 2


@needs_arm
def test_a_fault_on_the_device_is_reported(tiny, tmp_path):
    path = tmp_path / "net.c"
    about = asdict(c.export(tiny, path, image_shape=(1, 4, 4)))
    text = path.read_text().replace("void net_run(", "static void wrong(const int8_t *x) { *(volatile int8_t *)0x90000000 = x[0]; }\n\n"
                                    "void net_run(").replace("    convolution(&_", "    wrong(image);\n    convolution(&_", 1)
    text = text.replace("    convolution(&layer_0", "    wrong(image);\n    convolution(&layer_0", 1)
    ports = {end: files.Port(**about.pop(end)) for end in ("input", "output")}
    files.write(path, text.encode(), **ports, **{key: about[key] for key in ("format", "network", "layers")})
    with pytest.raises(RuntimeError, match="net.c failed in QEMU"):
        cortex_m.run(path, torch.zeros(1, 1, 4, 4))


def test_per_tensor_weights(tmp_path):
    network = network_of(SMALL["odd"][0], (3, 11, 17), weights=lambda w: linear.quantize(w, 4, "symmetric"))
    c.export(network, tmp_path / "net.c", image_shape=(3, 11, 17))
    codes = codes_of((3, 11, 17))
    assert torch.equal(c.run(tmp_path / "net.c", codes), network.run(codes))


def test_weights_that_no_compiler_would_read_are_refused(tmp_path, monkeypatch):
    network = integer.convert(ptq.quantize(nn.Sequential(nn.Linear(1024, 2048)), torch.rand(4, 1024)), (1024,))
    monkeypatch.setattr(c, "LARGEST", 1 << 20)
    with pytest.raises(ValueError, match="the network has 2 MiB of weights, and a C file may have 1 MiB"):
        c.export(network, tmp_path / "large.c", (1024,))
    assert not list(tmp_path.iterdir())
