"""The zoo: trained networks, each a safetensors file beside the JSON record of the run that made it.

    cnn         plain CNN, 93K parameters
    depthwise   depthwise-separable net with batch norm, 72K parameters
    resnet      residual teacher, 375K parameters
    lenet300    LeNet-300-100, 267K parameters, and LeNet-5, 431K: for Deep Compression
    lenet5

`qlab zoo` (or make zoo) trains them again from nothing, on the CPU, with the recipe below; nothing is chosen by the test images,
which are looked at once, at the end. The filters that training left dead (qlab.nets.dead) are listed in the record of a network with
batch norm, and load sets them to zero, which changes no outcome; load(name, as_trained=True) leaves them: notebook 02 meets them.
"""

import datetime
import hashlib
import json
import platform
import re
import time
from pathlib import Path

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import nn
from torch.nn.functional import cross_entropy

from qlab import saving
from qlab.lab import data
from qlab.lab.measure import accuracy
from qlab.nets import dead
from qlab.nets.models import MODELS
from qlab.nets.ptq import fold_batch_norm
from qlab.nets.training import fit
from qlab.translate import tr

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


def _known(name: str) -> str:
    if name not in MODELS:
        raise ValueError(tr("name is {name!r}, and must be one of {choices}.", name=name, choices=", ".join(MODELS)))
    return name


def load(name: str, folder: Path = FOLDER, as_trained: bool = False) -> nn.Module:
    """The trained network, in evaluation mode: "cnn", "depthwise", "resnet", "lenet300" or "lenet5".

    Dead filters, which training leaves behind in networks with batch norm, are set to zero; as_trained leaves them as they were.
    Raises ValueError for another name or a checkpoint whose sha256 is not the record's, FileNotFoundError if it is missing.

    >>> sum(p.numel() for p in load("cnn").parameters())
    93322
    """
    entry = record(name, folder)
    model = MODELS[name]()
    model.load_state_dict(read_checkpoint(name, entry, folder))
    model.eval().requires_grad_(False)
    return model if as_trained else dead.zero(model, {layer: _mask(model, layer, **found) for layer, found in entry["dead"].items()})


def _mask(model: nn.Module, layer: str, starved: list[int], silent: list[int]) -> dead.Dead:
    filters = torch.arange(len(model.get_submodule(layer).weight))
    return dead.Dead(torch.isin(filters, torch.tensor(starved)), torch.isin(filters, torch.tensor(silent)))


def find_dead(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """For the record: the numbers of the filters of each layer that are starved or silent on 512 calibration images.

    Empty without batch norm: there a dead filter's weights are small, and set no scale.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return {}
    found = dead.find(fold_batch_norm(model), data.calibration(512).images)
    return {layer: {"starved": mask.starved.nonzero().flatten().tolist(), "silent": mask.silent.nonzero().flatten().tolist()}
            for layer, mask in found.items() if mask.any.any()}


def record(name: str, folder: Path = FOLDER) -> dict:
    """The record of the run that trained the network: recipe, seed, accuracy on the 10,000 test images, date, versions, sha256.

    >>> record("cnn")["parameters"]
    93322
    """
    return read_record(_known(name), folder)


def read_record(name: str, folder: Path) -> dict:
    """folder/NAME.json. Raises FileNotFoundError where there is none."""
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FileNotFoundError(tr("cannot read {path} ({reason}): restore it with git checkout, or train it with qlab zoo {name}.",
                                   path=path, reason=error.strerror, name=name)) from None


def read_checkpoint(name: str, entry: dict, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of folder/NAME.safetensors. Raises FileNotFoundError for a missing file, ValueError for another than its record names."""
    path = folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(tr("cannot read {path} ({reason}): restore it with git checkout, or train it with qlab zoo {name}.",
                                   path=path, reason=error.strerror, name=name)) from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(tr("{path} is not the checkpoint of its record (wrong sha256): restore it with git checkout, or train it "
                            "with qlab zoo {name}.", path=path, name=name))
    return load_bytes(content)


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
    saving.make_folder(folder)
    images, labels = data.load("train")
    torch.manual_seed(seed)
    model, started = MODELS[name](), time.time()
    fit(model, images, labels, recipe["epochs"], recipe["max_lr"], seed=seed, batch_size=BATCH_SIZE, momentum=MOMENTUM,
        weight_decay=recipe["weight_decay"], augment=augment if recipe["augmentation"] == FLIPS else None, name=name,
        loss=lambda model, x, y: cross_entropy(model(x), y, label_smoothing=recipe["label_smoothing"]))
    return _write(name, seed, recipe, model, time.time() - started, folder)


def _write(name: str, seed: int, recipe: dict, model: nn.Module, seconds: float, folder: Path) -> dict:
    test = data.load("test")
    content = save_bytes({k: v.contiguous() for k, v in model.state_dict().items()})
    entry = {
        "name": name, "architecture": f"qlab.nets.models.{MODELS[name].__name__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "Fashion-MNIST, 60,000 training images", "data_sha256": data.SHA256["train-images-idx3-ubyte.gz"],
        "optimiser": "SGD, Nesterov momentum, one-cycle learning rate",
        "momentum": MOMENTUM, "batch_size": BATCH_SIZE, **recipe, "seed": seed,
        "test_images": len(test.labels), "test_correct": int(accuracy(model, test).correct.sum()),
        "command": f"qlab zoo {name}", "date": datetime.date.today().isoformat(), "minutes": round(seconds / 60, 1),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "sha256": hashlib.sha256(content).hexdigest(), "dead": find_dead(model),
    }
    entry["test_accuracy"] = entry["test_correct"] / entry["test_images"]
    text = re.sub(r"\[\s+([\d,\s]*?)\s+]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(entry, indent=2))  # a list on a line
    saving.write({folder / f"{name}.safetensors": content, folder / f"{name}.json": (text + "\n").encode()})
    return entry
