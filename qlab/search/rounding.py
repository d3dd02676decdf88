"""Four ways to round the weights of a network to the same grids, layer after layer: what a better rounding is worth is what they differ by.

    nearest      each weight to the level next to it                                             what the others have to beat
    corrected    nearest, and the mean error of each channel taken out of its bias               Nagel et al. 2019, section 4.2
    gptq         each weight answers for those rounded before it (qlab.llm.gptq)                  Frantar et al. 2022
    adaround     up or down is learned (qlab.search.adaround); with blocks, of several layers for one output, as BRECQ does
                                                                                                 Nagel et al. 2020, Li et al. 2021

The float network and the one that is being quantized run side by side on the calibration images. When they reach a unit (a layer, or a
block: qlab.search.units), its weights are rounded for the inputs that it then gets in the quantized network, so that the next units are
rounded for what these errors have made of theirs. Batch norm is folded first: the folded weight is what a device stores.

BRECQ weighs each output of a block by its squared gradient of the loss (its eq. 10); here all outputs count alike, and no labels are used.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import fx, nn

from qlab.errors import first_line
from qlab.llm.gptq import quantize_matrix
from qlab.llm.hessian import hessian_of
from qlab.llm.weights import RANGES, choose, quantize_weights, round_to_nearest
from qlab.nets.calibration import batches_of, check_norms
from qlab.nets.equalize import subtract_mean_error
from qlab.nets.graph import Walk, kind, trace
from qlab.nets.plain import LAYERS, memory_of
from qlab.nets.ptq import Quantized, fold_batch_norm, naming_weight
from qlab.quant import QTensor
from qlab.quant.layout import check_name
from qlab.search.adaround import BITS, check_options, learn, squared_error
from qlab.search.units import Blocks, Unit, runner, units

METHODS = ("nearest", "corrected", "gptq", "adaround")
OPTIONS = {"steps": 1, "batch": 1, "lr": 1, "price": 0, "seed": 0}                        # of adaround, each with a value that fits


class Errors(NamedTuple):
    """The squared error of a unit's output on the calibration images, as a part of its power: of the nearest codes, and of those found.

    Both for the inputs that the unit gets in the quantized network, and against its output in the float one.
    """

    nearest: float
    found: float


@dataclass(frozen=True)
class Rounded(Quantized):
    """What was made of a network (see qlab.nets.ptq.Quantized; its model has no batch norm), and the errors of each unit by name."""

    errors: dict[str, Errors] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        lines = [f"{'':{width}}  nearest    found     error of the output"]
        lines += [f"{name:{width}}  {100 * e.nearest:6.2f}%  {100 * e.found:6.2f}%" for name, e in self.errors.items()]
        return "\n".join([*lines, super().__str__()])


@torch.inference_mode(False)
def quantize(model: nn.Module, calibration: torch.Tensor | Iterable[torch.Tensor], bits: int | Mapping[str, int] | None = None,
             method: str = "adaround", ranges: str | Mapping[str, str] = "mse", scheme: str = "symmetric", group_size: int | None = None,
             scale_dtype: torch.dtype | None = None, blocks: Blocks = None, skip: tuple[str, ...] = (), **options) -> Rounded:
    """A copy of the network, batch norm folded, whose convolutions and linear layers have codes that one of METHODS found.

    calibration: images (n, ...), or batches of one shape; training images, never test images. All go through both networks at once: the
    memory is about five times that of the largest map, for all of them. bits, ranges: for all layers, or for each by its name. ranges,
    scheme, group_size, scale_dtype: the grids, as in qlab.llm.weights.round_to_nearest. blocks, for adaround: None, "residual" or groups of
    layers' names (qlab.search.units). skip: names of layers that keep their floats. options, for adaround: steps, batch, lr, price, seed
    (qlab.search.adaround.learn). Learning takes steps * batch images a unit, however many there are.

    The result holds tensors by name, which qlab.nets.ptq.quantize takes as its weights, {name: lambda w, q=q: q}, to quantize activations
    too; nbytes; and the errors of each unit. No unit of adaround is worse than nearest for the inputs that it has; for the whole network
    that is no promise. The given model is not changed. The same seed gives the same codes on the same machine.

    Raises ValueError for a network that qlab.nets.graph cannot read, images that it cannot take, NaN or infinity on the way, more than 8
    bits for adaround, and, with the layer's name, a grid that does not fit; TypeError for an unknown option.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> made = quantize(net, torch.rand(64, 1, 4, 4), bits=3, steps=50)
    >>> [error.found <= error.nearest for error in made.errors.values()], made.nbytes    # 68 codes, 6 scales, 6 biases
    ([True, True], 74)
    """
    check_name("method", method, METHODS)
    if method != "adaround" and (options or blocks is not None):
        raise ValueError(f"{next(iter(options), 'blocks')} is for adaround, and method is {method!r}.")
    if unknown := set(options) - set(OPTIONS):
        raise TypeError(f"{min(unknown)} is no option of adaround, which has {', '.join(OPTIONS)}.")
    check_options(**OPTIONS | options)
    images = _together(batches_of(calibration))
    check_norms(model, [images])
    traced = trace(fold_batch_norm(model)).requires_grad_(False)
    names, _ = choose(traced, skip)
    each = {what: _each(names, given, what) for what, given in (("bits", bits), ("ranges", ranges))}
    for of_layer in each["ranges"].values():
        check_name("ranges", of_layer, RANGES)
    layouts = {name: {"bits": each["bits"][name], "ranges": each["ranges"][name], "group_size": group_size, "scheme": scheme,
                      "scale_dtype": scale_dtype} for name in names}
    grids = {}
    for name in names:
        with naming_weight(name):
            grids[name] = round_to_nearest(traced.get_submodule(name).weight, **layouts[name])
    if method == "adaround" and (wide := [name for name, q in grids.items() if q.bits > BITS]):
        raise ValueError(f"bits is {grids[wide[0]].bits} for {wide[0]}, and must be at most {BITS} for adaround.")
    parts = units(traced, blocks, skip)
    working, tensors, errors = copy.deepcopy(traced), {}, {}
    holders = {}                                                                            # layers that hold one weight
    for name in names:
        holders.setdefault(memory_of(traced.get_submodule(name).weight), []).append(name)

    def round_unit(unit: Unit, x: torch.Tensor, x_hat: torch.Tensor) -> None:
        nearest = {name: grids[name] for name in unit.layers}
        run, y = runner(working, unit), _outputs(traced, unit, x)
        weights = {name: traced.get_submodule(name).weight for name in unit.layers}
        if method == "gptq":
            (name, weight), = weights.items()
            found = {name: _gptq(weight, hessian_of(x_hat, working.get_submodule(name)), layouts[name])}
        elif method == "adaround":
            found = learn(run, weights, nearest, x_hat, y, _axis(traced, unit), **options)
        else:
            found = nearest
        power = max(y.double().square().sum().item(), torch.finfo(torch.float64).tiny)
        lost = [squared_error(run, {name: q.dequantize() for name, q in qs.items()}, x_hat, y).item() for qs in (nearest, found)]
        errors[unit.name] = Errors(*(value / power for value in lost))
        for first, q in found.items():
            for name in holders[memory_of(traced.get_submodule(first).weight)]:
                tensors[name] = q
                working.get_submodule(name).weight = nn.Parameter(q.dequantize(), requires_grad=False)

    _side_by_side(traced, working, images, parts, round_unit)
    made = quantize_weights(traced, {name: lambda _, q=q: q for name, q in tensors.items()}, skip)
    nbytes = made.nbytes
    if method == "corrected":
        held = [name for name, layer in made.model.named_modules() if isinstance(layer, LAYERS) and layer.bias is not None]
        subtract_mean_error(traced, made.model, list(images.split(128)))
        added = [layer.bias for name, layer in made.model.named_modules() if isinstance(layer, LAYERS) and name not in held]
        nbytes += sum(bias.numel() * bias.element_size() for bias in added if bias is not None)
    return Rounded(**vars(made) | {"nbytes": nbytes}, errors=errors)


@torch.no_grad()
def _side_by_side(traced: fx.GraphModule, working: fx.GraphModule, images: torch.Tensor, parts: list[Unit],
                  round_unit: Callable[[Unit, torch.Tensor, torch.Tensor], None]) -> None:
    """Run both networks node by node; round_unit(unit, input in the float network, input in the other) before its first node runs."""
    begins, walks = {unit.nodes[0]: unit for unit in parts}, (Walk(traced), Walk(working))
    twins = dict(zip(traced.graph.nodes, working.graph.nodes))                              # the same node, in both
    for walk in walks:
        walk.args_iter = iter([images])
    for pair in twins.items():
        if pair[0].op == "output":
            return
        if pair[0] in begins:
            unit = begins[pair[0]]
            round_unit(unit, walks[0].env[unit.source], walks[1].env[twins[unit.source]])
        for walk, node in zip(walks, pair):
            try:
                walk.env[node] = walk.run_node(node)
            except (RuntimeError, IndexError, TypeError) as error:
                raise ValueError(f"the network cannot take the calibration images, {images.dtype} {tuple(images.shape)} "
                                 f"({first_line(error)}).") from None
            for read in walk.user_to_last_uses.get(node, []):
                del walk.env[read]


def _outputs(traced: fx.GraphModule, unit: Unit, x: torch.Tensor) -> torch.Tensor:
    """What the unit gives in the float network, for its own inputs there."""
    run = runner(traced, unit)
    try:
        y = torch.cat([run({}, some) for some in x.split(128)])
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"the network cannot take the calibration images: {unit.name} is given {tuple(x.shape)} ({first_line(error)})."
                         ) from None
    if not y.isfinite().all():
        raise ValueError(f"the outputs of {unit.name} on the calibration images hold NaN or infinity, and must be finite.")
    return y


def _gptq(weight: torch.Tensor, hessian: torch.Tensor, layout: dict) -> QTensor:
    """A convolution is a linear layer of the patches that its filters meet; each group of channels has a Hessian of its own."""
    q = quantize_matrix(weight.flatten(1), hessian, **layout)
    return replace(q, codes=q.codes.reshape(weight.shape))


def _axis(traced: fx.GraphModule, unit: Unit) -> int | None:
    """Where the output of one layer, perhaps with its ReLU, has its channels; None for a block."""
    layer, *others = (kind(traced, node) for node in unit.nodes)
    if layer not in ("conv", "linear") or any(other not in ("relu", "relu6") for other in others):
        return None
    return -1 if layer == "linear" else 1


def _each(names: list[str], given, what: str) -> dict:
    each = dict(given) if isinstance(given, Mapping) else dict.fromkeys(names, given)
    if wrong := sorted(set(each) - set(names)) or sorted(set(names) - set(each)):
        raise ValueError(f"{what} {'names' if wrong[0] in each else 'leaves out'} {', '.join(wrong)}, and must name {', '.join(names)}.")
    return each


def _together(batches: list[torch.Tensor]) -> torch.Tensor:
    if len({batch.shape[1:] for batch in batches}) > 1:
        shapes = ", ".join(str(tuple(batch.shape)) for batch in batches[:4])
        raise ValueError(f"calibration holds batches of shape {shapes}, and they must be equal but for the number of images.")
    return torch.cat(batches)
