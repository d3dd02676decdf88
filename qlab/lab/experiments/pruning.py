"""The experiments of notebook 09, each with a record of its own.

    python -m qlab.lab.experiments.pruning sensitivity     each layer of the cnn pruned alone; training images, nothing is trained
    python -m qlab.lab.experiments.pruning unstructured    90.5 % of the cnn's weights removed: gradually, at once, and the dense control
    python -m qlab.lab.experiments.pruning structured      2:4, and half of the MACs gone with whole channels
    python -m qlab.lab.experiments.pruning taught          90.5 % removed, and 2:4, learning from the residual network; two controls
    python -m qlab.lab.experiments.pruning lottery         LeNet-300-100: winning tickets against the same masks, drawn anew; five seeds
    python -m qlab.lab.experiments.pruning speed           milliseconds of dense, pruned and channel-pruned networks, and of CSR products

The recipe of the zoo trains everything (SGD, Nesterov momentum, one-cycle learning rate), on the 60,000 training images. The learning
rate 0.05 was chosen over 0.02 in a short trial with nine weights in ten removed, on 5,000 training images held out of the trial (the
dense network had seen them); for 2:4 and channels it was taken over untried. In the part taught every epoch goes through the images as
they are and mirrored, with the zoo's residual network's soft labels (qlab.nets.distill, T = 4, alpha = 0.9, not tuned). There 2:4 was
first trained briefly, at a fifth of the learning rate; when that had lost 0.34 points, it got the recipe of 90.5 %. Otherwise the test
images are looked at once, at the end of an arm.
"""

import argparse
import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

from qlab.lab import data, measure, runs, zoo
from qlab.nets import channels, distill, prune
from qlab.nets.models import lenet_300_100, plain_cnn
from qlab.nets.training import fit

SPARSITY, EPOCHS, MAX_LR = 0.905, 8, 0.05
N_M_EPOCHS, CHANNEL_EPOCHS = 3, 5
TAUGHT, BRIEFLY = (4, 0.05), (1, 0.01)                                                       # epochs of 120,000 images, learning rate
CHANNELS = {"conv1": 0.25, "conv2": 0.375, "conv3": 0.25}                                   # 24, 40 and 48 of 32, 64 and 64 stay
SENSITIVITY = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SEEDS, ROUNDS, LOTTERY_EPOCHS = range(5), 5, 2
COMMAND = "python -m qlab.lab.experiments.pruning"


def trainable() -> nn.Module:
    """The zoo's cnn, to be trained further."""
    return copy.deepcopy(zoo.load("cnn")).requires_grad_(True)


def tune(model: nn.Module, epochs: int, name: str, after_step: Callable[[], None] | None = None) -> nn.Module:
    """The model after some more epochs of the zoo's recipe for the cnn."""
    fit(model, *data.load("train"), epochs, MAX_LR, seed=1, augment=zoo.augment, after_step=after_step, name=name)
    return model


def test(model: nn.Module) -> dict:
    """Which test images the model gets right."""
    return runs.outcome(measure.accuracy(model, data.load("test")))


def shares(masks: prune.Masks) -> dict[str, float]:
    """The share removed from each layer."""
    return {name: prune.sparsity({name: mask}) for name, mask in masks.items()}


def sensitivity() -> None:
    """The accuracy on 4,000 training images with each layer pruned alone."""
    sample = data.calibration(4000)
    curves = prune.sensitivity(zoo.load("cnn"), lambda model: measure.accuracy(model, sample).value, SENSITIVITY)
    runs.write("pruning_sensitivity", f"{COMMAND} sensitivity", images="4,000 training images", sparsities=SENSITIVITY, accuracy=curves)


def unstructured() -> None:
    """One threshold for the whole network; gradual: the sparsity follows the cubic schedule for a quarter of the epochs, then it stays."""
    settings = {"sparsity": SPARSITY, "scope": "global", "epochs": EPOCHS, "max_lr": MAX_LR, "schedule_epochs": EPOCHS / 4}
    arms = {"dense": {"test": test(zoo.load("cnn")), "epochs": 0}}

    model, steps = trainable(), math.ceil(len(data.load("train").labels) / zoo.BATCH_SIZE) * EPOCHS
    masks, after_step = prune.gradual(model, SPARSITY, steps // 4, scope="global")
    tune(model, EPOCHS, "gradual", after_step)
    arms["gradual"] = {"test": test(model), "epochs": EPOCHS, "sparsity": prune.sparsity(masks), "layers": shares(masks)}
    checkpoint = {"name": "pruning_cnn", "sha256": runs.save_model("pruning_cnn", model)}

    def keep():
        runs.write("pruning", f"{COMMAND} unstructured", settings=settings, dense_sha256=zoo.record("cnn")["sha256"],
                   checkpoint=checkpoint, arms=arms)

    keep()
    arms["control"] = {"test": test(tune(trainable(), EPOCHS, "control")), "epochs": EPOCHS}
    keep()
    model = trainable()
    masks = prune.magnitude(model, SPARSITY, "global")
    prune.apply(model, masks)
    arms["one-shot, not trained"] = {"test": test(model), "epochs": 0, "sparsity": prune.sparsity(masks), "layers": shares(masks)}
    tune(model, EPOCHS, "one-shot", prune.hold(model, masks))
    arms["one-shot"] = {"test": test(model), "epochs": EPOCHS, "sparsity": prune.sparsity(masks), "layers": shares(masks)}
    keep()


def structured() -> None:
    """2:4 (conv1 has one input channel, and is skipped), then channels by L1 norm."""
    arms, checkpoints = {"dense": {"test": test(zoo.load("cnn")), "epochs": 0}}, {}

    def keep():
        runs.write("pruning_structured", f"{COMMAND} structured", settings={"max_lr": MAX_LR, "channels": CHANNELS},
                   dense_sha256=zoo.record("cnn")["sha256"], checkpoints=checkpoints, arms=arms)

    model = trainable()
    masks = prune.n_m(model, 2, 4, skip=["conv1"])
    prune.apply(model, masks)
    arms["2:4, not trained"] = {"test": test(model), "epochs": 0, "layers": shares(masks)}
    tune(model, N_M_EPOCHS, "2:4", prune.hold(model, masks))
    arms["2:4"] = {"test": test(model), "epochs": N_M_EPOCHS, "layers": shares(masks)}
    checkpoints["2:4"] = {"name": "pruning_cnn_2_4", "sha256": runs.save_model("pruning_cnn_2_4", model)}
    keep()

    example, model = torch.zeros(1, 1, 28, 28), trainable()
    arms["dense"]["macs"] = sum(channels.macs(model, example).values())
    model = channels.remove(model, channels.weakest(model, CHANNELS))
    widths = {name: model.get_submodule(name).out_channels for name in CHANNELS}
    facts = {"macs": sum(channels.macs(model, example).values()), "widths": widths,
             "parameters": sum(p.numel() for p in model.parameters())}
    arms["channels, not trained"] = {"test": test(model), "epochs": 0} | facts
    tune(model, CHANNEL_EPOCHS, "channels")
    arms["channels"] = {"test": test(model), "epochs": CHANNEL_EPOCHS} | facts
    checkpoints["channels"] = {"name": "pruning_cnn_channels", "sha256": runs.save_model("pruning_cnn_channels", model)}
    keep()


def taught() -> None:
    """The residual network teaches the pruned networks; and, equally long, dense ones, to tell the teaching from the pruning."""
    images, labels = data.load("train")
    views, teacher = torch.cat([images, images.flip(3)]), zoo.load("resnet")
    logits, arms, checkpoints = distill.teacher_logits(teacher, views), {"dense": {"test": test(zoo.load("cnn")), "epochs": 0}}, {}

    def learn(name: str, model: nn.Module, recipe=TAUGHT, after_step=None, **facts) -> None:
        epochs, max_lr = recipe
        fit(model, views, torch.arange(len(views)), epochs, max_lr, seed=1, after_step=after_step, name=name,
            loss=lambda model, x, number: distill.distillation_loss(model(x), logits[number], labels[number % len(labels)]))
        arms[name] = {"test": test(model), "epochs": epochs, "max_lr": max_lr} | facts

    def keep():
        runs.write("pruning_taught", f"{COMMAND} taught", settings={"sparsity": SPARSITY, "temperature": 4, "alpha": 0.9},
                   dense_sha256=zoo.record("cnn")["sha256"], teacher_sha256=zoo.record("resnet")["sha256"],
                   checkpoints=checkpoints, arms=arms)

    model, steps = trainable(), math.ceil(len(views) / zoo.BATCH_SIZE) * TAUGHT[0]
    masks, after_step = prune.gradual(model, SPARSITY, steps // 4, scope="global")
    learn("gradual", model, after_step=after_step)
    arms["gradual"] |= {"sparsity": prune.sparsity(masks), "layers": shares(masks)}
    checkpoints["gradual"] = {"name": "pruning_cnn_taught", "sha256": runs.save_model("pruning_cnn_taught", model)}
    keep()
    for name, recipe in (("2:4, briefly", BRIEFLY), ("2:4", TAUGHT)):
        model = trainable()
        masks = prune.n_m(model, 2, 4, skip=["conv1"])
        learn(name, model, recipe, prune.hold(model, masks), layers=shares(masks))
        keep()
    checkpoints["2:4"] = {"name": "pruning_cnn_2_4_taught", "sha256": runs.save_model("pruning_cnn_2_4_taught", model)}
    for name, recipe in (("control of 2:4, briefly", BRIEFLY), ("control", TAUGHT)):
        learn(name, trainable(), recipe)
        keep()


def lottery() -> None:
    """Half of each hidden layer's weights, a quarter of the last layer's, go in each round; then the rest starts again, twice.

    ticket: from the values that they had before the first training; again: from values drawn anew, with the same mask.
    """
    images, labels = data.load("train")
    sparsities = [{"fc1": 1 - 0.5**k, "fc2": 1 - 0.5**k, "fc3": 1 - 0.75**k} for k in range(1, ROUNDS + 1)]
    rows = []

    def train(model: nn.Module, seed: int, name: str, after_step=None) -> dict:
        fit(model, images, labels, LOTTERY_EPOCHS, zoo.RECIPE["lenet300"]["max_lr"], seed=seed, after_step=after_step, name=name)
        return test(model)

    for seed in SEEDS:
        torch.manual_seed(seed)
        model = lenet_300_100()
        initial = copy.deepcopy(model.state_dict())
        rows.append({"seed": seed, "round": 0, "arm": "dense", "kept": 1.0, "test": train(model, seed, f"seed {seed}, dense")})

        def one_round(model, after_step, number, seed=seed):
            name, masks = f"seed {seed}, round {number + 1}", {n: model.get_submodule(n).weight != 0 for n in ("fc1", "fc2", "fc3")}
            facts = {"seed": seed, "round": number + 1, "kept": 1 - prune.sparsity(masks)}
            torch.manual_seed(1000 + 100 * seed + number)
            fresh = lenet_300_100()
            again = train(fresh, seed, f"{name}, again", prune.hold(fresh, masks))
            rows.append(facts | {"arm": "ticket", "test": train(model, seed, f"{name}, ticket", after_step)})
            rows.append(facts | {"arm": "again", "test": again})

        prune.iterative(model, sparsities, one_round, rewind_to=initial)
        runs.write("pruning_lottery", f"{COMMAND} lottery", settings={
            "network": "lenet_300_100", "epochs": LOTTERY_EPOCHS, "max_lr": zoo.RECIPE["lenet300"]["max_lr"], "sparsities": sparsities,
            "seeds": [row["seed"] for row in rows if row["arm"] == "dense"]}, rows=rows)


def in_turn(functions: dict[str, Callable[[], object]], turns: int = 5) -> dict[str, dict]:
    """Milliseconds of each function, measured one after the other, several times round: a slow minute then hits all alike."""
    samples = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            samples[name] += measure.latency_ms(function, repeats=10).samples_ms
    found = {name: measure.Latency(tuple(values), "") for name, values in samples.items()}
    return {name: {"median_ms": latency.median_ms, "quartiles_ms": latency.quartiles_ms} for name, latency in found.items()}


@torch.inference_mode()
def speed() -> None:
    """A batch of 64 images through three networks; and a square matrix of several densities times 64 columns, dense and as CSR."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    pruned, structured = runs.load("pruning")["checkpoint"], runs.load("pruning_structured")["checkpoints"]["channels"]
    small = channels.remove(plain_cnn(), channels.weakest(plain_cnn(), CHANNELS))
    nets = {"dense": zoo.load("cnn"),
            "pruned": runs.load_model("pruning_cnn", plain_cnn(), pruned["sha256"]),
            "fewer channels": runs.load_model("pruning_cnn_channels", small, structured["sha256"])}
    nets = {name: net.to(memory_format=torch.channels_last) for name, net in nets.items()}
    x = data.load("test").images[:64].contiguous(memory_format=torch.channels_last)
    networks = in_turn({name: lambda net=net: net(x) for name, net in nets.items()})
    rows, generator = [], torch.Generator().manual_seed(0)
    for density in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        weight = torch.randn(1024, 1024, generator=generator)
        weight *= torch.rand(1024, 1024, generator=generator) < density
        columns, sparse = torch.randn(1024, 64, generator=generator), weight.to_sparse_csr()
        assert torch.allclose(sparse @ columns, weight @ columns, atol=1e-3)
        rows.append({"density": density, **in_turn({"dense": lambda: weight @ columns, "csr": lambda: sparse @ columns})})  # noqa: B023
    runs.write("pruning_speed", f"{COMMAND} speed", threads=torch.get_num_threads(), batch=64, networks=networks, products=rows)


PARTS = {function.__name__: function for function in (sensitivity, unstructured, structured, taught, lottery, speed)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run one part of the pruning experiments and write its record, or all of them in order.")
    parser.add_argument("part", nargs="?", choices=PARTS, help="the part; without it, all (about an hour on one core)")
    arguments = parser.parse_args()
    for name in [arguments.part] if arguments.part else PARTS:
        PARTS[name]()
