"""A file that was just written, run on calibration images: does it say what the network says? One that does not is not kept.

    integer networks    code by code against qlab.nets.integer, and decoded against the float network
    float networks      against the float network:  decibels = 10 log10(signal / noise), and images with the same class
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import torch

from qlab.nets.integer import IntegerNetwork

CHECKED, MICRO = 128, 4  # calibration images that the file runs on; those for tflite-micro


def decoded(network: IntegerNetwork) -> Callable:
    """The integer network as images to outputs, floats both."""
    return lambda images: network.decode(network(images))


@torch.no_grad()
def outputs_of(network: Callable, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([network(batch.clone()) for batch in images.split(32)])


def run_codes(module, path: Path, ours: IntegerNetwork, images: torch.Tensor, floats: Callable | None, softmax: bool,
               notes: list[str]) -> dict:
    """The file on images against the integer network, code by code, and against the float network where there is one."""
    codes = ours.encode(images)
    try:
        found = module.run(path, codes)
    except FileNotFoundError as error:  # no C compiler
        notes.append(f"not run: {error}")
        return {"images": 0, "same": None, "decibels": None, "codes": None, "apart": None}
    if path.suffix != ".c" and not softmax:
        _run_micro(module, path, ours, codes[:MICRO], notes)
    truth = None if floats is None else outputs_of(floats, images)
    if softmax:  # probabilities, in codes of their own
        truth = None if truth is None else truth.softmax(1)
        return _against((found.int() + 128) / 256, truth, len(images)) | {"codes": None, "apart": None}
    difference = (found.int() - torch.cat([ours.run(batch) for batch in codes.split(32)]).int()).abs()
    share, apart = (difference == 0).double().mean().item(), int(difference.max())
    if apart and path.suffix == ".c":
        raise ValueError(f"{path.name} computes other codes than the integer network, {1 - share:.2%} of them, and was not written.")
    return _against(ours.decode(found), truth, len(images)) | {"codes": share, "apart": apart}


def _run_micro(module, path: Path, ours: IntegerNetwork, codes: torch.Tensor, notes: list[str]) -> None:
    """tflite-micro rounds as qlab does, and LiteRT's kernels otherwise: it is the exact check, where it is installed and has the memory."""
    try:
        found = module.run(path, codes, "micro")
    except (ImportError, ValueError):
        return
    if not torch.equal(found, ours.run(codes)):
        raise ValueError(f"{path.name} computes other codes in tflite-micro than the integer network, and was not written.")
    notes.append(f"run by tflite-micro on {len(codes)} of them: all codes those of the integer network")


def run_floats(module, path: Path, images: torch.Tensor, floats: Callable, batch: int | None) -> dict:
    """The file on images against the float network. batch: the only number of images that the file takes."""
    if batch:
        images = images[torch.arange(-(-len(images) // batch) * batch) % len(images)]
    trust = {"trust": True} if "trust" in inspect.signature(module.load).parameters else {}  # it was written just now
    runtime = module.load(path, **trust)
    found = torch.cat([runtime(part) for part in images.split(batch or 32)])
    return _against(found, outputs_of(floats, images), len(images)) | {"codes": None, "apart": None}


def _against(found: torch.Tensor, wanted: torch.Tensor | None, images: int) -> dict:
    if wanted is None:
        return {"images": images, "same": None, "decibels": None}
    for outputs, whose in ((wanted, "the network"), (found, "the file")):
        if not outputs.isfinite().all():
            raise ValueError(f"{whose} gives NaN or infinity for calibration images, and nothing was written.")
    noise, signal = ((part.double() ** 2).sum().item() for part in (found - wanted, wanted))
    decibels = (10 * math.log10(signal / noise) if signal else -math.inf) if noise else math.inf
    classes = wanted.dim() == 2 and wanted.shape[1] > 1
    return {"images": images, "same": int((found.argmax(1) == wanted.argmax(1)).sum()) if classes else None, "decibels": decibels}
