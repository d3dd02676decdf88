"""What a network may hold, in one table: every layer, function and method that qlab's graphs know, and what quantization does with each.

    makes      new values, which need a scale of their own: a layer, a sum, a mean, any function of one number
    fuses      makes values, and a ReLU right behind it is computed in the same step
    hands on   the values that it gets, at other places: pooling by the maximum, padding with zeros, ReLU, and the views
    views      hands on values that may lie in the same memory: what is written over one of them in place changes the other
    numbers    no tensor: sizes, and what is computed from them
"""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn


class Stretch(nn.Module):
    """A map (n, channels, rows, columns) with stride - 1 zeros between its values, and more rows of zeros below and columns beside it.

    A transposed convolution is a convolution of such a map (Dumoulin and Visin 2016, "A guide to convolution arithmetic", section 4.3).

    >>> Stretch((2, 2))(torch.ones(1, 1, 2, 2))[0, 0]
    tensor([[1., 0., 1.],
            [0., 0., 0.],
            [1., 0., 1.]])
    """

    def __init__(self, stride: tuple[int, int], extra: tuple[int, int] = (0, 0)):
        super().__init__()
        self.stride, self.extra = tuple(stride), tuple(extra)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Zeros behind each value, then fewer or more at the ends: written in place, PyTorch's quantizer would lose the values.
        (down, right), (below, beside), (rows, columns) = self.stride, self.extra, x.shape[-2:]
        out = F.pad(x.unsqueeze(-1).unsqueeze(-3), (0, right - 1, 0, 0, 0, down - 1))       # (..., rows, down, columns, right)
        return F.pad(out.reshape(*x.shape[:-2], rows * down, columns * right), (0, beside + 1 - right, 0, below + 1 - down))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra={self.extra}"


MAKES = ("input", "conv", "linear", "add", "mul", "mean", "cat", "table", "fill", "softmax")
FUSES = ("conv", "linear", "add", "mul", "mean")
VIEWS = ("flatten", "reshape", "permute", "slice", "parts")

LAYER_KINDS = {  # by the module's exact class: a subclass may compute something else
    nn.Conv1d: "conv", nn.Conv2d: "conv", nn.Linear: "linear", nn.BatchNorm1d: "batchnorm", nn.BatchNorm2d: "batchnorm",
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.MaxPool1d: "maxpool", nn.MaxPool2d: "maxpool", nn.AvgPool1d: "mean", nn.AvgPool2d: "mean",
    nn.AdaptiveAvgPool1d: "mean", nn.AdaptiveAvgPool2d: "mean", nn.Flatten: "flatten", nn.Unflatten: "reshape",
    nn.ChannelShuffle: "permute",
    nn.ZeroPad1d: "pad", nn.ZeroPad2d: "pad", nn.ConstantPad1d: "pad", nn.ConstantPad2d: "pad", nn.ConstantPad3d: "pad",
    Stretch: "stretch", nn.Softmax: "softmax",
    **dict.fromkeys((nn.LeakyReLU, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh, nn.Hardtanh, nn.ELU, nn.SELU,
                     nn.CELU, nn.Softplus, nn.Softsign, nn.Mish, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
                     nn.Threshold), "table"),
}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)  # in evaluation
NOTHING_CALLS = ("contiguous", "clone", "detach", "float", torch.clone, torch.detach)       # in float32
CASTS = ("float", "to", "type", "type_as", "cpu")                                           # to float32, on the CPU, they do nothing
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)

_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAXPOOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_SOFTMAX = ("dim", "_stacklevel", "dtype")
AS_MODULE = {  # functions and methods that are a layer: the layer, and the names of their arguments behind the tensor
    F.relu: (nn.ReLU, ("inplace",)), torch.relu: (nn.ReLU, ()), "relu": (nn.ReLU, ()), F.relu6: (nn.ReLU6, ("inplace",)),
    F.max_pool2d: (nn.MaxPool2d, _MAXPOOL), torch.max_pool2d: (nn.MaxPool2d, _MAXPOOL), F.max_pool1d: (nn.MaxPool1d, _MAXPOOL),
    torch.max_pool1d: (nn.MaxPool1d, _MAXPOOL), F.avg_pool2d: (nn.AvgPool2d, _POOL), F.avg_pool1d: (nn.AvgPool1d, _POOL[:5]),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)), F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    torch.flatten: (nn.Flatten, ("start_dim", "end_dim")), "flatten": (nn.Flatten, ("start_dim", "end_dim")),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")), F.elu: (nn.ELU, ("alpha", "inplace")), F.selu: (nn.SELU, ("inplace",)),
    F.celu: (nn.CELU, ("alpha", "inplace")), F.silu: (nn.SiLU, ("inplace",)), F.mish: (nn.Mish, ("inplace",)),
    F.gelu: (nn.GELU, ("approximate",)), F.hardswish: (nn.Hardswish, ("inplace",)), F.hardsigmoid: (nn.Hardsigmoid, ("inplace",)),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")), F.softsign: (nn.Softsign, ()), F.logsigmoid: (nn.LogSigmoid, ()),
    F.sigmoid: (nn.Sigmoid, ()), torch.sigmoid: (nn.Sigmoid, ()), "sigmoid": (nn.Sigmoid, ()),
    F.tanh: (nn.Tanh, ()), torch.tanh: (nn.Tanh, ()), "tanh": (nn.Tanh, ()),
    F.softmax: (nn.Softmax, _SOFTMAX), torch.softmax: (nn.Softmax, ("dim", "dtype")), "softmax": (nn.Softmax, ("dim", "dtype")),
    F.channel_shuffle: (nn.ChannelShuffle, ("groups",)), torch.channel_shuffle: (nn.ChannelShuffle, ("groups",)),
}
DEFAULTS = {nn.Flatten: {"start_dim": 0}}                                                   # where the function's is not the module's
IN_PLACE = {  # the result is written over the operand
    operator.iadd: operator.add, "add_": "add", operator.imul: operator.mul, "mul_": "mul", operator.isub: operator.sub, "sub_": "sub",
    operator.itruediv: operator.truediv, "div_": "div", torch.relu_: F.relu, "relu_": "relu", "sigmoid_": "sigmoid",
    torch.sigmoid_: torch.sigmoid, "tanh_": "tanh", torch.tanh_: torch.tanh, F.leaky_relu_: F.leaky_relu, F.elu_: F.elu,
    F.hardtanh_: F.hardtanh,
    "clamp_": "clamp", torch.clamp_: torch.clamp, "neg_": "neg", "square_": "square", "abs_": "abs", "exp_": "exp",
    F.relu_: F.relu, F.selu_: F.selu, F.celu_: F.celu,
}

ADD, MUL = (operator.add, torch.add, "add"), (operator.mul, torch.mul, "mul", torch.multiply, "multiply")
SUB = (operator.sub, torch.sub, "sub", torch.subtract, "subtract")                          # a - b of tensors is noted as a + (-b)
DIV = (operator.truediv, torch.div, "div", torch.divide, "divide", torch.true_divide, "true_divide")
_NAMES = ("neg", "negative", "abs", "absolute", "square", "pow", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log2", "log10",
          "log1p", "sin", "cos", "erf", "clamp", "clip", "clamp_min", "clamp_max")
ONE_NUMBER = (  # with numbers beside the tensor, functions of one number
    *ADD, *MUL, *SUB, *DIV, operator.neg, operator.pow, operator.abs,
    *(call for name in _NAMES for call in (getattr(torch, name), name)),
)
RESHAPES = ("view", "reshape", torch.reshape, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "unflatten", torch.unflatten)
PERMUTES = ("permute", torch.permute, "transpose", torch.transpose, "movedim", torch.movedim, "swapaxes", torch.swapaxes)
PARTS = ("chunk", torch.chunk, "split", torch.split)
NAMED = {"dim", "dims", "shape", "keepdim", "split_size_or_sections", "chunks", "dim0", "dim1", "sizes", "source", "destination", "axis"}
CATS, MEANS = (torch.cat, torch.concat, torch.concatenate), ("mean", torch.mean)
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
              operator.getitem, math.prod)


def kind(traced: fx.GraphModule, node: fx.Node) -> str:
    """What a node is (the table above); ValueError for what no quantized network may hold."""
    found = call_kind(traced, node)
    if node.op == "output" and not isinstance(node.args[0], fx.Node):
        raise ValueError("the network returns several values, and may return one tensor.")
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        if getattr(module, "return_indices", False):
            raise ValueError(f"{node.target} returns the places of the maxima too (return_indices=True), and may return one tensor.")
        what = f"{node.target}, a {type(module).__name__}"
    elif node.op == "get_attr":
        what = f"{node.target}, which forward reads itself"
    elif node.target is getattr:
        what = f"{node.name}, a reading of .{node.args[1]}"
    else:
        what = f"{node.name}, a call of {getattr(node.target, '__name__', node.target)}"
    if found is None:
        known = ", ".join(c.__name__ for c in LAYER_KINDS if c is not Stretch)
        raise ValueError(f"{what}, cannot be quantized: a network may hold {known}, ConvTranspose2d, Dropout, Identity, sums, products, "
                         "means and concatenations of tensors, functions of one number, other views of a tensor.")
    return found


def call_kind(traced: fx.GraphModule, node: fx.Node) -> str | None:
    """The kind of a node, None for what is not in the table."""
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        found = LAYER_KINDS.get(type(module)) if len(node.args) == 1 and not node.kwargs else None
        return "fill" if found == "pad" and getattr(module, "value", 0) != 0 else found
    if node.op not in ("call_function", "call_method"):
        return None
    if is_number(node, {}):
        return "size"
    target, first = node.target, node.args[0] if node.args else None
    tensors = [n for n in node.all_input_nodes if not is_number(n, {})]
    if target in CATS:
        return "cat" if _lists_tensors(node) else None
    if first in tensors and target is operator.getitem:
        whole = isinstance(node.args[1], int) if _makes_parts(first) else _plain_index(node.args[1])
        return "slice" if whole else None
    if any(_makes_parts(n) for n in tensors):
        return None
    if first in tensors and len(tensors) == 1 and set(node.kwargs) <= NAMED:
        told = _flat((*node.args[1:], *node.kwargs.values()))
        numbers = all(isinstance(a, int) or a is None for a in told)                        # no size of the image, no dtype
        sizes = all(isinstance(a, int | fx.Node) for a in told)
        for kind, targets, fits in (("reshape", RESHAPES, sizes), ("permute", PERMUTES, numbers), ("parts", PARTS, numbers),
                                    ("mean", MEANS, numbers)):
            if target in targets:
                return kind if fits else None
    return _with_numbers(node, tensors)


def _makes_parts(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target in PARTS


def _flat(values) -> list:
    return [v for value in values for v in (value if isinstance(value, (tuple, list)) else (value,))]


def is_number(node: fx.Node, known: dict[fx.Node, bool]) -> bool:
    """Whether a node is a size of a tensor, or computed from such sizes alone."""
    if node not in known:
        first = node.args[0] if node.args else None
        known[node] = node.op in ("call_function", "call_method") and (
            node.target in ("size", "dim") and node.op == "call_method" or node.target is getattr and node.args[1:] == ("shape",)
            or node.target in ARITHMETIC and isinstance(first, fx.Node | int) and bool(node.all_input_nodes)
            and all(is_number(n, known) for n in node.all_input_nodes))
    return known[node]


def _lists_tensors(node: fx.Node) -> bool:
    """Whether torch.cat is given tensors one by one, and a dimension that is a number."""
    terms = node.args[0] if node.args else node.kwargs.get("tensors")
    listed = isinstance(terms, (list, tuple)) and all(isinstance(n, fx.Node) for n in terms) and set(node.kwargs) <= {"dim", "tensors"}
    return listed and isinstance(node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0), int)


def _with_numbers(node: fx.Node, tensors: list[fx.Node]) -> str | None:
    """A sum or product of two tensors, or a function of one tensor's numbers."""
    given = (*node.args, *node.kwargs.values())
    if len(node.args) == 2 and not node.kwargs and all(a in tensors for a in node.args):
        return "add" if node.target in ADD else "mul" if node.target in MUL else "sub" if node.target in SUB else None
    numbers = [a for a in given if not (isinstance(a, fx.Node) and a in tensors)]
    alone = len(tensors) == 1 and len(given) - len(numbers) == 1 and all(a is None or isinstance(a, (int, float)) for a in numbers)
    return "table" if alone and node.target in ONE_NUMBER else None


def _plain_index(index) -> bool:
    """Whether x[index] keeps the images, and every index is a number, a slice between numbers, None or an ellipsis."""
    items = index if isinstance(index, tuple) else (index,)
    slices = [i for i in items if isinstance(i, slice)]
    plain = all(isinstance(i, int | slice | None) and not isinstance(i, bool) or i is Ellipsis for i in items)
    ends = all(end is None or isinstance(end, int) for i in slices for end in (i.start, i.stop, i.step))
    return plain and ends and items[0] in (slice(None), Ellipsis) and all(i.step is None or i.step > 0 for i in slices)
