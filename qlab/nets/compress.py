"""Deep Compression: prune, let the weights that are left share a few values, write their codes as a Huffman code (Han et al. 2016).

    prune       w <- mask * w, retrained                                   qlab.nets.prune
    share       w = codebook[code], retrained:  dL/dc_k = sum of dL/dw over the weights whose code is k          section 3.3, eq. 3
    encode      the codes, and the gaps between the weights that are left, as Huffman codes                      qlab.nets.huffman

    masks = prune.magnitude(model, 0.9)                        then train, with after_step=prune.hold(model, masks)
    shared = compress.share(model, masks, bits=5)
    shared = compress.fine_tune(model, shared, images, labels, epochs=3, max_lr=1e-3)
    compress.save("model.qlab", model, shared)
    compress.load("model.qlab", MODELS["lenet300"]())

A pruned weight has code 0 and no entry of the codebook: whatever the centroids become, it stays zero.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call

from qlab import saving
from qlab.nets import container
from qlab.nets.left import ByLayer, behind
from qlab.nets.plain import LAYERS, recomputed
from qlab.nets.training import fit, hard_loss
from qlab.quant import kmeans
from qlab.quant.packing import packed_size


@dataclass(frozen=True, eq=False)
class Shared:
    """A weight whose values come from a short table. codes: int32, the weight's shape; 0 is a pruned weight, j is codebook[j - 1].

    >>> Shared(torch.tensor([[0, 2], [1, 2]]), torch.tensor([-0.5, 0.25])).weight()
    tensor([[ 0.0000,  0.2500],
            [-0.5000,  0.2500]])
    """

    codes: torch.Tensor
    codebook: torch.Tensor

    def weight(self) -> torch.Tensor:
        """The weight, differentiable with respect to the codebook: the gradient of a look-up is the sum of eq. 3."""
        codes = self.codes.reshape(-1)
        kept = codes.nonzero()[:, 0]
        values = self.codebook.index_select(0, codes[kept] - 1)                             # codebook[code], summed in one order on the CPU
        return values.new_zeros(len(codes)).scatter(0, kept, values).view(self.codes.shape)


def share(model: nn.Module, masks: Mapping[str, torch.Tensor], bits: int | Mapping[str, int] = 5,
          start: str = "linear") -> ByLayer:
    """Codes and codebook of every layer that has a mask, by layer name: k-means over the weights that the mask keeps.

    masks: bool, of the weights' shapes, True where a weight stays (qlab.nets.prune). bits: at most 2**bits centroids, 1 to 12, for all
    layers or by layer name. start: where k-means starts; "linear" is the paper's choice, "optimal" has the least squared error.
    A centroid that no weight is nearest to is left out. The model is not changed; the result's left names what shares nothing, and why.

    Raises ValueError, by name, for a mask that fits no layer; a weight that is not float32, that another module shares, or that is
    recomputed in each forward (qlab.nets.plain); missing or unfit bits.

    >>> net = nn.Sequential(nn.Linear(4, 1))
    >>> net[0].weight.data = torch.tensor([[0.1, -3.0, 2.0, -3.2]])
    >>> share(net, {"0": net[0].weight.abs() > 1}, bits=1)["0"].codes.tolist()
    [[0, 1, 2, 1]]
    """
    weights = _weights(model, masks)
    if isinstance(bits, Mapping) and set(bits) != set(weights):
        raise ValueError(f"bits names {', '.join(bits)}, and must name the layers that have masks: {', '.join(weights)}.")
    shared = {}
    for name, weight in weights.items():
        width = bits[name] if isinstance(bits, Mapping) else bits
        if width not in range(1, container.MAX_BITS + 1):
            raise ValueError(f"bits is {width!r}, and must be a whole number from 1 to {container.MAX_BITS}.")
        kept = masks[name].to(weight.device).reshape(-1)
        q = kmeans.quantize(weight.detach().reshape(-1)[kept], width, start=start)
        used, index = q.codes.unique(return_inverse=True)
        codes = torch.zeros(weight.numel(), dtype=torch.int32, device=weight.device)
        codes[kept] = index.int() + 1
        shared[name] = Shared(codes.view(weight.shape), q.codebook[used.long()])
    return _by_layer(model, shared)


def apply(model: nn.Module, shared: Mapping[str, Shared]) -> None:
    """Put the shared weights into the model, in place. Raises ValueError where they do not fit, and then changes nothing."""
    weights = _weights(model, {name: layer.codes != 0 for name, layer in shared.items()})
    values = {name: layer.weight() for name, layer in shared.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(values[name])


def fine_tune(model: nn.Module, shared: Mapping[str, Shared], images: torch.Tensor, labels: torch.Tensor, epochs: int, max_lr: float, *,
              loss: Callable = hard_loss, **options) -> ByLayer:
    """Train the centroids, and whatever is no shared weight (biases); codes stay as they are. Returns the new Shared, applied to the model.

    A centroid's gradient is a sum over hundreds of weights, so max_lr must be smaller than for single weights. loss(model, x, y) as for
    fit; options: those of qlab.nets.training.fit (seed, augment, batch_size, ...). Weight decay is off unless given: decay of
    a centroid would not grow with the number of its weights, as its gradient does. Raises ValueError as apply and fit do.
    """
    apply(model, shared)
    trained = {name: replace(layer, codebook=nn.Parameter(layer.codebook.clone())) for name, layer in shared.items()}
    others = [p for key, p in model.named_parameters() if key not in {_key(name) for name in shared} and p.requires_grad]

    def with_shared_weights(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights = {_key(name): layer.weight() for name, layer in trained.items()}           # looked up anew in each step
        return loss(lambda x: functional_call(model, weights, (x,)), x, y)

    fit(model, images, labels, epochs, max_lr, loss=with_shared_weights, **{"weight_decay": 0.0, "name": "centroids"} | options,
        parameters=[*(layer.codebook for layer in trained.values()), *others])
    trained = {name: replace(layer, codebook=layer.codebook.detach()) for name, layer in trained.items()}
    apply(model, trained)
    return _by_layer(model, trained)


def encode(model: nn.Module, shared: Mapping[str, Shared]) -> bytes:
    """The whole network as the content of a file: shared weights as Huffman codes, every other parameter and buffer as it is.

    Raises ValueError where the model's weights are not those of shared (apply them first), for a weight that share refuses, and for a
    parameter or buffer that a file has no place for (qlab.nets.container.pack).
    """
    weights = _weights(model, {name: layer.codes != 0 for name, layer in shared.items()})
    for name, weight in weights.items():
        if not torch.equal(weight.detach(), shared[name].weight().detach()):
            raise ValueError(f"the weight of {name} is not that of shared: call compress.apply(model, shared) first.")
    pairs = {_key(name): (layer.codes, layer.codebook.detach()) for name, layer in shared.items()}
    return container.pack({key: pairs.get(key, tensor) for key, tensor in model.state_dict().items()})


def decode(content: bytes, model: nn.Module) -> nn.Module:
    """Fill the model, of the architecture that was encoded; it is returned in evaluation mode. It is not changed by a content that fails.

    Raises ValueError for content that is damaged, cut off, no compressed network, or of another architecture: other names, shapes or
    dtypes, or different values for what the model's layers share.
    """
    state = model.state_dict()
    if empty := [key for key, tensor in state.items() if isinstance(tensor, torch.Tensor) and tensor.is_meta]:
        raise ValueError(f"{empty[0]} is on the meta device, and can hold no values: move the model to another one first.")
    found = container.unpack(content, {key: tuple(tensor.shape) for key, tensor in state.items()})
    values = {key: Shared(*tensor).weight() if isinstance(tensor, tuple) else tensor for key, tensor in found.items()}
    places = {}
    for key, value in values.items():
        if value.dtype != state[key].dtype:
            raise ValueError(f"the file is of another network: {key} is {value.dtype} in it, and {state[key].dtype} in the model.")
        twin = places.setdefault((state[key].data_ptr(), state[key].shape, state[key].stride()) if value.numel() else key, key)
        if twin != key and container.raw(value) != container.raw(values[twin]):
            raise ValueError(f"the file is of another network: {twin} and {key} are one tensor in the model, and differ in it.")
    for key, value in values.items():
        state[key].copy_(value)                                                             # state holds the model's own tensors
    return model.eval()


def save(path, model: nn.Module, shared: Mapping[str, Shared]) -> int:
    """Write the file, whole or not at all; return its size in bytes. Raises OSError where the place cannot be written, and as encode."""
    content = encode(model, shared)
    saving.write({path: content})
    return len(content)


def load(path, model: nn.Module) -> nn.Module:
    """Fill the model from a file that save wrote, with exactly the weights that were saved; it is returned in evaluation mode.

    Raises FileNotFoundError for a missing file, ValueError for one that is damaged, foreign, or of another architecture.

    >>> import tempfile
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> shared = share(net, {"0": net[0].weight.abs() >= net[0].weight.abs().median()}, bits=1)
    >>> apply(net, shared)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(f"{folder}/net.qlab", net, shared)
    ...     same = load(f"{folder}/net.qlab", nn.Sequential(nn.Linear(4, 2)))
    >>> torch.equal(same[0].weight, net[0].weight)
    True
    """
    try:
        return decode(saving.read(path), model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_shared(path, model: nn.Module) -> ByLayer:
    """Codes and codebooks of a saved file, by layer name; model: of its architecture, it is not changed. Raises as load does."""
    try:
        found = container.unpack(saving.read(path), {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _by_layer(model, {key.removesuffix("weight").removesuffix("."): Shared(*pair) for key, pair in found.items()
                             if isinstance(pair, tuple)})


def parts(path) -> list[container.Part]:
    """What every byte of a saved file is for: the sizes add up to the file's. Raises as load does."""
    try:
        return container.parts(saving.read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def stages(model: nn.Module, shared: Mapping[str, Shared]) -> dict[str, dict[str, int]]:
    """Bytes of each part after each of the three steps, as a file would hold them, without its headers.

    "pruned": float32 values; "shared": codes and gaps of fixed width; "huffman": what save writes. Parts: values, codes, gaps, codebook,
    tables, biases (all that is no shared weight). Each step has the width of the gaps that is best for it.

    >>> net = nn.Linear(100, 8)
    >>> shared = {"": Shared(torch.arange(800).view(8, 100).remainder(10).eq(0).int() * 3, torch.zeros(3))}
    >>> stages(net, shared)["pruned"]                # 80 weights, 9 zeros between them: 4 bits
    {'values': 320, 'gaps': 40, 'biases': 32}
    """
    keys = {_key(name) for name in shared}
    biases = sum(t.numel() * t.element_size() for key, t in model.state_dict().items() if key not in keys)
    found = {"pruned": Counter(), "shared": Counter(), "huffman": Counter()}
    for layer in shared.values():
        centroids = len(layer.codebook)
        choices = [container.relative(layer.codes, centroids, bits) for bits in container.GAP_BITS]
        for stage in ("pruned", "shared"):
            sizes = []
            for r in choices:
                # A filler is a code more: 17 beside 16 centroids take 5 bits each. Wide gaps without fillers may be the better choice.
                symbols = centroids + 1 if (r.kept == 0).any() else centroids
                width = 32 if stage == "pruned" else max(symbols - 1, 1).bit_length()
                sizes.append((packed_size(len(r.kept), width), packed_size(len(r.gaps), max(r.bits, 1))))
            values, gaps = min(sizes, key=sum)
            found[stage].update({"values" if stage == "pruned" else "codes": values, "gaps": gaps})
        found["huffman"].update(min((r.sizes for r in choices), key=lambda sizes: sum(sizes.values())))
        for stage in ("shared", "huffman"):
            found[stage]["codebook"] += 4 * centroids
    return {stage: dict(parts) | {"biases": biases} for stage, parts in found.items()}


def _by_layer(model: nn.Module, shared: Mapping[str, Shared]) -> ByLayer:
    return ByLayer(shared, behind(model, shared, "shared", "it has no mask"))


def _key(layer: str) -> str:
    """The weight's name in a state_dict; a model that is one bare layer names that layer ""."""
    return f"{layer}.weight" if layer else "weight"


def _weights(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    for name, mask in masks.items():
        if name not in layers:
            raise ValueError(f"there is no layer {name!r}: the layers are {', '.join(layers)}.")
        if how := recomputed(layers[name]).get("weight"):
            raise ValueError(f"the weight of {name} is computed anew in each forward, and a file would keep another: make it a parameter "
                             f"first ({how}).")
        weight = layers[name].weight
        if mask.dtype != torch.bool or mask.shape != weight.shape or weight.dtype != torch.float32:
            raise ValueError(f"the weight of {name} is {weight.dtype} of shape {tuple(weight.shape)} and its mask {mask.dtype} of shape "
                             f"{tuple(mask.shape)}: they must be float32 and bool, of one shape.")
        if twins := [other for other in _holders(model, weight) if other != name]:
            raise ValueError(f"{name} and {twins[0]} have one weight in common, and could get two codebooks: untie them first.")
    return {name: layers[name].weight for name in masks}


def _holders(model: nn.Module, weight: torch.Tensor) -> list[str]:
    """The modules that hold the weight as a parameter or buffer, of whatever kind, or another tensor at its place in memory."""
    return [name for name, module in model.named_modules() for tensor in [*module._parameters.values(), *module._buffers.values()]
            if tensor is not None and (tensor is weight or weight.numel() and tensor.data_ptr() == weight.data_ptr() != 0)]
