"""The experiments of notebook 09, each part with a record of its own.

    python -m qlab.lab.experiments.pruning sensitivity     each layer of the cnn pruned alone; training images, nothing is trained
    python -m qlab.lab.experiments.pruning arms            90.5 % of the weights, 2:4, whole channels; their controls; three seeds
    python -m qlab.lab.experiments.pruning lottery         LeNet-300-100: winning tickets against the same masks, drawn anew; five seeds
    python -m qlab.lab.experiments.pruning speed           milliseconds of dense, pruned and channel-pruned networks, and of CSR products;
                                                           it waits until the machine is quiet

The part arms is many runs, some hours of one core. One at a time, where a GPU is, each written as it ends, and then the record:

    python -m qlab.lab.experiments.pruning list            the names and seeds of the runs, the most important first
    python -m qlab.lab.experiments.pruning run gradual 1 --folder runs --device cuda
    python -m qlab.lab.experiments.pruning collect --folder runs

All arms start from the zoo's cnn and learn 8 more epochs of the zoo's recipe (SGD, Nesterov momentum, one-cycle learning rate) on the
60,000 training images; the seed draws order and augmentation. The control stays dense. The learning rate 0.05 was chosen over 0.02 in a
short trial with nine weights in ten removed, on 5,000 training images held out of the trial (the dense network had seen them); the other
arms take it over untried. The small arms start from nothing, with the widths that the channels leave: 16 epochs, the zoo's recipe, then 8
more; or 24 in one cycle. The taught arms see the images as they are and mirrored, 4 epochs of both, with the soft labels of the zoo's
residual network (qlab.nets.distill, T = 4, alpha = 0.9, not tuned). The test images are looked at before and after a training, and
choose nothing.
"""

import argparse
import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from qlab import saving
from qlab.lab import data, measure, quiet, runs, zoo
from qlab.nets import channels, distill, prune, prune_schedules, soft_loss
from qlab.nets.models import lenet_300_100, plain_cnn
from qlab.nets.training import fit

SPARSITY, EPOCHS, MAX_LR = 0.905, 8, 0.05
TAUGHT_EPOCHS, TEMPERATURE, ALPHA = 4, 4, 0.9                                                # epochs of 120,000 images
CHANNELS = {"conv1": 0.25, "conv2": 0.375, "conv3": 0.25}                                   # 24, 40 and 48 of 32, 64 and 64 stay
SENSITIVITY = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SEEDS, LOTTERY_SEEDS, ROUNDS, LOTTERY_EPOCHS = (1, 2, 3), range(5), 5, 2
LABELS = ("small", "small-one-cycle", "control", "2:4", "channels", "gradual", "one-shot")   # arms that learn from labels
TAUGHT = ("taught-control", "taught-gradual", "taught-2:4")                                  # arms that learn from the residual network
KEPT = {"gradual": "pruning_cnn", "2:4": "pruning_cnn_2_4", "channels": "pruning_cnn_channels", "taught-gradual": "pruning_cnn_taught"}
COMMAND = "python -m qlab.lab.experiments.pruning"


def test(model: nn.Module) -> dict:
    """Which test images the model gets right."""
    return runs.outcome(measure.accuracy(model, data.load("test")))


def sensitivity() -> None:
    """The accuracy on 4,000 training images with each layer pruned alone."""
    sample = data.calibration(4000)
    curves = prune.sensitivity(zoo.load("cnn"), lambda model: measure.accuracy(model, sample).value, SENSITIVITY)
    runs.write("pruning_sensitivity", f"{COMMAND} sensitivity", images="4,000 training images", sparsities=SENSITIVITY, accuracy=curves)


def names() -> list[tuple[str, int]]:
    """Arm and seed of all runs of the part arms, the most important first."""
    return [("dense", SEEDS[0]), *((arm, seed) for arm in (*LABELS, *TAUGHT) for seed in SEEDS)]


def start(arm: str, seed: int, steps: int, device: str) -> tuple[nn.Module, prune.Masks, Callable[[], None] | None]:
    """The network of an arm before its training, its masks, and what to call after each of the training's steps."""
    model, how = copy.deepcopy(zoo.load("cnn")).requires_grad_(True), arm.removeprefix("taught-")
    if how == "channels" or how.startswith("small"):
        model = channels.remove(model, channels.weakest(model, CHANNELS))
    if how.startswith("small"):                                                             # the widths only: nothing is kept of the values
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, prune.LAYERS):
                layer.reset_parameters()
    model.to(device)
    if how == "gradual":
        return model, *prune_schedules.gradual(model, SPARSITY, steps // 4, scope="global")           # then the masks stay as they are
    if how == "one-shot":
        masks = prune.magnitude(model, SPARSITY, "global")
    elif how == "2:4":
        masks = prune.n_m(model, 2, 4, skip=["conv1"])                                      # conv1 has one input channel
    else:
        return model, {}, None
    return model, masks, prune.hold(model, masks)


def run(arm: str, seed: int, folder: Path, device: str = "cpu", epochs: int = EPOCHS, images: int = 60_000) -> None:
    """Train one arm with one seed; write its rows to folder/ARM_SEED.json, and the first seed's network if a page needs it.

    epochs and images are less only where a test tries it. Of the taught arms an epoch is half an epoch of both images and mirror images.
    """
    torch.backends.cudnn.allow_tf32 = False                                                 # float32 means float32 on a GPU too
    (x, y), row = data.load("train"), {"arm": arm, "seed": seed}
    x, y = x[:images].to(device), y[:images].to(device)
    if arm == "dense":
        model = zoo.load("cnn")
        rows = [row | {"epochs": 0, "test": test(model.to(device))} | size(model)]
    elif arm.startswith("small"):
        (model, *_), rows = start(arm, seed, 0, device), []
        for stage in (2 * epochs, epochs) if arm == "small" else (3 * epochs,):
            fit(model, x, y, stage, MAX_LR, seed=seed + 10 * len(rows), augment=zoo.augment, name=f"{arm} {seed}")
            rows.append(row | {"epochs": (3 if arm != "small" or rows else 2) * epochs, "test": test(model)} | size(model))
    else:
        steps = math.ceil(len(x) / zoo.BATCH_SIZE) * epochs
        if arm in TAUGHT:
            x, epochs = torch.cat([x, x.flip(3)]), epochs * TAUGHT_EPOCHS // EPOCHS
            logits = distill.teacher_logits(zoo.load("resnet").to(device), x)
        model, masks, after_step = start(arm, seed, steps, device)
        if arm in ("one-shot", "2:4", "channels"):
            row["before"] = test(model)
        if arm in TAUGHT:
            def lesson(model, batch, number):
                return soft_loss.distillation_loss(model(batch), logits[number], y[number % len(y)], TEMPERATURE, ALPHA)
            fit(model, x, torch.arange(len(x), device=device), epochs, MAX_LR, seed=seed, loss=lesson, after_step=after_step,
                name=f"{arm} {seed}")
        else:
            fit(model, x, y, epochs, MAX_LR, seed=seed, augment=zoo.augment, after_step=after_step, name=f"{arm} {seed}")
        if masks:
            row |= {"sparsity": prune.sparsity(masks), "layers": {name: prune.sparsity({name: mask}) for name, mask in masks.items()}}
        rows = [row | {"epochs": epochs, "test": test(model)} | size(model)]
    kept = {}
    if seed == SEEDS[0] and arm in KEPT:
        kept[arm] = {"name": KEPT[arm], "sha256": runs.save_model(KEPT[arm], model.cpu(), folder)}
    runs.write(file_name(arm, seed), f"{COMMAND} run {arm} {seed} --device {device}", folder, checkpoints=kept, rows=rows)


def size(model: nn.Module) -> dict[str, int]:
    """MACs of an image, and parameters."""
    example = torch.zeros(1, 1, 28, 28, device=next(model.parameters()).device)
    return {"macs": sum(channels.macs(model, example).values()), "parameters": sum(p.numel() for p in model.parameters())}


def file_name(arm: str, seed: int) -> str:
    """Of a run's own small record, without its ending."""
    return f"{arm.replace(':', '_')}_{seed}"


def collect(folder: Path, records: Path = runs.FOLDER) -> None:
    """The record "pruning" of all runs in folder, of the seeds that every arm of its kind has; networks are copied beside it."""
    found = {name: runs.raw(file_name(*name), folder) for name in names() if (folder / f"{file_name(*name)}.json").exists()}
    if ("dense", SEEDS[0]) not in found:
        raise ValueError(f"{folder} lacks the run dense {SEEDS[0]}: without it no other can be compared.")
    environment = runs.one_machine(found.values(), folder)
    complete = {kind: [seed for seed in SEEDS if all((arm, seed) in found for arm in kind)] for kind in (LABELS, TAUGHT)}
    wanted = [("dense", SEEDS[0]), *((arm, seed) for kind, seeds in complete.items() for arm in kind for seed in seeds)]
    print("seeds that are complete:", *complete.values())
    checkpoints = {arm: kept for name in wanted for arm, kept in found[name]["checkpoints"].items()}
    for kept in checkpoints.values():
        if folder != records:
            saving.write({records / f"{kept['name']}.safetensors": saving.read(folder / f"{kept['name']}.safetensors")})
    settings = {"sparsity": SPARSITY, "scope": "global", "max_lr": MAX_LR, "schedule_epochs": EPOCHS / 4, "channels": CHANNELS,
                "temperature": TEMPERATURE, "alpha": ALPHA}
    runs.write("pruning", f"{COMMAND} arms", records, environment=environment, settings=settings,
               dense_sha256=zoo.record("cnn")["sha256"], teacher_sha256=zoo.record("resnet")["sha256"], checkpoints=checkpoints,
               rows=[row for name in wanted for row in found[name]["rows"]])


def arms(folder: Path = Path("runs"), device: str = "cpu") -> None:
    """All runs that folder lacks, one after the other, and the record of them."""
    for arm, seed in names():
        if not (folder / f"{file_name(arm, seed)}.json").exists():
            run(arm, seed, folder, device)
    collect(folder)


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

    for seed in LOTTERY_SEEDS:
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

        prune_schedules.iterative(model, sparsities, one_round, rewind_to=initial)
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
def speed(anyway: bool = False, folder: Path = runs.FOLDER) -> None:
    """A batch of 64 images through three networks; and a square matrix of several densities times 64 columns, dense and as CSR.

    anyway: on a busy machine too, without waiting for a quiet one.
    """
    watch = quiet.wait(anyway)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    kept = runs.load("pruning")["checkpoints"]
    small = channels.remove(plain_cnn(), channels.weakest(plain_cnn(), CHANNELS))
    nets = {"dense": zoo.load("cnn"),
            "pruned": runs.load_model("pruning_cnn", plain_cnn(), kept["gradual"]["sha256"]),
            "fewer channels": runs.load_model("pruning_cnn_channels", small, kept["channels"]["sha256"])}
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
    runs.write("pruning_speed", f"{COMMAND} speed", folder, load=watch.load(), threads=torch.get_num_threads(), batch=64,
               networks=networks, products=rows)


PARTS = {function.__name__: function for function in (sensitivity, arms, lottery, speed)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The pruning experiments: a part of them, all in order, or single runs of the part arms.")
    parser.add_argument("what", nargs="?", choices=[*PARTS, "list", "run", "collect"], help="without it, all parts")
    parser.add_argument("which", nargs="*", metavar="ARM SEED", help="after run: one or more arms, each with a seed, as list prints them")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where single runs are written (runs)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    quiet.add_option(parser)
    given = parser.parse_args(arguments)
    which = [(arm, int(seed)) for arm, seed in zip(given.which[::2], given.which[1::2]) if seed.isdigit()]
    if (given.what == "run") != bool(given.which) or 2 * len(which) != len(given.which) or not set(which) <= set(names()):
        parser.error("after run, and only there, name arms and seeds that list prints")
    if given.what == "list":
        print("\n".join(f"{arm} {seed}" for arm, seed in names()))
    elif given.what == "run":
        for arm, seed in which:
            run(arm, seed, given.folder, given.device)
    elif given.what == "collect":
        collect(given.folder)
    else:
        for name in [given.what] if given.what else PARTS:
            more = {"arms": (given.folder, given.device), "speed": (given.busy,)}
            PARTS[name](*more.get(name, ()))


if __name__ == "__main__":
    main()
