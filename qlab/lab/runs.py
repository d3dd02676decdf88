"""The records of experiments that take longer than a page should: a JSON file of results in records/, beside it the networks made.

Which test images were right is kept for every result, so that any two can be compared by a paired test (measure.mcnemar).
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import nn

from qlab import saving
from qlab.lab import machine
from qlab.lab.significance import Accuracy

FOLDER = Path(__file__).parent / "records"


def outcome(result: Accuracy) -> dict:
    """An accuracy as a record keeps it: how many images were right, of how many, and which.

    >>> outcome(Accuracy(torch.tensor([True, True, False])))
    {'correct': 2, 'images': 3, 'right': 'wA=='}
    """
    right = base64.b64encode(np.packbits(result.correct.cpu().numpy())).decode()
    return {"correct": int(result.correct.sum()), "images": result.n, "right": right}


def accuracy_of(entry: dict) -> Accuracy:
    """The Accuracy that outcome wrote.

    >>> print(accuracy_of({"images": 3, "right": "wA=="}))
    66.7 % [20.8, 93.9]
    """
    right = np.unpackbits(np.frombuffer(base64.b64decode(entry["right"]), np.uint8))[:entry["images"]]
    return Accuracy(torch.from_numpy(right).bool())


def write(name: str, command: str, folder: Path = FOLDER, **content) -> dict:
    """Write folder/NAME.json: the command that repeats the run, the machine, the date, versions, and the content."""
    saving.make_folder(folder)
    return machine.write_record(folder / f"{name}.json", command, **content)


def raw(name: str, folder: Path = FOLDER) -> dict:
    """A record as it is in its file: what an experiment goes on from. Raises FileNotFoundError where there is none."""
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): restore it with git checkout.") from None


def one_machine(entries: Iterable[dict], folder: Path) -> dict:
    """The environment of single runs of an experiment, raw records of folder, at least one; ValueError if they come from several machines.

    >>> one_machine([{"environment": {"cpu": "a", "cuda": None, "torch": "2"}}], FOLDER)["cpu"]
    'a'
    """
    environments = [entry["environment"] for entry in entries]
    machines = {tuple(environment[key] for key in ("cpu", "cuda", "torch")) for environment in environments}
    if len(machines) > 1:
        raise ValueError(f"the runs in {folder} come from {len(machines)} machines, and results may be compared within one only.")
    return environments[0]


def load(name: str, folder: Path = FOLDER) -> dict:
    """A record, with an Accuracy under "result" beside every outcome in it. Raises FileNotFoundError where there is none."""
    return _with_results(raw(name, folder))


def _with_results(entry):
    if isinstance(entry, list):
        return [_with_results(e) for e in entry]
    if not isinstance(entry, dict):
        return entry
    entry = {key: _with_results(value) for key, value in entry.items()}
    return entry | {"result": accuracy_of(entry)} if "right" in entry else entry


def save_model(name: str, model: nn.Module, folder: Path = FOLDER) -> str:
    """Write the network's parameters and buffers to folder/NAME.safetensors, whole or not at all; return the sha256 for the record."""
    saving.make_folder(folder)
    content = save_bytes({key: tensor.contiguous() for key, tensor in model.state_dict().items()})
    saving.write({folder / f"{name}.safetensors": content})
    return hashlib.sha256(content).hexdigest()


def load_model(name: str, model: nn.Module, sha256: str, folder: Path = FOLDER) -> nn.Module:
    """Fill the model, of the architecture that was saved, and return it in evaluation mode, without gradients.

    Raises FileNotFoundError for a missing file, ValueError for one whose sha256 is not the record's.
    """
    path = folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): restore it with git checkout.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the network of its record (wrong sha256): restore it with git checkout.")
    model.load_state_dict(load_bytes(content))
    return model.eval().requires_grad_(False)
