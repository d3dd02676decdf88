"""A network in somebody else's runtime: what `qlab export` does.

    qlab export --to tflite depthwise depthwise.tflite                                  a network of the zoo
    qlab export my_module:make_model --calibration images.npy net.tflite                one's own, through qlab.deploy.export

A network of the zoo is calibrated with images of the training set. One's own is a module or a Python file, which is imported, and the
name in it of a torch.nn.Module, or of what makes one without arguments; its images are a file of NumPy or torch, never unpickled.
"""

import contextlib
import importlib
import importlib.util
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qlab.deploy import door
from qlab.deploy.files import Description
from qlab.errors import first_line
from qlab.lab import data, zoo
from qlab.nets import integer, ptq
from qlab.nets.integer import IntegerNetwork
from qlab.nets.ptq import Quantized
from qlab.translate import tr

INTEGER, RUNTIMES = door.INTEGER, door.RUNTIMES


def export(name: str, runtime: str, path: str | os.PathLike) -> Description:
    """Write the network of that name, in INT8, for the runtime, and its description beside it.

    Raises ValueError for an unknown runtime or network, ImportError where a library is missing, OSError where path cannot be written.
    """
    if runtime not in RUNTIMES:
        raise ValueError(tr("runtime is {runtime!r}, and must be one of {choices}.", runtime=runtime, choices=", ".join(RUNTIMES)))
    model, images = zoo.load(name), data.calibration(512).images
    module = importlib.import_module(f"qlab.deploy.{runtime}")
    if runtime in INTEGER:
        return module.export(integer.convert(ptq.quantize(model, images)), path, name=name)
    return module.export(model, path, images, name=name)


def export_own(model: str, calibration: str, path: str, to: str | None = None, weights: str | None = None) -> door.Exported:
    """Write one's own network. model: MODULE:NAME or FILE.py:NAME; calibration: .npy, .npz, .pt, or a folder of .npy files; weights: a
    state_dict to load into it, .pt or .safetensors.

    Raises ValueError, TypeError, OSError or ImportError, in one sentence, for what cannot be read or does not fit.
    """
    door.where(path, to)                                                                    # before anything takes time
    network = make(model)
    if weights is not None:
        load_weights(network, weights)
    return door.export(network, images(calibration), path, to)


# The network


def make(name: str) -> nn.Module | Quantized | IntegerNetwork:
    """What MODULE:NAME or FILE.py:NAME is, or makes when it is called without arguments."""
    source, _, wanted = name.rpartition(":")
    if not source or not wanted.isidentifier():
        raise ValueError(tr("the network is {name!r}, and must be MODULE:NAME or FILE.py:NAME, such as my_module:make_model.", name=name))
    module = _imported(source)
    if not hasattr(module, wanted):
        raise ValueError(tr("there is no {wanted} in {source}: name a network of it, or a function that makes one.",
                            wanted=wanted, source=source))
    found = getattr(module, wanted)
    if isinstance(found, (nn.Module, Quantized, IntegerNetwork)) or not callable(found):
        return found
    with _said(tr("{name} cannot be called without arguments to make a network", name=name)):
        return found()


def _imported(source: str):
    if not source.endswith(".py"):
        with _importing_from(Path.cwd()), _said(tr("{source} cannot be imported", source=source)):
            return importlib.import_module(source)
    path = Path(source).resolve()
    if not path.is_file():
        raise FileNotFoundError(tr("there is no file {source}.", source=source))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module                                                         # dataclasses and pickles look there
    with _importing_from(path.parent), _said(tr("{source} cannot be imported", source=source)):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(path.stem)
            if before is not None:
                sys.modules[path.stem] = before
            raise
    return module


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """The folder comes first; it stays, for a function may import when it is called."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    yield


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Whatever somebody's code raises, as a ValueError of one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise ValueError(tr("{what} ({kind}: {why}).", what=what, kind=type(error).__name__, why=first_line(error))) from error


def load_weights(network: nn.Module, path: str) -> None:
    """Load a state_dict, .safetensors or of torch.save, in place; under the key "state_dict" too. ValueError where it does not fit."""
    if not isinstance(network, nn.Module):
        raise TypeError(tr("weights are for a torch.nn.Module, and the network is a {kind}.", kind=type(network).__name__))
    state = _safetensors(path) if path.endswith(".safetensors") else _torch(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(tr("{path} holds no state_dict, which is tensors by their names.", path=path))
    try:
        missing, unknown = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        said = str(error).splitlines()[-1].strip().rstrip(".")                              # below a line that names the class
        raise ValueError(tr("{path} does not fit the network ({said}).", path=path, said=said)) from None
    for what, names in ((tr("it lacks"), missing), (tr("the network lacks"), unknown)):
        if names:
            raise ValueError(tr("{path} does not fit the network: {what} {names}.",
                                path=path, what=what, names=", ".join(names[:5]) + ", ..." * (len(names) > 5)))


# Images


def images(path: str):
    """What door.export takes as calibration, from a file or a folder of .npy files, each an image or a batch."""
    place = Path(path)
    if place.is_dir():
        found = sorted(place.glob("*.npy"))
        if not found:
            raise FileNotFoundError(tr("there are no .npy files in {path}.", path=path))
        return (_numpy(file) for file in found)
    if place.suffix == ".npy":
        return _numpy(place)
    if place.suffix == ".npz":
        return _largest(_numpy(place), path)
    if place.suffix in (".pt", ".pth"):
        return _torch(path)
    raise ValueError(tr("the calibration images are {path}, and must be .npy, .npz, .pt, or a folder of .npy files.", path=path))


def _numpy(path: Path):
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(tr("there is no file {path}.", path=path)) from None
        raise OSError(tr("cannot read {path} ({reason}).", path=path, reason=error.strerror or first_line(error))) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
        raise ValueError(tr("{path} is no array of numbers that NumPy can read ({why}).", path=path, why=first_line(error))) from None


def _largest(arrays: dict, path: str) -> np.ndarray:
    """Of several arrays the one with the most dimensions, for labels have fewer."""
    if not arrays:
        raise ValueError(tr("{path} holds no array.", path=path))
    ranked = sorted(arrays, key=lambda name: -np.ndim(arrays[name]))
    if len(ranked) > 1 and np.ndim(arrays[ranked[0]]) == np.ndim(arrays[ranked[1]]):
        raise ValueError(tr("{path} holds {names}, and must hold one array of images, and labels at most.",
                            path=path, names=" and ".join(ranked)))
    return arrays[ranked[0]]


def _torch(path: str):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(tr("there is no file {path}.", path=path)) from None
    except pickle.UnpicklingError:
        raise ValueError(tr("{path} holds more than tensors, and unpickling it would run code: save tensors, or a state_dict.",
                            path=path)) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
        raise ValueError(tr("{path} is damaged, or no file of torch.save ({why}).", path=path, why=first_line(error))) from None


def _safetensors(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file
    try:
        return load_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(tr("there is no file {path}.", path=path)) from None
    except Exception as error:  # noqa: BLE001 - it has an error of its own
        raise ValueError(tr("{path} is damaged, or no safetensors file ({why}).", path=path, why=first_line(error))) from None
