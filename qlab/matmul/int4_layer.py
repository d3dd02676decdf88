"""A linear layer with packed weights: 4 bits each (2 and 8, too), activations as they come (`packed`, `int4`).

    y  =  x @ dequantize(weight).T + bias

The same layer serves whatever chose the codes: rounding to nearest (`from_float`), or a QTensor of any method (`from_quantized`).
"""

from collections.abc import Mapping

import torch
from torch import nn

from qlab.matmul import int4, swap
from qlab.matmul.layers import why_other
from qlab.matmul.packed import PackedWeights, pack
from qlab.quant import linear, settled
from qlab.quant.layout import as_float
from qlab.quant.qtensor import QTensor

PARTS = ("codes", "scale", "zero_point")


class Int4Linear(settled.Settled):
    """A linear layer with packed weights, made by `from_float` or `from_quantized`.

    codes, scale, zero_point, bits, group_size: as in `PackedWeights`; bias: (out_features,) or None; backend, accuracy_level: of
    `int4.int4_matmul`. Input (..., in_features) in float32, float16 or bfloat16; output (..., out_features) of the same dtype. For
    inference: no gradients.

    half(), double() and the like leave all of it as it is. A state dict loads only into a layer of the same bits, group size and
    zero-points, ValueError otherwise. What a backend makes of the weights for itself is in no copy and no file: as many bytes again with
    torch, between two and three times as many with ONNX Runtime.

    >>> layer = Int4Linear.from_float(nn.Linear(64, 10))
    >>> layer, layer(torch.ones(3, 64)).shape
    (Int4Linear(in_features=64, out_features=10, bias=True, bits=4, group_size=32), torch.Size([3, 10]))
    """

    _kept: PackedWeights | None = None

    def __init__(self, weights: PackedWeights, bias: torch.Tensor | None = None, backend: str = "auto", accuracy_level: int = 4):
        super().__init__()
        int4.choose("cpu", backend, accuracy_level)  # raises for unknown ones
        self.backend, self.accuracy_level = backend, accuracy_level
        self.bits, self.group_size = weights.bits, weights.group_size
        self.out_features, self.in_features = weights.shape
        for name in PARTS:
            self.register_buffer(name, getattr(weights, name))
        self.register_buffer("bias", bias)

    @classmethod
    def from_float(cls, layer: nn.Linear, bits: int = 4, group_size: int | None = 32, scheme: str = "symmetric",
                   scale_dtype: torch.dtype = torch.float16, backend: str = "auto", accuracy_level: int = 4) -> "Int4Linear":
        """The layer with its weights rounded to nearest, a scale for each group of a row, or (group_size=None) each row.

        bits, scheme, scale_dtype: of `linear.quantize`; bits up to 8. Raises TypeError if layer is no nn.Linear; ValueError where
        quantize does (a group size that does not divide in_features, weights that are not finite), for more bits, for a weight on the
        meta device, and for a layer that computes something else than its weight says: it has hooks or a forward of its own, or its
        weight is made anew in each forward.
        """
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer is {type(layer).__name__}, and must be torch.nn.Linear.")
        if why := why_other(layer):
            raise ValueError(f"the weights of the layer cannot be packed: {why}.")
        if layer.weight.is_meta:
            raise ValueError("the weights of the layer cannot be packed: they are on the meta device, without values.")
        q = linear.quantize(layer.weight.detach(), bits, scheme, axis=0, group_size=group_size, scale_dtype=scale_dtype)
        return cls.from_quantized(q, layer.bias, backend, accuracy_level)

    @classmethod
    def from_quantized(cls, q: QTensor, bias: torch.Tensor | None = None, backend: str = "auto", accuracy_level: int = 4) -> "Int4Linear":
        """The layer of a quantized weight (out_features, in_features), whatever method made it, and a bias (out_features,).

        Raises what `packed.pack` does, TypeError for a bias that is not floating point, and ValueError for one of another shape.

        >>> q = linear.quantize(torch.tensor([[7.0, -3.0]]), 4, "symmetric", axis=0)
        >>> Int4Linear.from_quantized(q, torch.tensor([1.0]), "reference")(torch.tensor([1.0, 2.0]))
        tensor([2.])
        """
        weights, bias = pack(q), None if bias is None else as_float(bias, "bias")
        if bias is not None and bias.shape != (weights.shape[0],):
            raise ValueError(f"bias has shape {tuple(bias.shape)}, and must be ({weights.shape[0]},), a number for each row of weights.")
        return cls(weights, None if bias is None else bias.clone(), backend, accuracy_level)

    @property
    def weights(self) -> PackedWeights:
        """The buffers as `int4_matmul` takes them; what a backend has made of them stays here as long as they are the same."""
        if self._kept is None or any(getattr(self, name) is not getattr(self._kept, name) for name in PARTS):
            self._kept = PackedWeights(*(getattr(self, name) for name in PARTS), self.bits, self.group_size)
            for name in PARTS:
                if getattr(self, name) is not getattr(self._kept, name):  # made in inference mode, where no change is counted: a copy
                    setattr(self, name, getattr(self._kept, name))
        return self._kept

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def settings(self) -> dict:
        kind = None if self.zero_point is None else "packed" if self.zero_point.dtype == torch.uint8 else "real"
        return {"bits": self.bits, "group_size": self.group_size, "zero_points": kind}

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = int4.int4_matmul(x, self.weights, self.backend, self.accuracy_level)
        return y if self.bias is None else (y.float() + self.bias.float()).to(y.dtype)

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, bits={self.bits}, "
                f"group_size={self.group_size}")


def pack_linears_(model: nn.Module, tensors: Mapping[str, QTensor], backend: str = "auto", accuracy_level: int = 4) -> dict[str, str]:
    """Puts an Int4Linear with these weights in the place of each linear layer that tensors names, in place; what was left, and why.

    tensors: the weight of each layer, by the layer's name. A layer is left if it is no nn.Linear, or its weight cannot be packed. Raises,
    before anything is changed, TypeError for what is no module and for weights that are no QTensors by name; ValueError for a name that is
    no part of the model, the model itself, a weight of another shape, and an unknown backend or level.

    >>> model = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> pack_linears_(model, {"0": linear.quantize(model[0].weight.detach(), 4, "symmetric", axis=0, group_size=32)})
    {}
    >>> model[0]
    Int4Linear(in_features=64, out_features=10, bias=True, bits=4, group_size=32)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    if not isinstance(tensors, Mapping) or not all(isinstance(q, QTensor) for q in tensors.values()):
        raise TypeError("tensors must be QTensors by the names of layers, as a quantized network's tensors are.")
    int4.choose("cpu", backend, accuracy_level)
    modules, made, left = dict(model.named_modules(remove_duplicate=False)), {}, {}
    for name, q in tensors.items():
        layer = modules.get(name)
        if not name:
            raise ValueError("'' is the model itself, which cannot be replaced in place: use Int4Linear.from_quantized.")
        if layer is None:
            inside = ", ".join(repr(n) for n, m in modules.items() if n and isinstance(m, nn.Linear))
            raise ValueError(f"{name!r} is no layer inside this model: choose among {inside or 'none, for it has none'}.")
        if type(layer) is not nn.Linear:
            left[name] = f"it is a {type(layer).__name__}"
        elif why := why_other(layer):
            left[name] = why
        elif q.shape != layer.weight.shape:
            raise ValueError(f"the weight for {name!r} has shape {tuple(q.shape)}, and must have {tuple(layer.weight.shape)}.")
        else:
            try:
                made[id(layer)] = Int4Linear.from_quantized(q, layer.bias, backend, accuracy_level)
            except ValueError as error:
                left[name] = str(error).rstrip(".")
    for name, module in modules.items():
        if id(module) in made:  # one layer under two names stays one layer
            swap.put(modules, name, made[id(module)])
    return left
