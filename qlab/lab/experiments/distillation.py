"""Notebook 10's experiments: the zoo's residual network teaches a student of 8,962 parameters.

    python -m qlab.lab.experiments.distillation             all parts, an hour or more on one core
    python -m qlab.lab.experiments.distillation small       the part of this name: full, small, unseen or runaway; each has its record

    full      55,000 training images: student, twin, label smoothing; three seeds
    small     3,000 of them, drawn anew for each of three seeds: the same, and hints before distillation (FitNets); and the 1,000
              images on which notebook 10 trains, five seeds
    unseen    each of the ten classes in turn left out of the images that student and twin are shown
    runaway   1,000 images and no batch norm, three seeds: a hot teacher's pull at the twin's learning rate, and at a fifth of it

full and small are many trainings; where a GPU is, one at a time, each written as it ends, and then the record:

    python -m qlab.lab.experiments.distillation list full-rates        the names and numbers of a stage: full-rates, full-settings and
    python -m qlab.lab.experiments.distillation list full-settings     full; small-settings and small. Each stage chooses by the ones
    python -m qlab.lab.experiments.distillation list full              before it
    python -m qlab.lab.experiments.distillation run full-student 0 --folder runs --device cuda
    python -m qlab.lab.experiments.distillation collect full --folder runs

All is chosen on 5,000 training images that nothing trains on. full: the learning rate is the twin's best of three; with it the student's
temperature and alpha, the best of four, and label smoothing's share, the best of four. small: each arm has the best
of eight, two learning rates times four weight decays, for the twin, or two weight decays times two shares or temperatures.

The twin is the student without a teacher: same initial weights, images in the same order, as many epochs, labels only. Images
are seen as they are and mirrored, so that the teacher's logits of both are computed once. The test images are looked at once, at the
end of each training, and choose nothing.
"""

import argparse
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qlab import saving
from qlab.lab import data, runs, zoo
from qlab.lab.measure import Accuracy, accuracy
from qlab.nets import distill
from qlab.nets.training import fit

NAME, COMMAND = "distillation", "python -m qlab.lab.experiments.distillation"
VALIDATION, SMALL = 5_000, 3_000                    # images
EPOCHS = {"full": 4, "small": 15, "hints": 5, "unseen": 2}
ARMS, TEMPERATURES = ("twin", "smoothing", "student"), (2.0, 4.0, 8.0, 16.0)
STAGES = {"full": ("full-rates", "full-settings", "full"), "small": ("small-settings", "small")}
RATES = {"full": (0.1, 0.2, 0.4), "small": (0.1, 0.2)}
SETTINGS = {
    "full": {"student": [{"temperature": t, "alpha": a} for t in (2.0, 4.0) for a in (0.5, 0.9)],
             "smoothing": [{"smoothing": share} for share in (0.02, 0.05, 0.1, 0.2)]},
    "small": {arm: [{"max_lr": rate} | setting for setting in settings for rate in RATES["small"]] for arm, settings in {
        "twin": [{"weight_decay": decay} for decay in (2e-3, 4e-3, 8e-3, 1.6e-2)],
        "smoothing": [{"weight_decay": decay, "smoothing": share} for decay in (4e-3, 8e-3) for share in (0.05, 0.2)],
        "student": [{"weight_decay": decay, "temperature": t, "alpha": 0.9} for decay in (1e-3, 4e-3) for t in (2.0, 8.0)]}.items()},
}
CHOOSING_SEED = 100                                 # of weights, order and the 3,000 images: no later training has it
RUNAWAY = {0.1: (10, 16.0), 0.02: (20, 4.0)}        # learning rate: (epochs, temperature)
UNSEEN, UNSEEN_RATE = 3, 0.2                        # the left-out class whose student is kept: Dress, as 3 is the digit in Hinton et al.


def student(seed: int = 0) -> nn.Sequential:
    """Three convolutions with batch norm and one linear layer, its initial weights drawn from seed.

    >>> sum(p.numel() for p in student().parameters())
    8962
    """
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False), bn1=nn.BatchNorm2d(8), relu1=nn.ReLU(),          # (n, 8, 14, 14)
        conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), bn2=nn.BatchNorm2d(16), relu2=nn.ReLU(),        # (n, 16, 7, 7)
        conv3=nn.Conv2d(16, 32, 3, padding=1, bias=False), bn3=nn.BatchNorm2d(32), relu3=nn.ReLU(),                 # (n, 32, 7, 7)
        pool3=nn.MaxPool2d(2), flatten=nn.Flatten(), fc=nn.Linear(288, 10),                                         # (n, 32, 3, 3)
    ))


class Transfer(NamedTuple):
    """What student and twin are trained on: images (n, 1, 28, 28), labels (n,), the teacher's logits (n, 10)."""

    images: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor


def split() -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the 5,000 training images to choose by, and of the 55,000 to train on."""
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    return order[:VALIDATION], order[VALIDATION:]


def views(index: torch.Tensor, device: str = "cpu", teacher: bool = True) -> Transfer:
    """The training images of these numbers, and behind them the same images mirrored; the teacher's logits only if it is asked."""
    images, labels = data.load("train")
    images = torch.cat([images[index], images[index].flip(3)]).to(device)
    logits = distill.teacher_logits(zoo.load("resnet").to(device), images) if teacher else torch.zeros(len(images), 10, device=device)
    return Transfer(images, labels[index].repeat(2).to(device), logits)


def train(arm: str, transfer: Transfer, epochs: int, seed: int, max_lr: float = 0.1, temperature: float = 4.0, alpha: float = 0.9,
          smoothing: float = 0.1, weight_decay: float = 5e-4) -> nn.Module:
    """Train one network: arm "twin", "smoothing", "student", or "hints", the student after FitNets' first stage."""
    net, (images, labels, logits) = student(seed).to(transfer.images.device), transfer
    if arm == "smoothing":
        fit(net, images, labels, epochs, max_lr, seed=seed, weight_decay=weight_decay, name=arm,
            loss=lambda net, x, y: cross_entropy(net(x), y, label_smoothing=smoothing))
        return net
    if arm == "hints":
        plain = images[:len(images) // 2]           # without the mirrored ones: the teacher runs live
        distill.fit_hints(net, zoo.load("resnet").to(plain.device), plain, "relu2", "block3", EPOCHS["hints"], max_lr, seed=seed)
    distill.distill(net, logits, images, labels, epochs, max_lr, temperature=temperature, alpha=0.0 if arm == "twin" else alpha,
                    seed=seed, weight_decay=weight_decay, name=arm)
    return net


def names(stage: str) -> list[tuple[str, int]]:
    """Names and numbers of the trainings of a stage, the most important first: a number is a candidate's, or in the last stage the seed."""
    regime, _, kind = stage.partition("-")
    if kind == "rates":
        return [(f"rate-{regime}", number) for number in range(len(RATES[regime]))]
    if kind == "settings":
        return [(f"{arm}-{regime}", number) for arm, settings in SETTINGS[regime].items() for number in range(len(settings))]
    if regime == "full":
        return [("teacher", 0), *((f"full-{arm}", seed) for seed in range(3) for arm in ARMS)]
    return [*((f"small-{arm}", seed) for seed in range(3) for arm in ARMS), *(("thousand", seed) for seed in range(5)),
            *(("small-hints", seed) for seed in range(2))]


def run(name: str, number: int, folder: Path, device: str = "cpu", shorter: int = 1) -> None:
    """One training (thousand: four), written to folder/NAME_NUMBER.json.

    A stage reads from folder what the one before it chose, and raises ValueError if anything of it is missing. shorter divides the
    numbers of images and epochs, where a test tries it.
    """
    torch.backends.cudnn.allow_tf32 = False                                                 # float32 means float32 on a GPU too
    first, _, second = name.partition("-")
    if first in ("rate", *ARMS):                                                            # a candidate
        arm, regime = ("twin" if first == "rate" else first), second
        setting = _candidates(folder, regime, first)[number]
        transfer = _transfer(regime, CHOOSING_SEED, device, shorter, arm == "student")
        net = train(arm, transfer, _epochs(regime, shorter), CHOOSING_SEED, **setting)
        images, labels = data.load("train")
        held_out = data.Split(images[split()[0]], labels[split()[0]])
        rows = [{"regime": regime, "arm": arm, **setting, "correct": int(accuracy(net, held_out).correct.sum()), "images": VALIDATION}]
    elif name == "teacher":
        rows = [{"arm": "teacher", **runs.outcome(accuracy(zoo.load("resnet").to(device), data.load("test")))}]
    elif name == "thousand":
        images, labels = (part.to(device) for part in data.calibration(1000))
        transfer, rows = Transfer(images, labels, distill.teacher_logits(zoo.load("resnet").to(device), images)), []
        for epochs in (10, 20):
            for arm in ("twin", "student"):
                net = train(arm, transfer, epochs, number, max_lr=0.1)
                rows.append({"seed": number, "arm": arm, "epochs": epochs, **runs.outcome(accuracy(net, data.load("test")))})
    else:
        regime, arm = first, second
        setting = best(folder, regime, "student" if arm == "hints" else arm)
        transfer = _transfer(regime, number, device, shorter, arm in ("student", "hints"))
        net = train(arm, transfer, _epochs(regime, shorter), number, **setting)
        rows = [{"seed": number, "arm": arm, **setting, **runs.outcome(accuracy(net, data.load("test")))}]
    kept = {}
    if name in ("full-student", "full-twin") and number == 0:
        kept[arm] = runs.save_model(f"{NAME}_{arm}", net.cpu(), folder)
    runs.write(f"{name}_{number}", f"{COMMAND} run {name} {number} --device {device}", folder, models=kept, rows=rows)


def best(folder: Path, regime: str, arm: str) -> dict:
    """The setting of an arm that was right most often on the validation images; of equals the first."""
    name = "rate" if (regime, arm) == ("full", "twin") else arm
    candidates = _candidates(folder, regime, name)
    right = [_rows(folder, f"{name}-{regime}", number)[0]["correct"] for number in range(len(candidates))]
    return candidates[right.index(max(right))]


def collect(part: str, folder: Path, records: Path = runs.FOLDER) -> None:
    """The record of the part full or small from the trainings in folder; networks are copied beside it."""
    wanted = [name for stage in STAGES[part] for name in names(stage)]
    files = {name: runs.raw(f"{name[0]}_{name[1]}", folder) for name in wanted if (folder / f"{name[0]}_{name[1]}.json").exists()}
    print("missing:", ", ".join(f"{name} {number}" for name, number in wanted if (name, number) not in files) or "nothing")
    environment = runs.one_machine(files.values(), folder)
    chosen, found = {arm: best(folder, part, arm) for arm in ARMS}, {}
    for (name, _), one in files.items():
        first = name.partition("-")[0]
        found.setdefault("choose" if first in ("rate", *ARMS) else "rows" if first == part else first, []).extend(one["rows"])
    seeds = set.intersection(*({row["seed"] for row in found["rows"] if row["arm"] == arm} for arm in ARMS))
    found["rows"] = [row for row in found["rows"] if row["seed"] in seeds]                  # only seeds that all arms have
    models = {arm: sha256 for one in files.values() for arm, sha256 in one["models"].items()}
    for arm in models if folder != records else ():
        saving.write({records / f"{NAME}_{arm}.safetensors": saving.read(folder / f"{NAME}_{arm}.safetensors")})
    runs.write(f"{NAME}_{part}", f"{COMMAND} {part}", records, environment=environment,
               teacher_sha256=zoo.record("resnet")["sha256"], models=models, epochs=EPOCHS, chosen=chosen, **found)


def in_turn(part: str, folder: Path, device: str) -> None:
    """All trainings of full or small that folder lacks, one after the other, and the record of them."""
    for stage in STAGES[part]:
        for name, number in names(stage):
            if not (folder / f"{name}_{number}.json").exists():
                run(name, number, folder, device)
    collect(part, folder)


def unseen() -> None:
    """Each class left out in turn. Soft labels alone (alpha = 1); the bias of the class is then chosen on the validation images.

    So is the temperature, with the class Dress left out, for one epoch. The learning rate is not: student and twin have the same.
    """
    test, rows, models, tried = data.load("test"), [], {}, []
    logits = views(torch.arange(60_000)).logits[:60_000]
    for t in TEMPERATURES:
        net, bias = _without(UNSEEN, "student", logits, 1, t)
        net.fc.bias[UNSEEN] += bias
        images, labels = data.load("train")
        held_out = data.Split(images[split()[0]], labels[split()[0]])
        tried.append({"temperature": t, "correct": int(accuracy(net, held_out).correct.sum()), "images": VALIDATION})
    chosen = max(tried, key=lambda row: row["correct"])["temperature"]
    for missing, name in enumerate(data.CLASSES):
        for arm in ("twin", "student"):
            net, bias = _without(missing, arm, logits, EPOCHS["unseen"], chosen)
            if missing == UNSEEN:
                models[f"unseen_{arm}"] = runs.save_model(f"{NAME}_unseen_{arm}", net)
            row = {"missing": missing, "class": name, "arm": arm, "bias": bias}
            for when, shift in (("before", 0.0), ("after", bias)):
                net.fc.bias[missing] += shift
                result = accuracy(net, test)
                row |= {when: runs.outcome(result), f"recall_{when}": runs.outcome(Accuracy(result.correct[test.labels == missing]))}
            rows.append(row)
    runs.write(f"{NAME}_unseen", f"{COMMAND} unseen", teacher_sha256=zoo.record("resnet")["sha256"], models=models, choose=tried,
               epochs=EPOCHS["unseen"], chosen={"max_lr": UNSEEN_RATE, "temperature": chosen, "alpha": 1.0}, rows=rows)


def runaway() -> None:
    """Without batch norm, which keeps the size of what each layer sees; on 1,000 images, whose logits are made here."""
    (images, labels), test, rows = data.calibration(1000), data.load("test"), []
    soft = distill.teacher_logits(zoo.load("resnet"), images)
    for max_lr, (epochs, temperature) in RUNAWAY.items():
        for seed in range(3):
            for arm, alpha in (("twin", 0.0), ("student", 0.9)):
                net = nn.Sequential(*(layer for name, layer in student(seed).named_children() if not name.startswith("bn")))
                distill.distill(net, soft, images, labels, epochs, max_lr, temperature=temperature, alpha=alpha, seed=seed, name=arm)
                rows.append({"seed": seed, "arm": arm, "max_lr": max_lr, "temperature": temperature, "epochs": epochs,
                             **runs.outcome(accuracy(net, test))})
    runs.write(f"{NAME}_runaway", f"{COMMAND} runaway", rows=rows)


def _without(missing: int, arm: str, logits: torch.Tensor, epochs: int, temperature: float) -> tuple[nn.Module, float]:
    """A network that was never shown the class, without gradients, and the bias that would suit it, from the validation images."""
    images, labels = data.load("train")
    validation, rest = split()
    shown = rest[labels[rest] != missing]
    net = train(arm, Transfer(images[shown], labels[shown], logits[shown]), epochs, 0, UNSEEN_RATE, temperature, alpha=1.0)
    net.requires_grad_(False)
    return net, distill.best_bias(distill.teacher_logits(net, images[validation]), labels[validation], missing)


@lru_cache(maxsize=4)  # in one process the many trainings with the same images share them, and what the teacher says
def _views(regime: str, seed: int, device: str, shorter: int, teacher: bool) -> Transfer:
    index = split()[1]
    if regime == "small":
        index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:SMALL]]
    return views(index[:len(index) // shorter], device, teacher)


def _transfer(regime: str, seed: int, device: str, shorter: int, teacher: bool) -> Transfer:
    return _views(regime, seed if regime == "small" else 0, device, shorter, teacher)        # full: the same images for every seed


def _epochs(what: str, shorter: int) -> int:
    return max(1, EPOCHS[what] // shorter)


def _candidates(folder: Path, regime: str, name: str) -> list[dict]:
    """The settings to choose from; name: an arm, or "rate". In full, all but the rates are tried at the best rate."""
    if name == "rate":
        return [{"max_lr": rate} for rate in RATES[regime]]
    return [(best(folder, "full", "twin") if regime == "full" else {}) | setting for setting in SETTINGS[regime][name]]


def _rows(folder: Path, name: str, number: int) -> list[dict]:
    if not (folder / f"{name}_{number}.json").exists():
        raise ValueError(f"{folder} lacks the training {name} {number}, by which this one is chosen: run the stage before it.")
    return runs.raw(f"{name}_{number}", folder)["rows"]


PARTS: dict[str, Callable] = {"unseen": unseen, "runaway": runaway}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train and measure students, twins and controls for notebook 10, and write the records.")
    parser.add_argument("what", nargs="?", choices=[*STAGES, *PARTS, "list", "run", "collect"], help="without it, all parts")
    parser.add_argument("which", nargs="*", help="after list: a stage; after run: names, each with a number; after collect: full or small")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where single trainings are written (runs)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    given = parser.parse_args(arguments)
    all_stages = [stage for stages in STAGES.values() for stage in stages]
    which = [(name, int(number)) for name, number in zip(given.which[::2], given.which[1::2]) if number.isdigit()]
    known = {name for stage in all_stages for name in names(stage)}
    fits = {"list": len(given.which) == 1 and given.which[0] in all_stages, "collect": len(given.which) == 1 and given.which[0] in STAGES,
            "run": 0 < 2 * len(which) == len(given.which) and set(which) <= known}
    if not fits.get(given.what, not given.which):
        parser.error("after list name a stage; after run names and numbers that list prints; after collect full or small; else nothing")
    if given.what == "list":
        print("\n".join(f"{name} {number}" for name, number in names(given.which[0])))
    elif given.what == "run":
        for name, number in which:
            run(name, number, given.folder, given.device)
    elif given.what == "collect":
        collect(given.which[0], given.folder)
    else:
        for part in [given.what] if given.what else [*STAGES, *PARTS]:
            in_turn(part, given.folder, given.device) if part in STAGES else PARTS[part]()


if __name__ == "__main__":
    main()
