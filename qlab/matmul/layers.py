"""A linear layer in INT8 (Jacob et al. 2018, section 2.2; Dettmers et al. 2022, section 2.1, vector-wise quantization; Yao et al. 2022).

    y[m, n] = s_x[m] s_w[n] (sum over k of (q_x[m, k] - z_x[m]) q_w[n, k]) + b[n]

The weights are quantized once, symmetrically, one scale an output channel n. The activations are quantized when they come:

    activations="token"     one symmetric scale a row m, found from that row: nothing to calibrate
    activations=(s, z)      one given scale and zero-point for all rows ("static"), from calibration: no pass to find a range
    activations=None        not at all: weights alone are int8 ("weight-only"), multiplied in the activations' own precision

Neither scale depends on k, so both come out of the sum, and what is summed are integers. No integer stands for NaN or infinity: a row of x
that holds one has the scale NaN, and so NaN for all its outputs, in every mode that quantizes activations; other rows do not notice.
"""

import math

import torch
from torch import nn

from qlab.matmul import product, reference
from qlab.quant import linear, settled
from qlab.quant.layout import check_finite

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Int8Linear(settled.Settled):
    """A linear layer with int8 weights, made from an nn.Linear by `Int8Linear.from_float`.

    codes: int8 (out_features, in_features); scale: float32 (out_features,); column_sums: int32 (out_features,), of the codes along k;
    bias: (out_features,) or None; activations: "token", a pair (scale, zero_point), or None; relu: applied at the end, in the epilogue.
    Input (..., in_features) in float32, float16 or bfloat16; output (..., out_features) of the same dtype. For inference: no gradients.

    half(), double() and the like leave all of it as it is. A state dict holds the mode (token, static, weight-only) and relu, and loads
    only into a layer that has the same, ValueError otherwise; a static layer takes over the saved scale and zero-point.

    Where ONNX Runtime computes (see `product`), it keeps the codes packed for it as well, as many bytes again, until they change.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, -0.5]])
    >>> Int8Linear.from_float(layer)(torch.tensor([[2.0, 4.0]])).shape
    torch.Size([1, 1])
    """

    _packed = None

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None, activations="token",
                 relu: bool = False, backend: str = "auto"):
        super().__init__()
        product.choose("cpu", backend)  # raises for an unknown one
        self.activations = check_activations(activations)
        self.relu, self.backend = relu, backend
        self.out_features, self.in_features = codes.shape
        if activations is not None and self.in_features >= reference.MAX_K // 2:  # (q - z) may be twice as large as q
            raise ValueError(f"in_features is {self.in_features:,}, and must be below {reference.MAX_K // 2:,}: sums must fit into int32.")
        with torch.inference_mode(False):  # a tensor made in inference mode does not count its changes
            self.register_buffer("codes", codes.clone() if codes.is_inference() else codes)
        self.register_buffer("scale", scale.float())
        self.register_buffer("column_sums", codes.sum(1, dtype=torch.int32))
        self.register_buffer("bias", bias)

    @classmethod
    def from_float(cls, layer: nn.Linear, activations="token", relu: bool = False, backend: str = "auto") -> "Int8Linear":
        """The INT8 layer of a float one. Raises TypeError if it is no nn.Linear; ValueError if its weights are not finite in float32, too
        long or on the meta device, or do not say all of what it computes: it has hooks or a forward of its own, or its weight is made
        anew in each forward."""
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer is {type(layer).__name__}, and must be torch.nn.Linear.")
        if why := why_other(layer):
            raise ValueError(f"the layer cannot be made INT8: {why}.")
        if layer.weight.is_meta:
            raise ValueError("the layer cannot be made INT8: its weight is on the meta device, without values.")
        if not layer.weight.isfinite().all():
            raise ValueError("the layer's weight holds NaN or infinity, and must be finite everywhere.")
        if not layer.weight.float().isfinite().all():
            largest = layer.weight.detach().abs().max().item()
            raise ValueError(f"the layer's weight is {layer.weight.dtype} and as large as {largest:.4g}, and must be below "
                             f"{torch.finfo(torch.float32).max:.4g}, float32's largest number.")
        q = linear.quantize(layer.weight.detach().float(), 8, "symmetric", axis=0)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return cls(q.codes.to(torch.int8).contiguous(), q.scale.reshape(-1).float().contiguous(), bias, activations, relu, backend)

    def settings(self) -> dict:
        return {"activations": "static" if isinstance(self.activations, tuple) else self.activations, "relu": bool(self.relu)}

    def get_extra_state(self) -> torch.Tensor:
        return settled.as_tensor(self.settings() | {"static": self.activations if isinstance(self.activations, tuple) else None})

    def set_extra_state(self, state: torch.Tensor) -> None:
        if isinstance(self.activations, tuple):
            self.activations = check_activations(settled.as_settings(state).get("static") or ())  # () is refused

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype not in FLOATS:
            raise TypeError(f"x has dtype {x.dtype}, and must be one of {', '.join(map(str, FLOATS))}.")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}, and its last size must be in_features, {self.in_features}.")
        if x.device != self.codes.device:
            raise ValueError(f"x is on {x.device} and the layer on {self.codes.device}: they must be on one device.")
        rows = x.reshape(math.prod(x.shape[:-1]), self.in_features)
        fused = product.choose(x.device.type, self.backend)[0] == "triton"
        y = self._weight_only(rows, fused) if self.activations is None else self._int8(rows, fused)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _int8(self, x: torch.Tensor, fused: bool) -> torch.Tensor:
        if fused:
            from qlab.matmul import triton
        zero_point = column_sums = None
        if self.activations == "token":
            codes, scale = triton.quantize_rows(x) if fused else quantize_rows(x)
        else:
            s, z = self.activations
            codes, scale = _static_codes(x, s, z), torch.full((len(x),), s, dtype=torch.float32, device=x.device)
            scale.masked_fill_(~_finite_rows(x), math.nan)
            if z:
                zero_point, column_sums = torch.full((1,), z, dtype=torch.int32, device=x.device), self.column_sums
        finish = (scale, self.scale, self.bias, zero_point, column_sums, self.relu, x.dtype)
        if fused:
            return triton.scaled_matmul(codes, self.codes.T, *finish)
        return reference.epilogue(self._product(codes), *finish)

    def _product(self, codes: torch.Tensor) -> torch.Tensor:
        plain = self.codes.device.type != "cpu" or self.codes.is_inference() or not self.codes.numel()
        if plain or product.choose("cpu", self.backend)[0] != "onnxruntime":
            return product.int8_matmul(codes, self.codes.T, self.backend)
        from qlab.matmul import onnxruntime

        return onnxruntime.matmul(codes, self.codes.T, self._packed_weights())

    def _packed_weights(self) -> tuple:
        """The weights as ONNX Runtime reads them fastest, packed at the first product and anew when they, or the threads, have changed."""
        from qlab.matmul import onnxruntime

        state = (self.codes._version, torch.get_num_threads())  # the version counts changes in place
        if self._packed is None or self._packed[0] is not self.codes or self._packed[1] != state:
            self._packed = (self.codes, state, onnxruntime.pack(self.codes.T))
        return self._packed[2]

    def __getstate__(self) -> dict:  # copies and files hold the codes alone
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def _weight_only(self, x: torch.Tensor, fused: bool) -> torch.Tensor:
        if fused:
            from qlab.matmul import triton

            y = triton.weight_only(x, self.codes, self.scale, self.bias)
        else:  # in float32, as in the kernel: right, and no faster than a layer of floats; sums of codes can be above float16's 65,504
            y = (x.float() @ self.codes.float().T) * self.scale
            y = (y if self.bias is None else y + self.bias.float()).to(x.dtype)
        return y.relu() if self.relu else y

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"activations={self.activations}")


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 codes, one scale a row: float (M, K) to int8 (M, K) and float32 (M,), computed in float32.

    A row of zeros has scale 1. A row that holds NaN or infinity has scale NaN and codes 0: no codes stand for it.

    >>> quantize_rows(torch.tensor([[1.0, -2.0], [0.0, 0.0], [float("inf"), 1.0]]))
    (tensor([[  64, -127],
            [   0,    0],
            [   0,    0]], dtype=torch.int8), tensor([0.0157, 1.0000,    nan]))
    """
    x = x.float()
    peak = torch.maximum(x.amax(1), -x.amin(1)) if x.shape[1] else x.new_zeros(x.shape[0])  # NaN if one is NaN
    finite = peak.isfinite()
    scale = torch.where(peak == 0, 1.0, (peak / 127).clamp(min=torch.finfo(torch.float32).tiny))
    scale.masked_fill_(~finite, math.nan)
    codes = (x / scale[:, None]).round_().to(torch.int8)  # from -127 to 127 without a clamp: the quotient is 127 and a rounding at most
    return codes.mul_(finite[:, None]), scale  # NaN has become some integer, and which depends on the machine


def quantize_static(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """int8 codes round(x / scale) + zero_point, saturated to [-128, 127].

    Raises ValueError for NaN or infinity in x, a scale that is not finite and above 0, or a zero_point that is no integer from -128 to 127.

    >>> quantize_static(torch.tensor([0.0, 1.0, 100.0]), 0.5, -10)
    tensor([-10,  -8, 127], dtype=torch.int8)
    """
    try:
        scale, zero_point = check_activations((scale, zero_point))
    except ValueError:
        raise ValueError(f"scale is {scale!r} and zero_point {zero_point!r}, and they must be a finite number above 0 and an integer from "
                         "-128 to 127.") from None
    if x.numel():
        check_finite(*x.aminmax())
    return _static_codes(x, scale, zero_point)


def _static_codes(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return (x.float() / scale).round_().add_(zero_point).clamp_(-128, 127).to(torch.int8)


def _finite_rows(x: torch.Tensor) -> torch.Tensor:
    """(M, K) to bool (M,): which rows hold no NaN and no infinity."""
    if not x.numel():
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    return x.amin(1).isfinite() & x.amax(1).isfinite()  # NaN if one is NaN; some 40 times as fast as aminmax(dim=1) on a CPU


def check_activations(activations) -> str | tuple[float, int] | None:
    """"token", None or (scale, zero_point), as float and int; ValueError for anything else."""
    if activations is None or activations == "token":
        return activations
    try:
        scale, zero_point = float(activations[0]), int(activations[1])
        if len(activations) == 2 and 0 < scale < float("inf") and zero_point == activations[1] and -128 <= zero_point <= 127:
            return scale, zero_point
    except (TypeError, ValueError, IndexError, KeyError):
        pass
    raise ValueError(f"activations is {activations!r}, and must be 'token', None, or (scale above 0, integer zero_point from -128 to 127).")


def why_other(layer: nn.Linear) -> str:
    """Why the layer may compute something else than its weight and bias say, or ""."""
    for name in ("weight", "bias"):
        if name not in layer._parameters:  # torch.nn.utils.prune, weight_norm, spectral_norm, parametrize
            return f"its {name} is made anew in each forward, so make it a parameter first (prune.remove, remove_parametrizations)"
    if "forward" in vars(layer) or type(layer).forward is not nn.Linear.forward:
        return "it has a forward of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "it has hooks, which would be lost"
    return ""
