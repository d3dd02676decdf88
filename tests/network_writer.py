"""Random networks as Python source: a class of torch.nn layers with a forward, written line by line from a seed.

Plain ones use what the library says it takes. Hostile ones hold what quantizers are known to get silently wrong: operations in place,
shared and recomputed weights, layers that run twice, hooks, other precisions, extreme scales.
"""

import random
import re
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HEAD = '''import operator
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Twice(nn.Module):
    """A parametrization: the weight is twice its parameter."""
    def forward(self, w):
        return 2 * w


class Halved(nn.Conv2d):
    """A convolution with a forward of its own."""
    def forward(self, x):
        return 0.5 * super().forward(x)


class Block(nn.Module):
    """A residual block that writes over what it made."""
    def __init__(self, channels):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn(self.conv(x))
        y += x
        return self.act(y)


def shake(model):
    """Statistics and factors of batch norm as training might leave them, some gamma negative."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.2, 3.0)
            if m.affine:
                nn.init.normal_(m.weight, 0.5, 0.7)
                nn.init.normal_(m.bias, 0.0, 0.5)
'''

Shape = tuple[int, ...]


@dataclass
class Draft:
    """A network being written: the lines of __init__ and forward, those after shake, and the values that forward has, with their shapes."""

    rng: random.Random
    init: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    traits: set[str] = field(default_factory=set)
    count: int = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def layer(self, prefix: str, text: str) -> str:
        name = f"self.{self.name(prefix)}"
        self.init.append(f"{name} = {text}")
        return name

    def value(self, expression: str, shape: Shape) -> str:
        name = self.name("y")
        self.body.append(f"{name} = {expression}")
        self.shapes[name] = shape
        return name

    def one_of(self, *choices):
        return self.rng.choice(choices)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p


@dataclass(frozen=True)
class Network:
    """A network as source that defines `network` and `images`, and what it is made of (for counting)."""

    seed: int
    source: str
    traits: frozenset[str]
    plain: bool

    def make(self) -> tuple[nn.Module, torch.Tensor]:
        """A new instance and its images; the same each time."""
        space = {"__name__": "a_random_network"}
        exec(compile(self.source, f"<network {self.seed}>", "exec"), space)
        return space["network"], space["images"]


def write(seed: int) -> Network:
    """The network of a seed; those of odd seeds are hostile."""
    rng, hostile = random.Random(seed), seed % 2 == 1
    d = Draft(rng)
    flat = not hostile and d.chance(0.2)
    shape = (rng.randint(1, 4), rng.randint(4, 9), rng.randint(4, 9))
    if flat:
        shape = d.one_of((rng.randint(2, 12),), (rng.randint(1, 4), rng.randint(5, 12)))
    d.shapes["x"] = shape
    v = "x"
    tricks = rng.sample(MAP_TRICKS, d.one_of(1, 1, 2)) if hostile and not flat else []
    if not flat:
        steps = [plain_map] * rng.randint(1, 4) + tricks
        if hostile:
            rng.shuffle(steps)
        for step in steps:
            v = step(d, earlier(d, v))
        v = joined(d, v)
    elif len(shape) == 2:
        d.traits.add("one dimension")
        for _ in range(rng.randint(1, 4)):
            v = rng.choice(LINE_STEPS)(d, v)
        v = line_end(d, v)
    v = head(d, v, hostile)
    if len(d.shapes[v]) == 1 and not hostile and d.chance(0.1):
        d.traits.add("softmax")
        v = d.value(d.one_of(f"F.softmax({v}, 1)", f"{v}.softmax(dim=-1)", f"{d.layer('soft', 'nn.Softmax(-1)')}({v})"), d.shapes[v])
    for trick in rng.sample(LATE_TRICKS, 1) if hostile and d.chance(0.5) else []:
        trick(d)
    return Network(seed, text(d, seed, shape, v), frozenset(d.traits), not hostile)


def text(d: Draft, seed: int, shape: Shape, v: str) -> str:
    init, body = "\n        ".join(d.init), "\n        ".join(d.body)
    last = "\n".join(line.replace("self", "network") for line in d.last)
    mode = "" if d.chance(0.5) else "network.eval()\n"
    size = ", ".join(map(str, shape))
    return (f"{HEAD}\n\nclass Network(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {init}\n\n"
            f"    def forward(self, x):\n        {body}\n        return {v}\n\n\ntorch.manual_seed({seed})\nnetwork = Network()\n"
            f"images = torch.randn(6, {size})\nwith torch.no_grad():\n    shake(network)\n{last}\n{mode}").rstrip() + "\n"


def is_map(shape: Shape) -> bool:
    return len(shape) == 3


def earlier(d: Draft, v: str) -> str:
    """Mostly the value at hand, at times one from before: a branch."""
    maps = [name for name, shape in d.shapes.items() if is_map(shape)]
    return v if d.chance(0.8) or not maps else d.rng.choice(maps)


# Layers


def conv_text(d: Draft, shape: Shape, out: int | None = None, same: bool = False, bias: bool | None = None) -> tuple[str, Shape]:
    """A convolution for maps of this shape, and the shape that it gives; same: of the same rows and columns."""
    channels, sizes = shape[0], shape[1:]
    kernel = d.one_of((1, 1), (3, 3), (3, 3)) if same else d.one_of((1, 1), (3, 3), (3, 3), (2, 2), (3, 1), (2, 3), (5, 5))
    dilation = d.one_of(1, 1, 1, 2)
    groups = d.one_of(1, 1, 1, channels, 2 if channels % 2 == 0 else 1)
    if out is None:
        out = groups * d.rng.randint(1, 6 // groups) if groups <= 6 else groups
        out = channels if groups == channels > 1 and d.chance(0.6) else out
    elif out % groups:
        groups = 1
    stride, padding = (1, 1), tuple(dilation * (k - 1) // 2 for k in kernel)
    if not same:
        stride = d.one_of((1, 1), (1, 1), (2, 2), (2, 1))
        padding = d.one_of(padding, (0, 0), padding, (d.rng.randint(0, 2), d.rng.randint(0, 2)))
        reach = [dilation * (k - 1) + 1 for k in kernel]
        padding = tuple(max(p, -(-(r - s) // 2)) for p, r, s in zip(padding, reach, sizes))
    given = [(s + 2 * p - dilation * (k - 1) - 1) // t + 1 for s, p, k, t in zip(sizes, padding, kernel, stride)]
    if stride == (1, 1) and not same and d.chance(0.15):
        padding, given = repr("same"), sizes                                                # an even kernel gets more on the right
    bias = d.chance(0.6) if bias is None else bias
    pad = repr("same") if same and d.chance(0.2) else repr("valid") if padding == (0, 0) and d.chance(0.2) else padding
    extra = (f", dilation={dilation}" * (dilation > 1), f", groups={groups}" * (groups > 1), "" if bias else ", bias=False")
    return f"nn.Conv2d({channels}, {out}, {kernel}, stride={stride}, padding={pad}{''.join(extra)})", (out, *given)


def norm_text(d: Draft, channels: int) -> str:
    options = d.one_of("", "", ", affine=False", ", eps=1e-2", ", momentum=None")
    return f"nn.BatchNorm2d({channels}{options})"


def activated(d: Draft, expression: str, six: bool = True) -> str:
    """The expression behind an activation, or as it is."""
    act = d.one_of("none", "module", "in place", "F.relu", "torch.relu", "method", *(["six", "F.six"] if six else []))
    if act in ("module", "in place", "six"):
        made = {"module": "nn.ReLU()", "in place": "nn.ReLU(inplace=True)", "six": d.one_of("nn.ReLU6()", "nn.ReLU6(inplace=True)")}[act]
        return f"{d.layer('act', made)}({expression})"
    return {"none": expression, "F.relu": f"F.relu({expression})", "torch.relu": f"torch.relu({expression})",
            "method": f"{expression}.relu()", "F.six": f"F.relu6({expression})"}[act]


def conv_block(d: Draft, v: str, out: int | None = None, same: bool = False) -> str:
    """Convolution, perhaps batch norm, perhaps an activation; at times as one nn.Sequential."""
    conv, shape = conv_text(d, d.shapes[v], out, same)
    norm = norm_text(d, shape[0]) if d.chance(0.5) else None
    if d.chance(0.25):
        acts = d.one_of([], ["nn.ReLU()"], ["nn.ReLU(inplace=True)"], ["nn.Dropout(0.1)", "nn.ReLU6()"])
        parts = [conv, *([norm] if norm else []), *acts]
        block = d.layer("block", f"nn.Sequential({', '.join(parts)})")
        return d.value(f"{block}({v})", shape)
    expression = f"{d.layer('conv', conv)}({v})"
    expression = f"{d.layer('bn', norm)}({expression})" if norm else expression
    return d.value(activated(d, expression), shape)


def pool(d: Draft, v: str) -> str:
    channels, *sizes = d.shapes[v]
    what = d.one_of("max", "max", "mean", "adaptive")
    if what == "adaptive":
        wanted = tuple(d.rng.choice([n for n in range(1, s + 1) if s % n == 0]) for s in sizes)
        said = tuple(None if n == s else n for n, s in zip(wanted, sizes)) if d.chance(0.3) else wanted
        call = d.one_of(f"{d.layer('pool', f'nn.AdaptiveAvgPool2d({said})')}({v})", f"F.adaptive_avg_pool2d({v}, {said})")
        return d.value(activated(d, call), (channels, *wanted))
    kernel = tuple(min(s, d.one_of(1, 2, 2, 3)) for s in sizes)
    stride = tuple(d.one_of(k, 1, 2) for k in kernel)
    if what == "mean":
        given = [(s - k) // t + 1 for s, k, t in zip(sizes, kernel, stride)]
        call = d.one_of(f"{d.layer('pool', f'nn.AvgPool2d({kernel}, {stride})')}({v})", f"F.avg_pool2d({v}, {kernel}, {stride})")
        return d.value(activated(d, call), (channels, *given))
    padding, dilation, ceil = tuple(d.rng.randint(0, k // 2) for k in kernel), 1, False
    if d.chance(0.15):
        d.traits.add("pool ceil")
        ceil = True
    elif d.chance(0.4) and all(s + 2 * p >= 2 * k - 1 for s, p, k in zip(sizes, padding, kernel)):
        d.traits.add("pool dilation")
        dilation = 2
    options = f"{kernel}, {stride}, {padding}, {dilation}, ceil_mode={ceil}"
    shape = F.max_pool2d(torch.zeros(1, channels, *sizes), kernel, stride, padding, dilation, ceil).shape[1:]
    named = f"input={v}, kernel_size={kernel}, stride={stride}, padding={padding}, dilation={dilation}, ceil_mode={ceil}"
    call = d.one_of(f"{d.layer('pool', f'nn.MaxPool2d({options})')}({v})", f"F.max_pool2d({v}, {options})", f"F.max_pool2d({named})")
    return d.value(activated(d, call, six=False), tuple(shape))


def added(d: Draft, a: str, b: str, after: bool = True) -> str:
    total = d.one_of(f"({a} + {b})", f"torch.add({a}, {b})", f"{a}.add({b})", f"operator.add({a}, {b})")
    return d.value(activated(d, total) if after else total, d.shapes[a])


def residual(d: Draft, v: str) -> str:
    inner = v
    for _ in range(d.rng.randint(1, 2)):
        inner = conv_block(d, inner, d.shapes[v][0], same=True)
    skip = conv_block(d, v, d.shapes[v][0], same=True) if d.chance(0.3) else v
    return added(d, *d.rng.sample([inner, skip], 2)) if d.chance(0.9) else added(d, inner, inner)


def nothing(d: Draft, v: str) -> str:
    layer = d.layer("no", d.one_of("nn.Dropout(0.3)", "nn.Identity()", "nn.Dropout2d(0.2)"))
    return d.value(d.one_of(f"{layer}({v})", f"{layer}({v})", f"F.dropout({v}, 0.5, self.training)"), d.shapes[v])


def block(d: Draft, v: str) -> str:
    """A module with a forward of its own, or a list of modules."""
    channels = d.shapes[v][0]
    if d.chance(0.5):
        return d.value(f"{d.layer('block', f'Block({channels})')}({v})", d.shapes[v])
    texts = [conv_text(d, d.shapes[v], channels, same=True)[0] for _ in range(2)]
    layers, out = d.layer("list", f"nn.ModuleList([{', '.join(texts)}])"), d.value(v, d.shapes[v])
    d.body += [f"for layer in {layers}:", f"    {out} = layer(F.relu({out}))"]
    return out


def relu(d: Draft, v: str) -> str:
    return d.value(d.one_of(f"F.relu({v})", f"torch.relu({v})", f"{d.layer('act', 'nn.ReLU()')}({v})"), d.shapes[v])


def plain_map(d: Draft, v: str) -> str:
    return d.one_of(conv_block, conv_block, conv_block, pool, pool, pool, residual, nothing, relu, block, moved, sliced, shuffled, split,
                    dense, squeeze, product, table, table, padded, transposed, averaged, uneven, norm_first, scalars, across, six)(d, v)


# What other people's networks hold beside these


def moved(d: Draft, v: str) -> str:
    """The same values as a map of another shape."""
    d.traits.add("views")
    c, h, w = d.shapes[v]
    n = d.one_of(f"{v}.size(0)", f"{v}.shape[0]", "-1")
    return d.value(*d.one_of(
        *((text, (c, w, h)) for text in (f"{v}.transpose(2, 3)", f"torch.transpose({v}, -1, -2)", f"{v}.permute(0, 1, 3, 2)",
                                         f"torch.permute({v}, (0, 1, 3, 2))", f"{v}.swapaxes(2, 3).contiguous()", f"{v}.movedim(2, -1)")),
        (f"{v}.permute(0, 3, 1, 2)", (w, c, h)), (f"{v}.permute(0, 2, 1, 3)", (h, c, w)),
        (f"{v}.contiguous().view({n}, {h}, {c}, {w})", (h, c, w)),
        *((text, (c, h, w)) for text in (
            f"{v}.reshape({v}.size(0), -1).view({n}, {c}, {h}, {w})", f"{v}.flatten(2).unflatten(2, ({h}, -1))",
            f"{v}.flatten(-2).view({n}, {c}, {h}, {w})", f"{v}.unsqueeze(2).squeeze(2)", f"{v}[:, None].flatten(1, 2)",
            f"torch.reshape({v}, ({n}, {c}, {v}.size(2), {w}))")),
        (f"{v}.flatten(2)[:, None]", (1, c, h * w)), (f"{v}.reshape({n}, {c * h}, 1, {w})", (c * h, 1, w)),
    ))


def sliced(d: Draft, v: str) -> str:
    d.traits.add("slices")
    c, h, w = d.shapes[v]
    a, i = d.rng.randrange(c), d.rng.randrange(h)
    b = d.rng.randint(a + 1, c)
    return d.value(*d.one_of(
        (f"{v}[:, {a}:{b}]", (b - a, h, w)), (f"{v}[:, {a}:{b}, :, :]", (b - a, h, w)), (f"{v}[..., ::2, :]", (c, -(-h // 2), w)),
        (f"{v}[:, :, {i}:, -1:]", (c, h - i, 1)), (f"{v}[:, {a}][:, None]", (1, h, w)), (f"{v}[:, :, {i}].unsqueeze(2)", (c, 1, w)),
        (f"{v}[..., -1, None]", (c, h, 1)), (f"{v}[:, None, {a}, ::2]", (1, -(-h // 2), w))))


def shuffled(d: Draft, v: str) -> str:
    c, h, w = d.shapes[v]
    if c % 2:
        return moved(d, v)
    d.traits.add("views")
    groups = d.one_of(2, c // 2)
    by_hand = f"{v}.contiguous().view({v}.size(0), {groups}, {c // groups}, {h}, {w}).transpose(1, 2).contiguous().view(-1, {c}, {h}, {w})"
    return d.value(d.one_of(f"{d.layer('shuffle', f'nn.ChannelShuffle({groups})')}({v})", f"F.channel_shuffle({v}, {groups})", by_hand),
                   (c, h, w))


def split(d: Draft, v: str) -> str:
    """Parts, something with one of them, and their concatenation in some order."""
    d.traits.add("split and cat")
    c, h, w = d.shapes[v]
    dim = d.one_of(*(k for k in (1, 2, 3) if d.shapes[v][k - 1] > 1) or (1,))
    size = d.shapes[v][dim - 1]
    if size == 1:
        return dense(d, v)
    first = d.rng.randint(1, size - 1)
    a, b = d.name("y"), d.name("y")
    sizes = d.one_of((-(-size // 2), size // 2), (first, size - first))
    call = d.one_of(f"torch.split({v}, [{sizes[0]}, {sizes[1]}], dim={dim})", f"{v}.split({sizes}, {dim})",
                    *([f"{v}.chunk(2, {dim})", f"torch.chunk({v}, 2, dim={dim - 4})"] if sizes[0] == -(-size // 2) else []))
    d.body.append(f"{a}, {b} = {call}")
    shapes = [tuple(n if k == dim - 1 else s for k, s in enumerate(d.shapes[v])) for n in sizes]
    changed = d.value(activated(d, f"({a} * {d.one_of(3.5, 0.25)})"), shapes[0])
    order = [b, changed] if d.chance(0.5) else [changed, b, v]
    size = sum({b: sizes[1], changed: sizes[0], v: size}[name] for name in order)
    made = tuple(size if k == dim - 1 else s for k, s in enumerate((c, h, w)))
    return d.value(f"torch.cat([{', '.join(order)}], {d.one_of('', 'dim=')}{d.one_of(dim, dim - 4)})", made)


def dense(d: Draft, v: str) -> str:
    """Norm, ReLU, convolution, beside what they read."""
    d.traits.add("dense block")
    c, h, w = d.shapes[v]
    if c > 12:
        return conv_block(d, v, 3, same=True)
    norm = f"{d.layer('bn', norm_text(d, c))}({v})" if d.chance(0.6) else v
    conv, shape = conv_text(d, (c, h, w), d.rng.randint(1, 4), same=True)
    grown = d.value(f"{d.layer('conv', conv)}(F.relu({norm}))", shape)
    order = d.one_of([v, grown], [grown, v], [v, grown, v])
    return d.value(f"torch.cat([{', '.join(order)}], {d.one_of('1', 'dim=1', '-3')})", (sum(d.shapes[n][0] for n in order), h, w))


def squeeze(d: Draft, v: str) -> str:
    """Squeeze and excitation."""
    d.traits.add("squeeze")
    c, h, w = d.shapes[v]
    mean = d.one_of(f"F.adaptive_avg_pool2d({v}, 1)", f"{v}.mean((2, 3), keepdim=True)", f"{v}.mean([-1, -2], True)")
    down, up = (d.layer("conv", f"nn.Conv2d({a}, {b}, 1)") for a, b in ((c, 2), (2, c)))
    gate = d.value(f"{d.one_of('torch.sigmoid', 'F.hardsigmoid', 'F.sigmoid')}({up}(F.relu({down}({mean}))))", (c, 1, 1))
    return d.value(d.one_of(f"{v} * {gate}", f"{gate} * {v}", f"torch.mul({v}, {gate})", f"{gate}.mul({v})"), (c, h, w))


def product(d: Draft, v: str) -> str:
    d.traits.add("product")
    other = d.one_of(v, conv_block(d, v, d.shapes[v][0], same=True))
    return d.value(activated(d, d.one_of(f"({v} * {other})", f"torch.mul({other}, {v})", f"{v}.mul({other})")), d.shapes[v])


ACTIVATIONS = ("LeakyReLU(0.2)", "Sigmoid()", "Hardsigmoid()", "Hardswish()", "SiLU()", "GELU()", "Tanh()", "Hardtanh(-0.5, 1.5)", "ELU()",
               "SELU()", "CELU()", "Softplus()", "Softsign()", "Mish()", "LogSigmoid()", "Tanhshrink()", "Softshrink()",
               "GELU(approximate='tanh')", "SiLU(inplace=True)", "LeakyReLU(0.1, inplace=True)", "Hardswish(inplace=True)")


def table(d: Draft, v: str) -> str:
    d.traits.add("table")
    fresh = d.value(f"{v} * 1.5", d.shapes[v])                                              # what may be written over
    return d.value(d.one_of(
        *(f"{d.layer('act', f'nn.{text}')}({fresh})" for text in d.rng.sample(ACTIVATIONS, 3)), f"F.leaky_relu({v}, 0.3)", f"F.gelu({v})",
        f"F.silu({fresh}, inplace=True)", f"F.hardswish({v})", f"{v}.sigmoid()", f"torch.tanh({v})", f"{v}.clamp(-0.5, 0.75)",
        f"{v}.clamp(min=0)", f"torch.clamp({v}, max=0.5)", f"{v} ** 2", f"{v}.square()", f"{v}.abs()", f"-{v}", f"F.elu({v}, 0.7)",
        f"{fresh}.tanh_()", f"F.hardtanh({v}, 0, 6)"), d.shapes[v])


def scalars(d: Draft, v: str) -> str:
    d.traits.add("scalars")
    return d.value(d.one_of(f"{v} * 0.5 + 1", f"1 - {v}", f"({v} - 0.25) / 3", f"torch.add({v}, 1, alpha=2)", f"{v}.div(2)",
                            f"2 * {v}.sub(0.5)"), d.shapes[v])


def padded(d: Draft, v: str) -> str:
    d.traits.add("padding")
    c, h, w = d.shapes[v]
    far = [d.rng.randint(0, 2) for _ in range(4)]
    value = d.one_of(0, 0.5, -1.25, 40.0)
    call = d.one_of(f"{d.layer('pad', f'nn.ZeroPad2d({tuple(far)})')}({v})", f"F.pad({v}, {tuple(far)})",
                    f"F.pad({v}, {far}, 'constant', {value})", f"F.pad(input={v}, pad={tuple(far)}, value={value})",
                    f"{d.layer('pad', f'nn.ConstantPad2d({tuple(far)}, {value})')}({v})")
    return d.value(call, (c, h + far[2] + far[3], w + far[0] + far[1]))


def transposed(d: Draft, v: str) -> str:
    c, h, w = d.shapes[v]
    if max(h, w) > 9:
        return pool(d, v)
    d.traits.add("transposed convolution")
    kernel, stride, groups = [d.rng.randint(1, 4) for _ in range(2)], [d.rng.randint(1, 2) for _ in range(2)], d.one_of(1, 1, c)
    padding = [d.rng.randint(0, (k - 1) // 2) for k in kernel]
    extra = [d.rng.randint(0, s - 1) for s in stride]
    out = groups * d.rng.randint(1, 3)
    settings = ", ".join(str(tuple(pair)) for pair in (kernel, stride, padding, extra))
    made = f"nn.ConvTranspose2d({c}, {out}, {settings}, {groups}, bias={d.chance(0.6)})"
    sizes = [(s - 1) * t - 2 * p + k + e for s, t, p, k, e in zip((h, w), stride, padding, kernel, extra)]
    if min(sizes) < 1:
        return pool(d, v)
    call = f"{d.layer('up', made)}({v})"
    return d.value(activated(d, f"{d.layer('bn', norm_text(d, out))}({call})" if d.chance(0.5) else call), (out, *sizes))


def averaged(d: Draft, v: str) -> str:
    """A mean over one or two dimensions, alone or added to what it is of."""
    d.traits.add("mean of axes")
    shape = d.shapes[v]
    dims = d.rng.sample((1, 2, 3), d.one_of(1, 2))
    said = d.one_of(tuple(dims), list(dims), dims[0] if len(dims) == 1 else tuple(k - 4 for k in dims))
    made = tuple(1 if k in dims else s for k, s in zip((1, 2, 3), shape))
    call = d.one_of(f"{v}.mean({said}, keepdim=True)", f"torch.mean({v}, {said}, True)", f"{v}.mean(dim={said}, keepdim=True)")
    mean = d.value(activated(d, call), made)
    return d.one_of(lambda: mean, lambda: d.value(d.one_of(f"{v} + {mean}", f"{mean} + {v}", f"{mean} * {v}"), shape))()


def uneven(d: Draft, v: str) -> str:
    d.traits.add("uneven means")
    c, h, w = d.shapes[v]
    if d.chance(0.5) and min(h, w) > 2:
        count, ceil = d.one_of(", count_include_pad=False", "", ", divisor_override=5"), d.chance(0.3)
        made = f"nn.AvgPool2d(3, 2, 1, ceil_mode={ceil}{count})"
        return d.value(activated(d, f"{d.layer('pool', made)}({v})"), tuple(F.avg_pool2d(torch.zeros(1, c, h, w), 3, 2, 1, ceil).shape[1:]))
    wanted = (d.rng.randint(1, h + 1), d.rng.randint(1, w + 1))
    return d.value(activated(d, f"F.adaptive_avg_pool2d({v}, {wanted})"), (c, *wanted))


def norm_first(d: Draft, v: str) -> str:
    d.traits.add("norm first")
    return d.value(activated(d, f"{d.layer('bn', norm_text(d, d.shapes[v][0]))}({v})"), d.shapes[v])


def across(d: Draft, v: str) -> str:
    """A linear layer of a map's last dimension."""
    d.traits.add("linear on maps")
    c, h, w = d.shapes[v]
    outs = d.rng.randint(1, 6)
    return d.value(activated(d, f"{d.layer('fc', f'nn.Linear({w}, {outs})')}({v})"), (c, h, outs))


def six(d: Draft, v: str) -> str:
    """A ReLU6 that clips codes, for nothing is computed with it."""
    d.traits.add("ReLU6 alone")
    rows = d.shapes[v][1]
    before = d.one_of(f"({v} * 4).transpose(2, 3).transpose(2, 3)", relu(d, v), f"torch.cat([{v} * 5, {v}], 2)[:, :, :{rows}]")
    return d.value(f"F.relu6({before})", d.shapes[v])


# One dimension


def line_conv(d: Draft, v: str) -> str:
    c, length = d.shapes[v]
    kernel, dilation, groups = d.rng.randint(1, min(4, length)), 1, d.one_of(1, 1, c)
    stride, padding = d.one_of(1, 1, 2), d.rng.randint(0, kernel // 2)
    out = groups * d.rng.randint(1, 4)
    size = (length + 2 * padding - kernel) // stride + 1
    call = f"{d.layer('conv', f'nn.Conv1d({c}, {out}, {kernel}, {stride}, {padding}, {dilation}, {groups}, bias={d.chance(0.6)})')}({v})"
    norm = d.one_of("", "", ", affine=False")
    return d.value(activated(d, f"{d.layer('bn', f'nn.BatchNorm1d({out}{norm})')}({call})" if d.chance(0.5) else call), (out, size))


def line_pool(d: Draft, v: str) -> str:
    c, length = d.shapes[v]
    kernel = min(length, 2)
    wanted = d.rng.randint(1, length)
    return d.value(*d.one_of((f"F.max_pool1d({v}, {kernel})", (c, length // kernel)),
                             (f"{d.layer('pool', f'nn.MaxPool1d({kernel}, 1)')}({v})", (c, length - kernel + 1)),
                             (f"{d.layer('pool', f'nn.AvgPool1d({kernel})')}({v})", (c, length // kernel)),
                             (f"F.adaptive_avg_pool1d({v}, {wanted})", (c, wanted))))


def line_other(d: Draft, v: str) -> str:
    c, length = d.shapes[v]
    same = d.layer("conv", f"nn.Conv1d({c}, {c}, 3, padding=1)")
    return d.value(*d.one_of((f"F.relu({same}({v})) + {v}", (c, length)), (f"torch.cat([{v}, {same}({v})], 1)", (2 * c, length)),
                             (f"{v} * torch.sigmoid({same}({v}))", (c, length)), (f"F.pad({v}, (2, 0))", (c, length + 2)),
                             (f"{v}[:, :, {length // 2}:]", (c, length - length // 2)),
                             (f"{v}.transpose(1, 2)", (length, c)), (f"{d.layer('bn', f'nn.BatchNorm1d({c})')}({v}) * 2", (c, length)),
                             (f"{d.layer('fc', f'nn.Linear({length}, 4)')}({v})", (c, 4)), (f"F.hardswish({v})", (c, length))))


LINE_STEPS = [line_conv, line_conv, line_pool, line_other, line_other]


def line_end(d: Draft, v: str) -> str:
    v = line_conv(d, v)
    c, length = d.shapes[v]
    return d.value(*d.one_of((f"{v}.mean(-1)", (c,)), (f"{v}[:, :, -1]", (c,)), (f"{v}.flatten(1)", (c * length,)),
                             (f"{v}.contiguous().view({v}.size(0), -1)", (c * length,))))


def joined(d: Draft, v: str) -> str:
    """All maps that nothing reads, in one: added where their shapes agree, or else by their means."""
    read = "\n".join(line.partition("=")[2] if re.match(r"y\d+ =", line) else line for line in d.body)
    ends = [name for name in d.shapes if name != "x" and name != v and not re.search(rf"\b{name}\b", read)]
    for other in ends:
        if d.shapes[other] == d.shapes[v]:
            v = added(d, v, other)
            continue
        means = []
        for value in (v, other):
            mean = d.value(f"F.adaptive_avg_pool2d({value}, 1)", (d.shapes[value][0], 1, 1))
            means.append(d.value(f"{d.layer('conv', f'nn.Conv2d({d.shapes[value][0]}, 3, 1)')}({mean})", (3, 1, 1)))
        v = added(d, *means)
    return v


def head(d: Draft, v: str, hostile: bool) -> str:
    """Flattening and linear layers, or at times nothing."""
    shape = d.shapes[v]
    if is_map(shape) and not any(f"{conv}(" in "\n".join(d.body) for conv in parts(d, "Conv2d")):  # a network of no layer: C refuses it
        v = conv_block(d, v)
        shape = d.shapes[v]
    if is_map(shape):
        if d.chance(0.07):
            d.traits.add("ends in a map")
            return v
        if d.chance(0.15):
            v = d.value(d.one_of(f"{v}.mean((2, 3))", f"torch.mean({v}, dim=[2, 3])", f"{v}.mean(-1).mean(-1)"), (shape[0],))
        elif d.chance(0.4):
            v = d.value(f"{d.layer('mean', d.one_of('nn.AdaptiveAvgPool2d(1)', 'nn.AdaptiveAvgPool2d((1, 1))'))}({v})", (shape[0], 1, 1))
        size = int(np.prod(d.shapes[v]))
        if is_map(d.shapes[v]):
            v = d.value(d.one_of(f"torch.flatten({v}, 1)", f"{v}.flatten(1)", f"{d.layer('flat', 'nn.Flatten()')}({v})",
                                 f"{v}.contiguous().view({v}.size(0), -1)", f"{v}.reshape(-1, {size})",
                                 f"torch.flatten({v}, start_dim=1)"), (size,))
    if hostile and d.chance(0.3):
        v = d.rng.choice(FLAT_TRICKS)(d, v)
    for _ in range(d.rng.randint(0, 2)):
        v = fully_connected(d, v, d.rng.randint(2, 9))
        if d.chance(0.3):
            v = added(d, v, fully_connected(d, v, d.shapes[v][0]))
    return fully_connected(d, v, d.rng.randint(1, 5), act=d.chance(0.15))


def fully_connected(d: Draft, v: str, outs: int, act: bool = True) -> str:
    bias = d.one_of("", "", ", bias=False")
    call = f"{d.layer('fc', f'nn.Linear({d.shapes[v][0]}, {outs}{bias})')}({v})"
    return d.value(activated(d, call) if act else call, (outs,))


# Hostile constructions


def parts(d: Draft, kind: str) -> list[str]:
    return [line.partition(" = ")[0] for line in d.init if re.match(rf"self\.\w+ = nn\.{kind}\(", line)]


def shared_convs(d: Draft, v: str) -> str:
    """Two convolutions of one weight, each with a batch norm of its own, only one of them, or none."""
    d.traits.add("shared weight")
    channels = d.shapes[v][0]
    text, shape = conv_text(d, d.shapes[v], channels, same=True)
    a, b = d.layer("conv", text), d.layer("conv", text)
    d.init.append(d.one_of(f"{b}.weight = {a}.weight", f"{b}.weight = {a}.weight", f"{b}.weight.data = {a}.weight.data",
                           f"{b}.weight = nn.Parameter({a}.weight.data)"))
    if "bias=False" not in text and d.chance(0.3):
        d.last.append(f"{b}.bias.data = {a}.bias.data.clone()\n{d.one_of(a, b)}.bias.data[0] = -100.0")     # a channel dead in one of them
    elif "bias=False" not in text and d.chance(0.5):
        d.init.append(f"{b}.bias = {a}.bias")
    norms = [d.layer("bn", norm_text(d, channels)) if with_norm else "" for with_norm in d.one_of((1, 1), (1, 0), (0, 1), (0, 0))]
    first = d.value(activated(d, f"{norms[0]}({a}({v}))"), shape)
    if d.chance(0.5):
        return d.value(activated(d, f"{norms[1]}({b}({first}))"), shape)
    return added(d, first, d.value(f"{norms[1]}({b}({v}))", shape))


def one_norm(d: Draft, v: str) -> str:
    """One batch norm behind two convolutions."""
    d.traits.add("one batch norm behind two")
    channels = d.rng.randint(1, 5)
    (a, shape), (b, _) = conv_text(d, d.shapes[v], channels, same=True), conv_text(d, d.shapes[v], channels, same=True)
    norm = d.layer("bn", norm_text(d, channels))
    first, second = (d.value(activated(d, f"{norm}({d.layer('conv', text)}({v}))"), shape) for text in (a, b))
    return added(d, first, second)


def shared_norms(d: Draft, v: str) -> str:
    """Two batch norms that share parameters or statistics, or one behind a convolution whose bias it shares."""
    d.traits.add("shared weight")
    channels = d.rng.randint(1, 5)
    (a, shape), (b, _) = (conv_text(d, d.shapes[v], channels, same=True, bias=True) for _ in range(2))
    one, other = d.layer("bn", f"nn.BatchNorm2d({channels})"), d.layer("bn", f"nn.BatchNorm2d({channels})")
    first = d.layer("conv", a)
    d.init.append(d.one_of(f"{other}.weight = {one}.weight", f"{other}.running_var = {one}.running_var", f"{one}.bias = {first}.bias",
                           f"{other}.running_mean = {one}.running_mean", f"{other}.bias = {one}.bias = {first}.bias"))
    return added(d, d.value(f"F.relu({one}({first}({v})))", shape), d.value(f"{other}({d.layer('conv', b)}({v}))", shape))


def two_names(d: Draft, v: str) -> str:
    """One module under two names, of which the first, the second or both are called."""
    d.traits.add("two names")
    channels = d.rng.randint(1, 5)
    text, shape = conv_text(d, d.shapes[v], channels, same=True)
    layer, norm = d.layer("conv", text), d.layer("bn", norm_text(d, channels))
    again, also = d.layer("conv", layer), d.layer("bn", norm)
    first = d.value(f"F.relu({d.one_of(norm, also)}({d.one_of(layer, again)}({v})))", shape)
    if d.chance(0.5):
        return first
    return added(d, first, d.value(f"{d.one_of('', also, norm)}({d.one_of(layer, again)}({v}))", shape))


def own_forward(d: Draft, v: str) -> str:
    """A subclass of a layer, with a forward of its own."""
    d.traits.add("subclass")
    text, shape = conv_text(d, d.shapes[v])
    return d.value(activated(d, f"{d.layer('conv', text.replace('nn.Conv2d', 'Halved'))}({v})"), shape)


def called_twice(d: Draft, v: str) -> str:
    """The same layer, with or without batch norm, called twice, in a row or side by side."""
    d.traits.add("called twice")
    channels = d.shapes[v][0]
    text, shape = conv_text(d, d.shapes[v], channels, same=True)
    layer = d.layer("conv", text) if d.chance(0.6) else d.layer("block", f"nn.Sequential({text}, {norm_text(d, channels)}, nn.ReLU())")
    act = d.one_of("", "F.relu", "torch.relu")
    first = d.value(f"{act}({layer}({v}))", shape)
    other = d.one_of(first, first, v)
    second = d.value(f"{layer}({other})", shape)
    return added(d, first, second)


IN_PLACE = (  # y has a second reader before or after; v is of the same shape; {c} convolves, {o} is the result
    "{o} = F.relu({y}, inplace=True) + {y}",
    "F.relu({y}, inplace=True)\n{o} = {c}({y})",
    "z = F.relu({y}, inplace=True)\n{o} = {c}({y}) + z",
    "z = {c}({y})\nF.relu({y}, inplace=True)\n{o} = z + {y}",
    "z = {act}({y})\n{o} = {c}({y}) + z",
    "{act}({y})\n{o} = {c}({y})",
    "z = {c}({y})\n{y}.relu_()\n{o} = {y} + z",
    "{y}.relu_()\n{o} = {c}({y})",
    "torch.relu_({y})\n{o} = {c}({y}) + {y}",
    "F.relu_({y})\n{o} = {c}({y})",
    "F.relu6({y}, inplace=True)\n{o} = {c}({y})",
    "{six}({y})\n{o} = {c}({y}) + {y}",
    "z = {y}\nz += {v}\n{o} = {c}({y}) + z",
    "z = {y}\n{y} += {v}\n{o} = {c}({y}) + z",
    "{y}.add_({v})\n{o} = {c}({y})",
    "z = {y}.add_({v})\n{o} = {c}(z) + {y}",
    "z = {c}({y})\n{y} += {v}\n{o} = z + {y}",
    "{y} += {y}\n{o} = {c}({y})",
    "operator.iadd({y}, {v})\n{o} = {c}({y})",
    "z = {no}({y})\nz.relu_()\n{o} = {c}({y}) + z",
    "z = {no}({y})\n{y}.relu_()\n{o} = {c}(z)",
    "z = {no}({y})\nz += {v}\n{o} = {c}({y})",
    "z = {y} + {v}\nz.relu_()\n{o} = {c}({y}) + z",
    "z = F.max_pool2d({y}, 1)\n{y}.relu_()\n{o} = {c}({y}) + z",
    "z = {y}.relu()\nz += {y}\n{o} = {c}(z) + {y}",
    "for _ in range(2):\n    {y} = F.relu({c}({y}), inplace=True) + {y}\n{o} = {y}",
    "{y} = {act}({y}) + {v}\n{o} = F.relu_({c}({y})) + {y}",
    "z = torch.relu_({c}({y}))\n{o} = torch.relu_(z) + z.add_({y})",
    "z = F.dropout({y}, 0.5, self.training, True)\nz.relu_()\n{o} = {c}({y})",
    "z = {c}({y})\nw = z.relu_()\nz += {y}\n{o} = w + {y}",
    "{y}.mul_(2.0)\n{o} = {c}({y})",
    "{y}.clamp_(0)\n{o} = {c}({y})",
    "F.hardtanh({y}, 0.0, 6.0, True)\n{o} = {c}({y})",
    "{y}.add_({v}, alpha=2)\n{o} = {c}({y})",
    "{y} -= {v}\n{o} = {c}({y})",
    "{y}.copy_({v})\n{o} = {c}({y})",
    "torch.add({v}, {v}, out={y})\n{o} = {c}({y})",
    "z = torch.flatten({y}, 2)\nF.relu_(z)\n{o} = {c}({y})",
    "z = {y}.flatten(2)\n{y}.relu_()\n{o} = {c}({y}) + {v}\nw = z + z",
    "{y}.data.relu_()\n{o} = {c}({y})",
    "z = {y}.detach()\nz.relu_()\n{o} = {c}({y})",
    "z = {y}.view_as({y})\nz.relu_()\n{o} = {c}({y})",
    "z = {y}.contiguous()\nz.relu_()\n{o} = {c}({y})",
)


def in_place(d: Draft, v: str) -> str:
    """Operations that write over their operand, which others read before or after."""
    d.traits.add("in place")
    shape = d.shapes[v]
    v = conv_block(d, v, shape[0], same=True) if v == "x" and d.chance(0.7) else v
    text, _ = conv_text(d, shape, shape[0], same=True)
    y = v if d.chance(0.15) else d.value(f"{d.layer('conv', text)}({v})", shape)
    out = d.name("y")
    names = {"y": y, "v": v, "o": out, "c": d.layer("conv", text), "act": d.layer("act", "nn.ReLU(inplace=True)"),
             "six": d.layer("act", "nn.ReLU6(inplace=True)"), "no": d.layer("no", d.one_of("nn.Identity()", "nn.Dropout(0.4)"))}
    pattern = d.rng.choice(IN_PLACE)
    d.body += pattern.format(**names).splitlines()
    d.shapes[out] = shape
    return out


def unread(d: Draft, v: str) -> str:
    """A branch whose result nothing reads."""
    d.traits.add("unread branch")
    conv_block(d, v)
    d.shapes.pop(f"y{d.count}", None)
    return conv_block(d, v)


def odd_layers(d: Draft, v: str) -> str:
    """What some of the ways out refuse: other padding modes, uneven pooling, a ReLU6 alone, batch norm that cannot be folded."""
    d.traits.add("odd layer")
    channels, rows, columns = d.shapes[v]
    which = d.rng.choice(["circular", "padded mean", "ceil mean", "uneven", "six", "norm first", "norm of many", "no statistics",
                          "broadcast", "scalar", "functional norm", "leaky", "keyword"])
    shape = d.shapes[v]
    if which == "circular" and min(rows, columns) > 1:
        mode = d.one_of("circular", "reflect", "replicate")
        return d.value(f"{d.layer('conv', f'nn.Conv2d({channels}, 3, 3, padding=1, padding_mode={mode!r})')}({v})", (3, rows, columns))
    if which == "padded mean" and min(rows, columns) > 1:
        count = d.one_of(", count_include_pad=False", "", ", divisor_override=5")
        made = f"nn.AvgPool2d(3, 1, 1{count})"
        return d.value(f"{d.layer('pool', made)}({v})", shape)
    if which == "ceil mean" and min(rows, columns) > 1:
        size = F.avg_pool2d(torch.zeros(1, channels, rows, columns), 2, 2, ceil_mode=True).shape[1:]
        return d.value(f"F.avg_pool2d({v}, 2, 2, ceil_mode=True)", tuple(size))
    if which == "uneven":
        wanted = (min(rows, 2), min(columns, 3))
        return d.value(f"F.adaptive_avg_pool2d({v}, {wanted})", (channels, *wanted))
    if which == "six":
        return d.value(f"F.relu6({relu(d, v)})", shape)
    if which == "norm first":
        return d.value(f"{d.layer('bn', norm_text(d, channels))}({v})", shape)
    if which == "norm of many":
        y = d.value(f"{d.layer('conv', f'nn.Conv2d({channels}, {channels}, 1)')}({v})", shape)
        return added(d, y, d.value(f"{d.layer('bn', norm_text(d, channels))}({y})", shape))
    if which == "no statistics":
        conv, norm = (d.layer("conv", f"nn.Conv2d({channels}, 2, 1)"), d.layer("bn", "nn.BatchNorm2d(2, track_running_stats=False)"))
        return d.value(f"{norm}({conv}({v}))", (2, rows, columns))
    if which == "broadcast":
        return d.value(f"{v} + F.adaptive_avg_pool2d({v}, 1)", shape)
    if which == "functional norm":
        norm = d.layer("bn", norm_text(d, channels))
        return d.value(f"F.batch_norm({v}, {norm}.running_mean, {norm}.running_var)", shape)
    if which == "leaky":
        return d.value(f"F.leaky_relu({v}, 0.1)", shape)
    if which == "keyword":
        pooled = d.layer("pool", "nn.MaxPool2d(1)")
        return d.value(f"F.relu(input={pooled}(input={v}))", shape)
    return d.value(f"{v} + {d.one_of('1.0', '0', 'torch.ones(1)')}", shape)


MAP_TRICKS = [shared_convs, shared_convs, shared_norms, one_norm, called_twice, two_names, in_place, in_place, in_place, in_place, unread,
              odd_layers, own_forward]


def tied_linears(d: Draft, v: str) -> str:
    d.traits.add("tied linears")
    size = d.shapes[v][0]
    a, b = d.layer("fc", f"nn.Linear({size}, {size})"), d.layer("fc", f"nn.Linear({size}, {size})")
    d.init.append(f"{b}.weight = {a}.weight")
    return d.value(f"{b}({d.one_of('F.relu', '')}({a}({v})))", (size,))


def twice_linear(d: Draft, v: str) -> str:
    d.traits.add("called twice")
    size = d.shapes[v][0]
    a = d.layer("fc", f"nn.Linear({size}, {size})")
    first = d.value(f"F.relu({a}({v}))", (size,))
    return added(d, first, d.value(f"{a}({d.one_of(first, v)})", (size,)))


def in_place_flat(d: Draft, v: str) -> str:
    """What is flattened shares memory with the map."""
    d.traits.add("in place")
    size = d.shapes[v][0]
    a = d.layer("fc", f"nn.Linear({size}, {size})")
    out = d.name("y")
    pattern = d.one_of("F.relu({v}, inplace=True)\n{o} = {a}({v})", "z = {a}({v})\nz += {v}\n{o} = F.relu(z)",
                       "z = {a}({v})\n{v}.relu_()\n{o} = z + {v}", "z = torch.flatten({v}, 1)\nz.relu_()\n{o} = {a}({v}) + z",
                       "z = {v}.flatten(1)\n{v}.add_({a}({v}))\n{o} = {a}({v}) + z")
    d.body += pattern.format(v=v, a=a, o=out).splitlines()
    d.shapes[out] = (size,)
    return out


FLAT_TRICKS = [tied_linears, twice_linear, in_place_flat]


def layers_of(d: Draft) -> list[str]:
    return parts(d, "Conv2d") + parts(d, "Linear")


def reparametrized(d: Draft) -> None:
    """A weight that is recomputed in each forward."""
    if not layers_of(d):
        return
    d.traits.add("recomputed weight")
    tied = [m for line in d.init if re.search(r"\.weight\b.* = ", line) for m in re.findall(r"self\.\w+", line)]
    layer = d.rng.choice([m for m in tied if m in layers_of(d)] or layers_of(d))            # one whose weight is shared, if there is one
    norm = d.rng.choice(parts(d, "BatchNorm2d") or [None])
    d.last.append(d.one_of(
        f"prune.l1_unstructured({norm or layer}, 'weight', 0.5) if {norm or layer}.weight is not None else None",
        f"kept = {layer}.weight.detach().clone()\ndel {layer}.weight\n{layer}.register_buffer('weight', kept)",
        f"made = 2 * {layer}.weight\ndel {layer}.weight\n{layer}.weight = made",
        f"prune.l1_unstructured({layer}, 'weight', 0.4)", f"prune.random_unstructured({layer}, 'weight', 0.5)",
        f"prune.identity({layer}, 'weight')",
        f"prune.ln_structured({layer}, 'weight', 0.4, n=2, dim=0)", f"torch.nn.utils.weight_norm({layer})",
        f"parametrizations.weight_norm({layer})", f"torch.nn.utils.spectral_norm({layer})", f"parametrizations.spectral_norm({layer})",
        f"parametrize.register_parametrization({layer}, 'weight', Twice())",
        f"parametrizations.weight_norm({layer}, dim=1)\nparametrize.register_parametrization({layer}, 'weight', Twice())",
        f"parametrize.register_parametrization({layer}, 'weight', Twice(), unsafe=True)\nparametrize.register_parametrization("
        f"{layer}, 'weight', Twice())",
        f"{layer}.bias is None or prune.l1_unstructured({layer}, 'bias', 0.5)",
        f"{layer}.bias is None or parametrize.register_parametrization({layer}, 'bias', Twice())",
    ))


def hooked(d: Draft) -> None:
    """A hook that changes what a module gives, or a forward put on the instance."""
    modules = layers_of(d) + parts(d, "BatchNorm2d") + parts(d, "ReLU") + parts(d, "MaxPool2d") + parts(d, "Sequential") + ["self"]
    called = [m for m in modules if m == "self" or re.search(rf"{re.escape(m)}\b", "\n".join(d.body))]
    module = d.rng.choice(called)
    d.traits.add("hook")
    d.traits.add(f"hook on {module.removeprefix('self').removeprefix('.') or 'the network'}")
    d.last.append(d.one_of(
        f"{module}.register_forward_hook(lambda m, i, o: 2 * o)", f"{module}.register_forward_pre_hook(lambda m, i: (i[0] + 1,))",
        f"{module}.register_forward_hook(lambda m, i, k, o: None, with_kwargs=True)",
        f"{module}.register_forward_pre_hook(lambda m, i, k: ((2 * i[0],), k), with_kwargs=True)",
        f"{module}.forward = lambda x, given={module}.forward: 2 * given(x)"))


def other_dtype(d: Draft) -> None:
    dtype = d.one_of("half", "double", "double", "bfloat16")
    d.traits.add(dtype)
    d.last.append(f"self.{dtype}()\nimages = images.{dtype}()")


def other_images(d: Draft) -> None:
    d.traits.add("images of another dtype")
    d.last.append(d.one_of("images = images.half()", "images = images.double()", "images = images.bfloat16()"))


def other_layout(d: Draft) -> None:
    """Images that are not contiguous, weights with channels last, a network that is a graph already."""
    d.traits.add("layout")
    d.last.append(d.one_of("images = images.transpose(-1, -2).contiguous().transpose(-1, -2)", "images = images[:1].expand_as(images)",
                           "images.requires_grad_()", "images = images.flip(0)[::2]",
                           *(["self.to(memory_format=torch.channels_last)\nimages = images.contiguous(memory_format=torch.channels_last)"]
                             if is_map(d.shapes["x"]) else []),
                           "self.eval()\nself = torch.fx.symbolic_trace(self)"))


def scales(d: Draft) -> None:
    """Tiny and huge weights, dead channels, constant activations, tiny variances."""
    d.traits.add("scales")
    convs, norms = layers_of(d), parts(d, "BatchNorm2d")
    for _ in range(d.rng.randint(1, 3)):
        power = d.one_of(-12, -6, -3, 3, 6, 9)
        choices = [f"images.mul_(1e{power})", "images.fill_(1.0)", "images[:, 0] = 0.0", "images.abs_()"]
        if convs:
            layer = d.rng.choice(convs)
            choices += [f"{layer}.weight.mul_(1e{power})", f"{layer}.weight.zero_()", f"{layer}.weight[0] = 0.0",
                        f"{layer}.weight[0] *= 1e{power}", f"{layer}.bias is None or {layer}.bias.fill_(-1e3)",
                        f"{layer}.bias is None or {layer}.bias.mul_(1e{power})"]
        if norms:
            norm = d.rng.choice(norms)
            choices += [f"{norm}.running_var is None or {norm}.running_var.fill_(1e-12)", f"{norm}.running_var is None or "
                        f"{norm}.running_var[0].zero_()", f"{norm}.running_mean is None or {norm}.running_mean.mul_(1e3)",
                        f"{norm}.weight is None or {norm}.weight[0].zero_()", f"{norm}.weight is None or {norm}.weight.neg_()"]
        d.last.append(f"with torch.no_grad(): {d.rng.choice(choices)}")


LATE_TRICKS = [reparametrized, reparametrized, hooked, other_dtype, other_dtype, other_images, other_layout, other_layout, scales, scales,
               scales]
