"""BitNet b1.58 (Ma et al. 2024): weights of -1, 0 and 1 from training on, for rounding alone leaves little of a model.

    w_hat  =  gamma * clip(round(w / gamma), -1, 1)         gamma = mean |w|                         eq. 1 to 3, qlab.quant.ternary
    dL/dw  =  dL/dw_hat                                     straight through: as if w_hat were w

The optimiser moves float weights behind the ternary ones, until one crosses half of gamma and its code changes. The gradient passes the
clip, too, as in the paper's code: it would else be 0 beyond 1.5 gamma, where 23 % of normally distributed weights lie. gamma is a
constant for the gradient. Activations, if wanted, are 8 bits a token.

    trained = ternary.prepare(model)                        # a copy with a BitLinear for each linear layer
    training.fit(trained, tokens, steps=150, max_lr=1e-3)
    control = copy.deepcopy(model).requires_grad_(True)     # the honest reference: the same steps, in floats
    training.fit(control, tokens, steps=150, max_lr=1e-3)
    q = ternary.pack(trained)                               # codes, five in a byte; q.model computes what trained does

In the paper a norm stands in each BitLinear, and models are trained so from nothing. Here the model keeps its own norms, and its function
before rounding.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import linear

from qlab.llm import activations
from qlab.llm.targets import check_module, exchange, linear_layers, select
from qlab.llm.weights import quantize_weights
from qlab.nets.plain import LAYERS, plain_copy
from qlab.nets.ptq import Quantized
from qlab.quant import QTensor, ternary
from qlab.quant.layout import check_bits


class BitLinear(nn.Module):
    """A linear layer that computes with ternary weights and trains the floats behind them; weight and bias have nn.Linear's names.

    axis: None, one gamma for the matrix, as in the paper; 0, one for each row. inputs: a `activations.Levels` that x goes through, or None.

    >>> layer = BitLinear(torch.tensor([[0.9, -0.3], [0.1, -0.7]]))
    >>> layer(torch.eye(2))                                                 # gamma 0.5; 0.3 is nearer to it than to 0
    tensor([[ 0.5000,  0.0000],
            [-0.5000, -0.5000]], grad_fn=<MmBackward0>)
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, axis: int | None = None,
                 inputs: nn.Module | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.axis, self.inputs = axis, inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x if self.inputs is None else self.inputs(x), straight_through(self.weight, self.encode().dequantize()), self.bias)

    def encode(self) -> QTensor:
        """The ternary weights: what forward computes with."""
        return ternary.quantize(self.weight, axis=self.axis)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, bias={self.bias is not None}, axis={self.axis}"


def straight_through(weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The values of `rounded`, to the bit, with weight's gradient: that of the identity (Bengio et al. 2013).

    >>> w = torch.tensor([0.3, 2.0], requires_grad=True)
    >>> straight_through(w, w.round()).square().sum().backward()
    >>> w.grad                                                              # 2 * w_hat
    tensor([0., 4.])
    """
    return rounded.detach() + (weight - weight.detach())                                    # weight - itself is exactly 0


def prepare(model: nn.Module, targets: tuple[str, ...] | None = None, axis: int | None = None,
            activation_bits: int | None = None) -> nn.Module:
    """A copy with a BitLinear in the place of linear layers, all of it ready to be trained.

    targets: names, or ends of names ("down"), of any model's linear layers; by default all but those that share an embedding's weight.
    axis: None or 0, of gamma. activation_bits: 2 to 16, symmetric, a scale for each token (the paper: 8); None leaves activations alone.
    Raises ValueError for a target that no layer has, a model without linear layers, another axis, bits, and weights that are not finite.

    >>> prepare(nn.Sequential(nn.Linear(4, 2)), activation_bits=8)
    Sequential(
      (0): BitLinear(
        in_features=4, out_features=2, bias=True, axis=None
        (inputs): Levels(bits=8, per='token')
      )
    )
    """
    copied, layers = select(model, targets)
    if axis is not None and (isinstance(axis, bool) or axis != 0):
        raise ValueError(f"axis is {axis!r}, and must be None, one gamma for a matrix, or 0, one for each row.")
    if activation_bits is not None:
        check_bits(activation_bits, 2)
    for name, layer in layers.items():
        if not bool(layer.weight.isfinite().all()):
            raise ValueError(f"the weight of {name or 'the layer'} holds NaN or infinity, and must be finite everywhere.")

    def make(name, layer):
        inputs = None if activation_bits is None else activations.Levels(activation_bits, "token")
        return BitLinear(layer.weight, layer.bias, axis, inputs)

    return exchange(copied, layers, make).requires_grad_(True)


def pack(model: nn.Module) -> Quantized:
    """The model with ordinary linear layers again, of ternary weights; their codes, and its true bytes: codes five in a byte, and gamma.

    The result's model computes what the given one does; where activations had levels, they have the same (qlab.llm.activations). Raises
    ValueError for a model without BitLinear, weights that are not finite, and activations of two widths.

    >>> q = pack(prepare(nn.Sequential(nn.Linear(100, 10, bias=False))))
    >>> q.nbytes, q.tensors["0"].bits                                       # 1000 / 5 bytes and a float32
    (204, 1.6)
    """
    check_module(model)
    floats = plain_copy(model)
    layers = {name: m for name, m in floats.named_modules() if isinstance(m, BitLinear)}
    if not layers:
        raise ValueError(f"the model, a {type(model).__name__}, has no BitLinear: prepare it first.")
    if len(bits := {layer.inputs.bits for layer in layers.values() if layer.inputs is not None}) > 1:
        raise ValueError(f"activations have {' and '.join(map(str, sorted(bits)))} bits, and must have the same in all layers.")

    def make(name, layer):
        made = nn.Linear(*reversed(layer.weight.shape), layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made

    floats = exchange(floats, layers, make).requires_grad_(False)
    others = tuple(name for name, m in floats.named_modules() if isinstance(m, LAYERS) and name not in layers)
    axes = {name: layer.axis for name, layer in layers.items()}
    q = quantize_weights(floats, {name: lambda w, axis=axis: ternary.quantize(w, axis=axis) for name, axis in axes.items()}, others)
    if not bits:
        return q
    unread = [name for name, m in linear_layers(q.model).items() if name not in layers or layers[name].inputs is None]
    return replace(q, model=activations.quantize(q.model, bits.pop(), "token", skip=tuple(unread)))
