"""Notebook 10's experiments: the zoo's residual network teaches a student of 8,962 parameters.

    python -m qlab.lab.experiments.distillation                      all parts, about half an hour on one core
    python -m qlab.lab.experiments.distillation --parts small        one part again; the others' results stay in the record

Parts, each on what the one before it has chosen:

    choose    the learning rate (the twin's best, used for all), temperature, alpha, label smoothing: on 5,000 training images that no
              later part trains on
    full      the other 55,000 images: student, twin, label smoothing, three seeds
    small     3,000 of them, drawn anew for each of five seeds: the same, and hints before distillation (FitNets)
    unseen    each of the ten classes in turn left out of the images that student and twin are shown
    runaway   1,000 images and no batch norm, three seeds: a hot teacher's pull at the twin's learning rate, and at a fifth of it

The twin is the student without a teacher: same initial weights, images in the same order, epochs and learning rate, labels only. Images
are seen as they are and mirrored, so that the teacher's logits of both are computed once. The test images are looked at once, at the
end of each part.
"""

import argparse
import json
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.lab import data, runs, zoo
from qlab.lab.measure import Accuracy, accuracy
from qlab.nets import distill
from qlab.nets.training import fit

NAME, COMMAND = "distillation", "python -m qlab.lab.experiments.distillation"
VALIDATION, SMALL = 5_000, 3_000                    # images
EPOCHS = {"full": 4, "small": 15, "hints": 5, "unseen": 2, "try": 1}
SEEDS = {"full": range(3), "small": range(5), "hints": range(3)}
ARMS, TEMPERATURES = ("twin", "smoothing", "student"), (2.0, 4.0, 8.0, 16.0)
RUNAWAY = {0.1: (10, 16.0), 0.02: (20, 4.0)}        # learning rate: (epochs, temperature)
UNSEEN = 3                                          # the left-out class whose student is kept: Dress, as 3 is the digit in Hinton et al.


def student(seed: int = 0) -> nn.Sequential:
    """Three convolutions with batch norm and one linear layer, its initial weights drawn from seed; a 42nd of the teacher's parameters.

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


def views(logits: torch.Tensor, index: torch.Tensor) -> Transfer:
    """The training images of these numbers, and behind them the same images mirrored; logits: (2, 60000, 10)."""
    images, labels = data.load("train")
    return Transfer(torch.cat([images[index], images[index].flip(3)]), labels[index].repeat(2), logits[:, index].flatten(0, 1))


def train(arm: str, transfer: Transfer, epochs: int, seed: int, max_lr: float = 0.1, temperature: float = 4.0, alpha: float = 0.9,
          smoothing: float = 0.1) -> nn.Module:
    """Train one network: arm "twin", "smoothing", "student", or "hints", the student after FitNets' first stage."""
    net, (images, labels, logits) = student(seed), transfer
    if arm == "smoothing":
        fit(net, images, labels, epochs, max_lr, seed=seed, name=arm,
            loss=lambda net, x, y: cross_entropy(net(x), y, label_smoothing=smoothing))
        return net
    if arm == "hints":
        plain = images[:len(images) // 2]           # without the mirrored ones: the teacher runs live
        distill.fit_hints(net, zoo.load("resnet"), plain, "relu2", "block3", EPOCHS["hints"], max_lr, seed=seed)
    distill.distill(net, logits, images, labels, epochs, max_lr, temperature=temperature, alpha=0.0 if arm == "twin" else alpha,
                    seed=seed, name=arm)
    return net


def part_choose(record: dict, logits: torch.Tensor) -> None:
    """One training for each candidate, with a seed that no later part uses; the best on the validation images is chosen.

    First the learning rate, for the twin; student and smoothing must do with it. Then theirs.
    """
    images, labels = data.load("train")
    validation, rest = split()
    held_out, rows, chosen = data.Split(images[validation], labels[validation]), [], {}

    def best(regime: str, arm: str, settings: list[dict], run) -> dict:
        right = []
        for setting in settings:
            right.append(int(accuracy(run(**setting), held_out).correct.sum()))
            rows.append({"regime": regime, "arm": arm, **setting, "correct": right[-1], "images": VALIDATION})
        return settings[right.index(max(right))]

    soft = [{"temperature": t, "alpha": a} for t in TEMPERATURES for a in (0.5, 0.9)]
    for regime, index, epochs in (("small", _draw(rest, 100), EPOCHS["small"]), ("full", rest, EPOCHS["try"])):
        transfer = views(logits, index)
        rate = best(regime, "twin", [{"max_lr": lr} for lr in (0.05, 0.1, 0.2)], partial(train, "twin", transfer, epochs, 100))
        candidates = {"student": soft if regime == "small" else soft[1::2]}
        candidates |= {"smoothing": [{"smoothing": s} for s in (0.05, 0.1, 0.2)]} if regime == "small" else {}
        chosen[regime] = {"twin": rate} | {
            arm: rate | best(regime, arm, settings, partial(train, arm, transfer, epochs, 100, **rate))
            for arm, settings in candidates.items()}
    chosen["full"]["smoothing"] = chosen["full"]["twin"] | {"smoothing": chosen["small"]["smoothing"]["smoothing"]}

    def corrected(**setting) -> nn.Module:
        net, bias = _without(UNSEEN, "student", logits, EPOCHS["try"], **setting)
        net.fc.bias[UNSEEN] += bias
        return net

    rate = chosen["full"]["twin"]
    chosen["unseen"] = best("unseen", "student", [rate | {"temperature": t, "alpha": 1.0} for t in TEMPERATURES], corrected)
    record |= {"choose": rows, "chosen": chosen}


def part_full(record: dict, logits: torch.Tensor) -> None:
    """All 55,000 images; keeps the student and the twin of the first seed."""
    transfer, test, rows = views(logits, split()[1]), data.load("test"), []
    for seed in SEEDS["full"]:
        for arm in ARMS:
            setting = record["chosen"]["full"][arm]
            net = train(arm, transfer, EPOCHS["full"], seed, **setting)
            rows.append({"seed": seed, "arm": arm, **setting, **runs.outcome(accuracy(net, test))})
            if seed == 0 and arm in ("student", "twin"):
                record["models"][arm] = runs.save_model(f"{NAME}_{arm}", net)
    record["full"] = rows


def part_small(record: dict, logits: torch.Tensor) -> None:
    """3,000 images, drawn anew for each seed."""
    test, rows = data.load("test"), []
    for seed in SEEDS["small"]:
        transfer = views(logits, _draw(split()[1], seed))
        for arm in (*ARMS, "hints") if seed in SEEDS["hints"] else ARMS:
            setting = record["chosen"]["small"]["student" if arm == "hints" else arm]
            net = train(arm, transfer, EPOCHS["small"], seed, **setting)
            rows.append({"seed": seed, "arm": arm, **setting, **runs.outcome(accuracy(net, test))})
    record["small"] = rows


def part_unseen(record: dict, logits: torch.Tensor) -> None:
    """Each class left out in turn. Soft labels alone (alpha = 1); the bias of the class is then chosen on the validation images."""
    test, rows = data.load("test"), []
    for missing, name in enumerate(data.CLASSES):
        for arm in ("twin", "student"):
            net, bias = _without(missing, arm, logits, EPOCHS["unseen"], **record["chosen"]["unseen"])
            if missing == UNSEEN:
                record["models"][f"unseen_{arm}"] = runs.save_model(f"{NAME}_unseen_{arm}", net)
            row = {"missing": missing, "class": name, "arm": arm, "bias": bias}
            for when, shift in (("before", 0.0), ("after", bias)):
                net.fc.bias[missing] += shift
                result = accuracy(net, test)
                row |= {when: runs.outcome(result), f"recall_{when}": runs.outcome(Accuracy(result.correct[test.labels == missing]))}
            rows.append(row)
    record["unseen"] = rows


def part_runaway(record: dict, logits: torch.Tensor | None) -> None:
    """Without batch norm, which keeps the size of what each layer sees; on 1,000 images, whose logits are made here."""
    (images, labels), test, rows = data.calibration(1000), data.load("test"), []
    soft = distill.teacher_logits(zoo.load("resnet"), images)
    for max_lr, (epochs, temperature) in RUNAWAY.items():
        for seed in SEEDS["full"]:
            for arm, alpha in (("twin", 0.0), ("student", 0.9)):
                net = nn.Sequential(*(layer for name, layer in student(seed).named_children() if not name.startswith("bn")))
                distill.distill(net, soft, images, labels, epochs, max_lr, temperature=temperature, alpha=alpha, seed=seed, name=arm)
                rows.append({"seed": seed, "arm": arm, "max_lr": max_lr, "temperature": temperature, "epochs": epochs,
                             **runs.outcome(accuracy(net, test))})
    record["runaway"] = rows


def _without(missing: int, arm: str, logits: torch.Tensor, epochs: int, **setting) -> tuple[nn.Module, float]:
    """A network that was never shown the class, without gradients, and the bias that would suit it, from the validation images."""
    images, labels = data.load("train")
    validation, rest = split()
    shown = rest[labels[rest] != missing]
    net = train(arm, Transfer(images[shown], labels[shown], logits[0, shown]), epochs, seed=0, **setting)
    net.requires_grad_(False)
    return net, distill.best_bias(distill.teacher_logits(net, images[validation]), labels[validation], missing)


def _draw(index: torch.Tensor, seed: int) -> torch.Tensor:
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:SMALL]]


def _logits(path: Path | None) -> torch.Tensor:
    """The teacher's logits of the training images as they are and mirrored, (2, 60000, 10); kept at path, if one is given."""
    if path is not None and path.exists():
        return torch.load(path)
    images, teacher = data.load("train").images, zoo.load("resnet")
    logits = torch.stack([distill.teacher_logits(teacher, images), distill.teacher_logits(teacher, images.flip(3))])
    if path is not None:
        torch.save(logits, path)
    return logits


PARTS = {"choose": part_choose, "full": part_full, "small": part_small, "unseen": part_unseen, "runaway": part_runaway}


def main(parts=tuple(PARTS), path: Path | None = None) -> None:
    """Run the parts in their order, and write the record after each."""
    record = {"teacher": {"network": "resnet", "sha256": zoo.record("resnet")["sha256"]}, "models": {}, "seconds": {}}
    if (runs.FOLDER / f"{NAME}.json").exists():
        record |= json.loads((runs.FOLDER / f"{NAME}.json").read_text())
    record |= {"validation_images": VALIDATION, "small_images": SMALL, "epochs": EPOCHS}
    record = {key: value for key, value in record.items() if key not in ("command", "environment")}
    logits = None if set(parts) == {"runaway"} else _logits(path)
    if "test" not in record["teacher"]:
        record["teacher"]["test"] = runs.outcome(accuracy(zoo.load("resnet"), data.load("test")))
    for part, function in PARTS.items():
        if part in parts:
            started = time.time()
            function(record, logits)
            record["seconds"][part] = round(time.time() - started)
            runs.write(NAME, COMMAND, **record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train and measure students, twins and controls for notebook 10, and write the record.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS), help="which parts; they run in this order")
    parser.add_argument("--logits", type=Path, metavar="FILE", help="keep the teacher's logits here, for the next run")
    arguments = parser.parse_args()
    main(arguments.parts, arguments.logits)
