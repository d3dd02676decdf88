"""The zoo: trained networks, each a safetensors file beside the JSON record of the run that made it.

    cnn         plain CNN, 93K parameters
    depthwise   depthwise-separable net with batch norm, 72K parameters
    resnet      residual teacher, 375K parameters
    lenet300    LeNet-300-100, 267K parameters, and LeNet-5, 431K: for Deep Compression
    lenet5

`qlab zoo` (or make zoo) trains them again from nothing, on the CPU, with the recipe below; nothing is chosen by the test images,
which are looked at once, at the end.
"""

import datetime
import hashlib
import json
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.lab import data
from qlab.lab.measure import accuracy
from qlab.nets.models import MODELS
from qlab.nets.training import fit

FOLDER = Path(__file__).parent / "checkpoints"
FLIPS, NONE = "horizontal flip, shift by up to 2 pixels", "none"
RECIPE = {  # SGD with Nesterov momentum, one-cycle learning rate (Smith 2018)
    "cnn": {"augmentation": FLIPS, "epochs": 16, "max_lr": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "depthwise": {"augmentation": FLIPS, "epochs": 16, "max_lr": 0.2, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "resnet": {"augmentation": FLIPS, "epochs": 16, "max_lr": 0.2, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "lenet300": {"augmentation": NONE, "epochs": 20, "max_lr": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "lenet5": {"augmentation": FLIPS, "epochs": 16, "max_lr": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.0},
}
BATCH_SIZE, MOMENTUM = 128, 0.9
_REMEDY = "restore it with git checkout, or train it with qlab zoo"


def _known(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"name is {name!r}, and must be one of {', '.join(MODELS)}.")
    return name


def load(name: str, folder: Path = FOLDER) -> nn.Module:
    """The trained network, in evaluation mode: "cnn", "depthwise", "resnet", "lenet300" or "lenet5".

    Raises ValueError for another name or a checkpoint whose sha256 is not the record's, FileNotFoundError if it is missing.

    >>> sum(p.numel() for p in load("cnn").parameters())
    93322
    """
    checksum, path = record(name, folder)["sha256"], folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): {_REMEDY} {name}.") from None
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{path} is not the checkpoint of its record (wrong sha256): {_REMEDY} {name}.")
    model = MODELS[name]()
    model.load_state_dict(load_bytes(content))
    return model.eval().requires_grad_(False)


def record(name: str, folder: Path = FOLDER) -> dict:
    """The record of the run that trained the network: recipe, seed, accuracy on the 10,000 test images, date, versions, sha256.

    >>> record("cnn")["parameters"]
    93322
    """
    path = folder / f"{_known(name)}.json"
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): {_REMEDY} {name}.") from None


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image flipped left to right with probability 1/2 and shifted by -2 to 2 pixels, filled with the background; (n, 1, 28, 28)."""
    n = len(images)
    flip = torch.rand(n, 1, 1, 1, generator=generator) < 0.5                                # drawn on the CPU: the same on every device
    images = torch.where(flip.to(images.device), images.flip(3), images)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=-data.MEAN / data.STD)
    dy, dx = torch.randint(0, 5, (2, n, 1), generator=generator)
    rows, columns = torch.arange(28) + dy, torch.arange(28) + dx                            # (n, 28)
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(name: str, seed: int = 0, epochs: int | None = None, folder: Path = FOLDER) -> dict:
    """Train one network on the 60,000 training images; write checkpoint and record to folder; return the record.

    The same seed, machine and number of threads give the same weights. epochs replaces the recipe's number.
    """
    recipe = RECIPE[_known(name)] | ({} if epochs is None else {"epochs": epochs})
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = data.load("train")
    torch.manual_seed(seed)
    model, started = MODELS[name](), time.time()
    fit(model, images, labels, recipe["epochs"], recipe["max_lr"], seed=seed, batch_size=BATCH_SIZE, momentum=MOMENTUM,
        weight_decay=recipe["weight_decay"], augment=augment if recipe["augmentation"] == FLIPS else None, name=name,
        loss=lambda model, x, y: cross_entropy(model(x), y, label_smoothing=recipe["label_smoothing"]))
    return _write(name, seed, recipe, model, time.time() - started, folder)


def _write(name: str, seed: int, recipe: dict, model: nn.Module, seconds: float, folder: Path) -> dict:
    test = data.load("test")
    path, partial = folder / f"{name}.safetensors", folder / f"{name}.safetensors.partial"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    entry = {
        "name": name, "architecture": f"qlab.nets.models.{MODELS[name].__name__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "Fashion-MNIST, 60,000 training images", "data_sha256": data.SHA256["train-images-idx3-ubyte.gz"],
        "optimiser": "SGD, Nesterov momentum, one-cycle learning rate",
        "momentum": MOMENTUM, "batch_size": BATCH_SIZE, **recipe, "seed": seed,
        "test_images": len(test.labels), "test_correct": int(accuracy(model, test).correct.sum()),
        "command": f"qlab zoo {name}", "date": datetime.date.today().isoformat(), "minutes": round(seconds / 60, 1),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "sha256": hashlib.sha256(partial.read_bytes()).hexdigest(),
    }
    entry["test_accuracy"] = entry["test_correct"] / entry["test_images"]
    entry_partial = folder / f"{name}.json.partial"
    entry_partial.write_text(json.dumps(entry, indent=2) + "\n")
    partial.replace(path)  # both are complete before either takes its place
    entry_partial.replace(folder / f"{name}.json")
    return entry
