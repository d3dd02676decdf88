"""The experiments of notebook 11, Deep Compression on LeNet-300-100 and LeNet-5, each part with a record of its own.

    python -m qlab.lab.experiments.compression search NET    which density and bits: decided on 10,000 training images held out
    python -m qlab.lab.experiments.compression final NET     those, on all 60,000 training images: the file, its test accuracy, a control
    python -m qlab.lab.experiments.compression sharing       LeNet-300-100: few bits, three starts, before and after the centroids' training
    python -m qlab.lab.experiments.compression orders        LeNet-300-100: the steps in other orders, and each alone, at the same bytes

NET is lenet300 or lenet5. Pruning is gradual, one threshold for the whole network. What search decides by: of the files at least 40 times
smaller the most accurate on the validation images, of equals the smallest. Test images are looked at once, at the end of final, sharing
and orders, and nothing is chosen by them. orders and search train on 50,000 images, from a float network that has seen no others.
"""

import argparse
import copy
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from qlab.lab import data, measure, runs, zoo
from qlab.nets import compress, prune, prune_schedules
from qlab.nets.models import MODELS
from qlab.nets.training import fit

COMMAND = "python -m qlab.lab.experiments.compression"
HELD_OUT, TIMES = 10_000, 40                                                                # validation images; how much smaller at least
MAX_LR, SHARE_LR = 0.05, 1e-4
PLANS = {  # epochs: of search's float network and its pruning, of final's pruning, of the centroids; densities, bits of (conv, fc)
    "lenet300": {"float": 20, "search": 15, "prune": 15, "share": 2, "densities": (0.05, 0.08, 0.10), "bits": ((0, 3), (0, 4), (0, 5))},
    "lenet5": {"float": 5, "search": 3, "prune": 6, "share": 1, "densities": (0.05, 0.08), "bits": ((6, 4), (8, 5))},
}
BUDGETS, ORDER_EPOCHS = (36_000, 16_000), (5, 1)                                            # bytes; epochs of training, of centroids
SHARING = {"bits": (1, 2, 3), "starts": ("linear", "density", "optimal"), "epochs": 1}


def file_of(name: str) -> Path:
    """The compressed network that final leaves beside its record."""
    return runs.FOLDER / f"compression_{name}.qlab"


@lru_cache
def halves() -> tuple[data.Split, data.Split]:
    """50,000 training images to train on, and 10,000 to decide by, drawn from seed 1."""
    images, labels = data.load("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    kept, held = order[HELD_OUT:], order[:HELD_OUT]
    return data.Split(images[kept], labels[kept]), data.Split(images[held], labels[held])


def train(name: str, model: nn.Module, split: data.Split, epochs: int, what: str, after_step: Callable[[], None] | None = None,
          max_lr: float = MAX_LR) -> nn.Module:
    """The model after some epochs of the zoo's recipe for it."""
    recipe = zoo.RECIPE[name]
    fit(model, *split, epochs, max_lr, seed=1, weight_decay=recipe["weight_decay"], augment=_augment(name), after_step=after_step,
        name=f"{name}: {what}")
    return model


def _augment(name: str) -> Callable | None:
    return zoo.augment if zoo.RECIPE[name]["augmentation"] == zoo.FLIPS else None


def pruned(name: str, model: nn.Module, split: data.Split, density: float, epochs: int) -> tuple[nn.Module, prune.Masks]:
    """A copy of the model with this share of its weights left, and the masks; the sparsity rises for the first half of the epochs."""
    model, steps = copy.deepcopy(model).requires_grad_(True), math.ceil(len(split.labels) / zoo.BATCH_SIZE) * epochs
    masks, after_step = prune_schedules.gradual(model, 1 - density, steps // 2, scope="global")
    return train(name, model, split, epochs, f"density {density:.3f}", after_step), masks


def tuned(name: str, model: nn.Module, shared: dict, split: data.Split, epochs: int) -> tuple[nn.Module, dict]:
    """A copy with the shared weights in it, whose centroids and biases are trained, and the shared weights then."""
    model = copy.deepcopy(model).requires_grad_(True)
    shared = compress.fine_tune(model, shared, *split, epochs, SHARE_LR, seed=2, augment=_augment(name), name=f"{name}: centroids")
    return model, shared


def bits_of(masks: prune.Masks, bits: tuple[int, int]) -> dict[str, int]:
    """The bits of each layer from those of convolutions and of linear layers."""
    return {layer: bits[0] if mask.dim() == 4 else bits[1] for layer, mask in masks.items()}


def float_network(name: str) -> nn.Module:
    """Trained by the zoo's recipe on the 50,000, for as many epochs as the plan says."""
    torch.manual_seed(0)
    return train(name, MODELS[name](), halves()[0], PLANS[name]["float"], "float")


def outcome(model: nn.Module, split: str) -> dict:
    """Which images of "test" or "validation" the model gets right."""
    return runs.outcome(measure.accuracy(model, data.load("test") if split == "test" else halves()[1]))


def further(name: str, reference: nn.Module, split: data.Split, epochs: int) -> nn.Module:
    """The control: a copy of the float network, trained as long as pruning and the centroids were, with nothing removed."""
    model = train(name, copy.deepcopy(reference).requires_grad_(True), split, epochs, "control")
    return train(name, model, split, PLANS[name]["share"], "control", max_lr=SHARE_LR)


def search(name: str) -> None:
    """Every density and bits of the plan, on the 50,000; what is best on the 10,000 goes into the record as "chosen"."""
    plan, reference, rows = PLANS[name], float_network(name), []
    base = {"validation": outcome(reference, "validation"), "nbytes": measure.size_bytes(reference)}
    for density in plan["densities"]:
        model, masks = pruned(name, reference, halves()[0], density, plan["search"])
        left = outcome(model, "validation")
        for bits in plan["bits"]:
            small, shared = tuned(name, model, compress.share(model, masks, bits_of(masks, bits)), halves()[0], plan["share"])
            rows.append({"density": density, "bits": bits, "nbytes": len(compress.encode(small, shared)), "pruned": left["correct"],
                         "validation": outcome(small, "validation")})
    write_search(name, base, rows)


def write_search(name: str, base: dict, rows: list[dict]) -> None:
    """Choose among the rows, and write the record."""
    small_enough = [row for row in rows if TIMES * row["nbytes"] <= base["nbytes"]]
    chosen = min(small_enough, key=lambda row: (-row["validation"]["correct"], row["nbytes"]))
    runs.write(f"compression_search_{name}", f"{COMMAND} search {name}", plan=PLANS[name], max_lr=MAX_LR, share_lr=SHARE_LR, times=TIMES,
               float=base, rows=rows, chosen={"density": chosen["density"], "bits": chosen["bits"]})


def final(name: str) -> None:
    """Deep Compression of the zoo's network with what search chose: each stage's test accuracy and bytes, the file, the control."""
    plan, chosen, split = PLANS[name], runs.load(f"compression_search_{name}")["chosen"], data.load("train")
    reference = zoo.load(name)
    model, masks = pruned(name, reference, split, chosen["density"], plan["prune"])
    before = compress.share(model, masks, bits_of(masks, chosen["bits"]))
    clustered = copy.deepcopy(model)
    compress.apply(clustered, before)
    small, shared = tuned(name, model, before, split, plan["share"])
    size = compress.save(file_of(name), small, shared)
    again = compress.load(file_of(name), MODELS[name]())
    stages = {"float": reference, "pruned": model, "clustered": clustered, "file": again}
    stages = {stage: {"test": outcome(network, "test")} for stage, network in stages.items()}
    content = {
        "chosen": chosen, "plan": plan, "float_sha256": zoo.record(name)["sha256"], "float_nbytes": measure.size_bytes(reference),
        "nbytes": size, "file": file_of(name).name, "crc32": f"{int.from_bytes(file_of(name).read_bytes()[-4:], 'little'):08x}",
        "layers": {layer: 1 - prune.sparsity({layer: mask}) for layer, mask in masks.items()}, "density": 1 - prune.sparsity(masks),
        "parts": compress.parts(file_of(name)), "stage_bytes": compress.stages(small, shared),
    }
    runs.write(f"compression_{name}", f"{COMMAND} final {name}", **content, arms=stages)
    stages["control"] = {"test": outcome(further(name, reference, split, plan["prune"]), "test")}
    runs.write(f"compression_{name}", f"{COMMAND} final {name}", **content, arms=stages)


def sharing() -> None:
    """Few centroids, on the pruned LeNet-300-100: from where k-means starts, and what the training of the centroids gives back."""
    name, chosen = "lenet300", runs.load("compression_search_lenet300")["chosen"]
    split, plan = data.load("train"), PLANS["lenet300"]
    model, masks = pruned(name, zoo.load(name), split, chosen["density"], plan["prune"])
    rows = []
    for bits in SHARING["bits"]:
        for start in SHARING["starts"]:
            shared = compress.share(model, masks, bits, start)
            untrained = copy.deepcopy(model)
            compress.apply(untrained, shared)
            squares = sum(((layer.weight() - model.get_submodule(key).weight.detach()) ** 2).sum().item() for key, layer in shared.items())
            small, shared = tuned(name, model, shared, split, SHARING["epochs"])
            rows.append({"bits": bits, "start": start, "mse": squares / sum(int(mask.sum()) for mask in masks.values()),
                         "before": outcome(untrained, "test"), "after": outcome(small, "test"),
                         "nbytes": len(compress.encode(small, shared))})
    runs.write("compression_sharing", f"{COMMAND} sharing", chosen=chosen, plan=plan, tried=SHARING, share_lr=SHARE_LR,
               pruned={"test": outcome(model, "test")}, rows=rows)


def densest(nbytes: Callable[[float], int], budget: int, most: float = 1.0) -> float:
    """The largest density, to 1/4096, at which nbytes(density) is within the budget."""
    low, high = 0.0, most
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if nbytes(middle) <= budget else (low, middle)
    return low


def _prune_share(reference: nn.Module, budget: int, bits: int | None) -> tuple[nn.Module, int, float]:
    """Prune to what fits, retrain, share, train the centroids; bits None: the float32 values that are left are the file."""
    def size(model: nn.Module, masks: prune.Masks) -> int:
        if bits is not None:
            shared, model = compress.share(model, masks, bits), copy.deepcopy(model)
            compress.apply(model, shared)
            return len(compress.encode(model, shared))
        codes = {key: compress.Shared(mask.int(), torch.ones(1)) for key, mask in masks.items()}
        return sum(compress.stages(model, codes)["pruned"].values())

    first = densest(lambda density: size(reference, prune.magnitude(reference, 1 - density, "global")), budget)
    model, masks = pruned("lenet300", reference, halves()[0], 1.04 * first, ORDER_EPOCHS[0])
    left = densest(lambda density: size(model, prune.magnitude(model, 1 - density, "global", within=masks)), budget, 1.04 * first)
    masks = prune.magnitude(model, 1 - left, "global", within=masks)
    if bits is None:
        return train("lenet300", model, halves()[0], ORDER_EPOCHS[1], "last", prune.hold(model, masks), SHARE_LR), size(model, masks), left
    small, shared = tuned("lenet300", model, compress.share(model, masks, bits), halves()[0], ORDER_EPOCHS[1])
    return small, len(compress.encode(small, shared)), left


def _share_prune(reference: nn.Module, budget: int, bits: int) -> tuple[nn.Module, int, float]:
    """Share all weights, train the centroids, remove the codes of the smallest centroids to what fits, train the centroids again."""
    everything = prune.magnitude(reference, 0.0)
    first, rest = ORDER_EPOCHS[0] // 2, sum(ORDER_EPOCHS) - ORDER_EPOCHS[0] // 2
    model, shared = tuned("lenet300", reference, compress.share(reference, everything, bits), halves()[0], first)

    def fewer(density: float) -> tuple[nn.Module, dict]:
        masks, cut = prune.magnitude(model, 1 - density, "global"), copy.deepcopy(model)
        left = {key: compress.Shared(layer.codes * masks[key], layer.codebook) for key, layer in shared.items()}
        compress.apply(cut, left)
        return cut, left

    density = densest(lambda density: len(compress.encode(*fewer(density))), budget)
    small, left = tuned("lenet300", *fewer(density), halves()[0], rest)
    return small, len(compress.encode(small, left)), density


@lru_cache
def _share_all(reference: nn.Module, bits: int) -> tuple[nn.Module, int, float]:
    """Share all weights, and nothing else: the bits alone decide about the size."""
    masks = prune.magnitude(reference, 0.0)
    small, shared = tuned("lenet300", reference, compress.share(reference, masks, bits), halves()[0], sum(ORDER_EPOCHS))
    return small, len(compress.encode(small, shared)), 1.0


def orders() -> None:
    """Each order at each budget with several bits; validation decides among the bits, and the test images see only what it chose."""
    ways = {"prune, share": (_prune_share, (3, 5)), "share, prune": (_share_prune, (3, 5)), "prune": (_prune_share, (None,)),
            "share": (lambda reference, budget, bits: _share_all(reference, bits), (1,))}
    reference, rows = float_network("lenet300"), []
    base = {"validation": outcome(reference, "validation"), "test": outcome(reference, "test"), "nbytes": measure.size_bytes(reference)}
    for budget in BUDGETS:
        for way, (make, choices) in ways.items():
            tried, models = [], {}
            for bits in choices:
                model, nbytes, density = make(reference, budget, bits)
                tried.append({"bits": bits, "nbytes": nbytes, "density": density, "validation": outcome(model, "validation")})
                models[bits] = model
            fitting = [t for t in tried if t["nbytes"] <= 1.01 * budget]
            best = max(fitting, key=lambda t: t["validation"]["correct"]) if fitting else None
            row = {"budget": budget, "order": way, "tried": tried, "best": None}
            if best:
                row["best"] = {k: best[k] for k in ("bits", "nbytes", "density")} | {"test": outcome(models[best["bits"]], "test")}
            rows.append(row)
            runs.write("compression_orders", f"{COMMAND} orders", budgets=BUDGETS, epochs=ORDER_EPOCHS, float=base, rows=rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Deep Compression's experiments (notebook 11); each part writes its own record.")
    parser.add_argument("part", choices=("search", "final", "sharing", "orders"))
    parser.add_argument("net", nargs="?", choices=tuple(PLANS), help="for search and final")
    arguments = parser.parse_args()
    if (arguments.part in ("search", "final")) != (arguments.net is not None):
        parser.error("search and final take a network, lenet300 or lenet5; sharing and orders take none.")
    parts = {"search": search, "final": final, "sharing": sharing, "orders": orders}
    parts[arguments.part](*([arguments.net] if arguments.net else []))
