"""The steps of an integer-only network, one function each: int8 codes in, int8 codes out, and int32 sums between them.

With x = s_x (q_x - z_x) and w = s_w q_w, a layer is                                        Jacob et al. 2018, section 2
    y = s_x s_w (sum (q_x - z_x) q_w + q_b),            q_b = round(b / (s_x s_w)), int32   (eq. 7 to 9, and section 2.4)
    q_y = z_y + M (sum (q_x - z_x) q_w + q_b),          M = s_x s_w / s_y                   (eq. 4)
The one real number, M, is an int32 m and a shift: M = m 2**(n - 31) with m from 2**30 to 2**31 (eq. 5). Multiplying by it takes a
doubling high multiplication (the upper half of 2 a m) and a shift to the right, both rounded to nearest (appendix B).

Codes are int8: an activation's code of b bits is shifted by 2**(b-1), so that 0 .. 255 becomes -128 .. 127. Weights are symmetric,
per tensor or per output channel. Sums need 32 bits: the products are taken after widening, for int8 arithmetic wraps silently.

How this is as fast as float32: a layer's sums are taken by float32's kernels, which hold every integer up to 2**24 (qlab.nets.sums); the
two roundings are one floor (qlab.nets.rescale); what depends on one code or two is looked up in a table of all results (below).
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from qlab.nets import rescale, sums
from qlab.nets.rescale import INT32, multiplier, multiply
from qlab.nets.softmax import softmax

__all__ = ["ADD_SHIFT", "RUN", "Grid", "Step", "float32_share", "multiplier", "multiply"]

ADD_SHIFT = 20                                                                              # a sum's terms get 20 bits of fraction first
AT_ONCE = 2**19                                                                             # numbers that stay in a core's cache


@dataclass(frozen=True)
class Grid:
    """What the codes of a tensor of activations mean: x = scale * (code - zero_point), low <= code <= high, codes int8."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on codes. inputs, output: names of tensors; grids: of the inputs and of the output.

    kind       makes new codes                              fields beside relu (clamp the result at the code of 0.0)
    conv       of a map, (n, channels, rows, columns)       weight int8, bias int32 (out,), m int32 and n int8 (out,): M of each channel;
                                                            options stride, padding, dilation, groups
    linear     of the last dimension                        weight, bias, m, n
    mean       of each window of a map                      m, n (1,); options kernel_size, stride
    windows    of windows of different sizes                m, n (rows * columns,): M of each window; options rows, columns: their
                                                            (start, stop) in the map
    add        a + b                                        m, n (3,): of the first term, the second, and the sum
    mul        a * b                                        m, n (1,)
    cat        the inputs after each other                  m, n (inputs,), of each; option dim. No relu
    table      any function of one number                   table int8 (256,): the new code of -128, -127, .. 127. No relu
    softmax    of the last dimension                        m, n (1,). No relu

    kind       hands on the codes that it gets              options
    relu       max(x, 0)
    relu6      min(max(x, 0), 6)                            high: the code of 6.0
    maxpool    of each window of a map                      as torch names them
    flatten    dimensions start_dim to end_dim as one       start_dim, end_dim
    reshape    in torch's order                             shape: of one image
    permute    other order of the dimensions                dims: of a batch, 0 first
    slice      every step-th of one dimension               dim, start, stop, step
    pad        with a code around                           padding: in torch's order, the last dimension first; code
    stretch    zeros between the values of a map            stride: (rows, columns); extra: rows below, columns to the right
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    grids: tuple[Grid, ...]
    relu: bool = False
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    m: torch.Tensor | None = None
    n: torch.Tensor | None = None
    table: torch.Tensor | None = None
    options: dict = field(default_factory=dict)


def float32_share(step: Step) -> torch.Tensor:
    """(max|x - z| sum|w| + |bias|) / 2**24 of each output channel, over all int8 codes x: float64 (out,).

    step: a convolution or a linear layer. Where no channel is above 1, float32 holds every partial sum, and adds without rounding.

    >>> step = Step("linear", "fc", ("x",), "y", (Grid(0.5, -28, -128, 127), Grid(0.1, 2, -128, 127)), bias=torch.tensor([-7, 0]).int(),
    ...             weight=torch.tensor([[-128, 3], [1, 0]], dtype=torch.int8))
    >>> float32_share(step) * 2**24                                                         # (127 + 28) * (128 + 3) + 7, 155
    tensor([20312.,   155.], dtype=torch.float64)
    """
    if step.kind not in ("conv", "linear"):
        raise ValueError(f"{step.name!r} is a {step.kind}, and must be a conv or a linear: other steps have no weights.")
    return sums.bound(step.weight, step.bias, step.grids[0].zero_point) / sums.FLOAT32


# What a step needs made once. It is no part of the step: no copy, no file and no comparison holds it.
_READY = weakref.WeakKeyDictionary()


def _ready(step: Step, make: Callable):
    """make(step), made again only after the step's tensors, or how torch computes in float32 here, have changed."""
    tensors = (t for t in (step.weight, step.bias, step.m, step.n) if t is not None)
    state = (torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled, torch.backends.mkldnn.conv.fp32_precision,
             torch.backends.mkldnn.matmul.fp32_precision, *(None if t.is_inference() else t._version for t in tensors))
    found = _READY.get(step)
    if found is None or found[0] != state:
        found = _READY[step] = state, make(step)  # two threads may both make it: it is the same
    return found[1]


def _limits(step: Step) -> tuple[int, int, int]:
    """The zero-point, the lowest and the highest code of what a step makes."""
    grid = step.grids[-1]
    low = max(grid.low, grid.zero_point) if step.relu else grid.low
    return grid.zero_point, min(low, grid.high), grid.high


def _centred(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    return codes.to(torch.int32) - grid.zero_point


def _finish(step: Step, scaled: torch.Tensor) -> torch.Tensor:
    return rescale.to_code(scaled, *_limits(step))


def _arithmetic(step: Step) -> tuple[sums.Sums, rescale.Floor | None]:
    zero_point, options = step.grids[0].zero_point, step.options if step.kind == "conv" else None
    farthest = sums.bound(step.weight, step.bias, zero_point).clamp(max=INT32)
    return sums.exact(step.weight, step.bias, zero_point, options), rescale.floor(step.m, step.n, farthest, *_limits(step))


def _layer(step: Step, codes: torch.Tensor) -> torch.Tensor:
    """The sums and their codes, some images at a time: what is between them has four or eight bytes a number, and stays in the cache."""
    total, floor = _ready(step, _arithmetic)
    images, out = (codes,), []
    if step.kind == "conv":
        if codes.dim() != 4:
            raise RuntimeError("a convolution takes maps, (n, channels, rows, columns)")
        channels, positions = codes.shape[1], codes.shape[2] * codes.shape[3]
        largest = max(channels * positions, len(step.weight) * positions // math.prod(step.options["stride"]), 1)
        images = codes.split(max(1, AT_ONCE * torch.get_num_threads() // largest))
    for few in images:
        a = total(few, step.grids[0].zero_point)
        out.append(_finish(step, multiply(a, step.m, step.n)) if floor is None else floor(a))
    codes = torch.cat(out)
    return codes.permute(0, 3, 1, 2) if step.kind == "conv" else codes


def _mean(step: Step, codes: torch.Tensor) -> torch.Tensor:
    x, (kernel, stride) = _centred(codes, step.grids[0]), (step.options["kernel_size"], step.options["stride"])
    total = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).sum((-2, -1), dtype=torch.int32)
    return _finish(step, multiply(total, step.m, step.n))


# What is computed from one code or two has 256 or 65,536 results: a table of all of them is the function.


def _all_codes() -> torch.Tensor:
    return torch.arange(-128, 128, dtype=torch.int8)


def _look_up(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """table (k,) at index, int32; a map's channels come last in memory, as those of a layer's result."""
    if index.dim() == 4:
        return _look_up(table, index.permute(0, 2, 3, 1).unsqueeze(0)).squeeze(0).permute(0, 3, 1, 2)
    return table.index_select(0, index.flatten()).view(index.shape)


def _of_two(make: Callable) -> Callable:
    def run(step: Step, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        table = _ready(step, lambda step: make(step, _all_codes()[:, None], _all_codes()[None]).flatten())
        return _look_up(table, (a.to(torch.int32) * 256 + b).add_(128 * 256 + 128))

    return run


def _add(step: Step, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    terms = [multiply(_centred(q, grid) << ADD_SHIFT, step.m[i], step.n[i]) for i, (q, grid) in enumerate(zip((a, b), step.grids))]
    return _finish(step, multiply((terms[0].long() + terms[1]).clamp_(-INT32 - 1, INT32), step.m[2], step.n[2]))


def _mul(step: Step, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _finish(step, multiply(_centred(a, step.grids[0]) * _centred(b, step.grids[1]), step.m, step.n))


def _rescaled(step: Step) -> list[torch.Tensor]:
    return [_finish(step, multiply(_centred(_all_codes(), grid), m, n)) for grid, m, n in zip(step.grids, step.m, step.n)]


def _cat(step: Step, *inputs: torch.Tensor) -> torch.Tensor:
    tables = _ready(step, _rescaled)
    return torch.cat([_look_up(table, codes.to(torch.int32).add_(128)) for table, codes in zip(tables, inputs)], step.options["dim"])


def _maxpool(step: Step, codes: torch.Tensor) -> torch.Tensor:
    """The maximum of whole rows, then of columns: torch's kernel for int8 goes from number to number, at a tenth of the speed."""
    o = step.options
    given = o["kernel_size"], o["stride"] or o["kernel_size"], o["padding"], o["dilation"]
    kernel, stride, padding, dilation = ((value, value) if isinstance(value, int) else value for value in given)
    size = F.max_pool2d(torch.empty(codes.shape, device="meta"), **o).shape[-2:]            # torch refuses what does not fit
    needed = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, stride, kernel, dilation)]
    rows, columns = ((p, max(0, all_ - length - p)) for p, all_, length in zip(padding, needed, codes.shape[-2:]))
    if any((*rows, *columns)):
        codes = F.pad(codes, (*columns, *rows), value=-128)
    for axis, n, s, k, d in zip((-2, -1), size, stride, kernel, dilation):
        shifted = [codes.narrow(axis, i * d, (n - 1) * s + 1)[(..., slice(None, None, s)) + (slice(None),) * (-1 - axis)] for i in range(k)]
        codes = shifted[0]
        for other in shifted[1:]:
            codes = torch.maximum(codes, other)
    return codes


def _windows(step: Step, codes: torch.Tensor) -> torch.Tensor:
    x, rows, columns = _centred(codes, step.grids[0]), step.options["rows"], step.options["columns"]
    total = torch.stack([x[..., top:bottom, left:right].sum((-2, -1), dtype=torch.int32)
                         for top, bottom in rows for left, right in columns], -1)
    return _finish(step, multiply(total, step.m, step.n)).view(*total.shape[:-1], len(rows), len(columns))


def _stretch(step: Step, codes: torch.Tensor) -> torch.Tensor:
    (down, right), (below, beside) = step.options["stride"], step.options["extra"]
    rows, columns = ((size - 1) * s + 1 + more for size, s, more in zip(codes.shape[-2:], (down, right), (below, beside)))
    out = codes.new_full((*codes.shape[:-2], rows, columns), step.grids[0].zero_point)
    out[..., :rows - below:down, :columns - beside:right] = codes
    return out


def _slice(step: Step, codes: torch.Tensor) -> torch.Tensor:
    o = step.options
    return codes[(slice(None),) * o["dim"] + (slice(o["start"], o["stop"], o["step"]),)]


RUN = {
    "conv": _layer, "linear": _layer, "mean": _mean, "windows": _windows, "add": _of_two(_add), "mul": _of_two(_mul), "cat": _cat,
    "table": lambda step, codes: _look_up(step.table, codes.to(torch.int32).add_(128)),
    "softmax": lambda step, codes: softmax(codes, step.m[0], step.n[0]),
    "relu": lambda step, codes: codes.clamp(min=step.grids[0].zero_point),
    "relu6": lambda step, codes: codes.clamp(step.grids[0].zero_point, step.options["high"]),
    "maxpool": _maxpool,
    "flatten": lambda step, codes: codes.flatten(**step.options),
    "reshape": lambda step, codes: codes.reshape(len(codes), *step.options["shape"]),
    "permute": lambda step, codes: codes.permute(step.options["dims"]),
    "slice": _slice,
    "pad": lambda step, codes: F.pad(codes, step.options["padding"], value=step.options["code"]),
    "stretch": _stretch,
}
