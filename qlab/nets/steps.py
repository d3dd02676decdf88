"""The steps of an integer-only network, one function each: int8 codes in, int8 codes out, and int32 sums between them.

With x = s_x (q_x - z_x) and w = s_w q_w, a layer is                                        Jacob et al. 2018, section 2
    y = s_x s_w (sum (q_x - z_x) q_w + q_b),            q_b = round(b / (s_x s_w)), int32   (eq. 7 to 9, and section 2.4)
    q_y = z_y + M (sum (q_x - z_x) q_w + q_b),          M = s_x s_w / s_y                   (eq. 4)
The one real number, M, is an int32 m and a shift: M = m 2**(n - 31) with m from 2**30 to 2**31 (eq. 5). Multiplying by it takes a
doubling high multiplication (the upper half of 2 a m) and a shift to the right, both rounded to nearest (appendix B).

Codes are int8: an activation's code of b bits is shifted by 2**(b-1), so that 0 .. 255 becomes -128 .. 127. Weights are symmetric,
per tensor or per output channel. Sums need 32 bits: the products are taken after widening, for int8 arithmetic wraps silently.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

ADD_SHIFT = 20                                                                              # a sum's terms get 20 bits of fraction first
INT32 = 2**31 - 1


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


def multiplier(real) -> tuple[torch.Tensor, torch.Tensor]:
    """Real numbers M (k,) as m (int32, 2**30 <= m < 2**31) and n (int8): M = m 2**(n - 31). Below 2**-32, m = n = 0.

    Raises ValueError for a negative one, NaN, or 2**30 and above.

    >>> multiplier([0.5, 0.003])
    (tensor([1073741824, 1649267442], dtype=torch.int32), tensor([ 0, -8], dtype=torch.int8))
    """
    m, n = [], []
    for value in torch.as_tensor(real, dtype=torch.float64).reshape(-1).tolist():
        if not 0 <= value < math.inf:
            raise ValueError(f"a multiplier is {value:g}, and must be finite and not negative.")
        fraction, exponent = math.frexp(value)  # value = fraction * 2**exponent, 1/2 <= fraction < 1
        whole = round(fraction * 2**31)
        if whole == 2**31:
            whole, exponent = 2**30, exponent + 1
        if exponent > 30:
            raise ValueError(f"a multiplier is {value:g}, and must be below 2**30: two scales that follow each other differ too much.")
        m.append(whole if exponent > -32 else 0)
        n.append(exponent if exponent > -32 else 0)
    return torch.tensor(m, dtype=torch.int32), torch.tensor(n, dtype=torch.int8)


def multiply(a: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """round(a * M), int32 in and out: shift left by n > 0, doubling high multiplication by m, shift right by n < 0.

    a: int32; m, n: of a shape that broadcasts to it. Rounded to nearest, ties up in the multiplication and away from zero in the
    shift, as ARM's instructions, gemmlowp and TensorFlow Lite's kernels do. What leaves int32 on the shift to the left saturates.

    >>> multiply(torch.tensor([100, -100, 1], dtype=torch.int32), *multiplier([0.5]))
    tensor([ 50, -50,   1], dtype=torch.int32)
    """
    n = n.to(torch.int64)
    wide = (a.to(torch.int64) << n.clamp(min=0)).clamp_(-INT32 - 1, INT32)
    high = (wide * m + 2**30) >> 31
    right = (-n).clamp(min=0)
    half = (1 << right) >> 1
    return (high.sign() * ((high.abs() + half) >> right)).to(torch.int32)


def _per_channel(t: torch.Tensor, dims: int) -> torch.Tensor:
    return t.view(1, -1, *[1] * (dims - 2))


def _centred(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    return codes.to(torch.int32) - grid.zero_point


def _finish(step: Step, scaled: torch.Tensor) -> torch.Tensor:
    grid = step.grids[-1]
    low = max(grid.low, grid.zero_point) if step.relu else grid.low
    scaled = scaled.clamp(low - grid.zero_point, grid.high - grid.zero_point)               # first, so that nothing leaves int32
    return scaled.add_(grid.zero_point).to(torch.int8)


def _layer(step: Step, codes: torch.Tensor) -> torch.Tensor:
    x, w = _centred(codes, step.grids[0]), step.weight.to(torch.int32)                      # padding with 0 now pads with the zero-point
    total = _convolve(x, w, step.bias, **step.options) if step.kind == "conv" else x @ w.T + step.bias
    m, n = (_per_channel(t, total.dim()) if step.kind == "conv" else t for t in (step.m, step.n))  # a linear layer's outputs are last
    return _finish(step, multiply(total, m, n))


def _convolve(x, w, bias, stride, padding, dilation, groups) -> torch.Tensor:
    if dilation != (1, 1):  # torch dilates no integers: the same kernel with zeros between its rows and columns
        spread = w.new_zeros(*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation)))
        spread[:, :, ::dilation[0], ::dilation[1]] = w
        w = spread
    return F.conv2d(x, w, bias, stride, padding, groups=groups)


def _mean(step: Step, codes: torch.Tensor) -> torch.Tensor:
    x, (kernel, stride) = _centred(codes, step.grids[0]), (step.options["kernel_size"], step.options["stride"])
    total = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).sum((-2, -1), dtype=torch.int32)
    return _finish(step, multiply(total, step.m, step.n))


def _add(step: Step, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    terms = [multiply(_centred(q, grid) << ADD_SHIFT, step.m[i], step.n[i]) for i, (q, grid) in enumerate(zip((a, b), step.grids))]
    return _finish(step, multiply(terms[0] + terms[1], step.m[2], step.n[2]))


def _mul(step: Step, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _finish(step, multiply(_centred(a, step.grids[0]) * _centred(b, step.grids[1]), step.m, step.n))


def _cat(step: Step, *inputs: torch.Tensor) -> torch.Tensor:
    scaled = [_finish(step, multiply(_centred(q, grid), m, n)) for q, grid, m, n in zip(inputs, step.grids, step.m, step.n)]
    return torch.cat(scaled, step.options["dim"])


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
    "conv": _layer, "linear": _layer, "mean": _mean, "add": _add,
    "maxpool": lambda step, codes: F.max_pool2d(codes, **step.options),
    "flatten": lambda step, codes: codes.flatten(**step.options),
    "relu": lambda step, codes: codes.clamp(min=step.grids[0].zero_point),
    "mul": _mul, "cat": _cat, "windows": _windows, "stretch": _stretch, "slice": _slice,
    "table": lambda step, codes: step.table[codes.long() + 128],
    "relu6": lambda step, codes: codes.clamp(step.grids[0].zero_point, step.options["high"]),
    "reshape": lambda step, codes: codes.reshape(len(codes), *step.options["shape"]),
    "permute": lambda step, codes: codes.permute(step.options["dims"]),
    "pad": lambda step, codes: F.pad(codes, step.options["padding"], value=step.options["code"]),
}
