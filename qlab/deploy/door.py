"""One door to every runtime: a network as it was trained, images to calibrate with, and the name of a file, whose ending says for whom.

    .tflite    full INT8 for LiteRT and tflite-micro             .onnx    ONNX Runtime
    .c         one C99 file and its header                       .pt2     PyTorch

    copy, in evaluation mode and float32  ->  quantize, by ptq.quantize and integer.convert, or by the runtime's own quantizer
    ->  write in a temporary folder  ->  run that file on calibration images  ->  put it in its place

The network given is never changed, and no file is written that did not run. What was done to the copy, the result tells.
"""

import contextlib
import importlib
import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qlab import saving
from qlab.deploy import checks, files, tried
from qlab.deploy.images import images_for
from qlab.errors import first_line
from qlab.nets import integer, ptq
from qlab.nets.integer import IntegerNetwork
from qlab.nets.plain import plain_copy
from qlab.nets.ptq import Quantized
from qlab.translate import tr

ENDINGS = {".tflite": "tflite", ".c": "c", ".onnx": "onnx", ".pt2": "pytorch"}
RUNTIMES, INTEGER = tuple(ENDINGS.values()), ("tflite", "c")
RUN_BY = {"tflite": "LiteRT", "c": "this machine", "onnx": "ONNX Runtime", "pytorch": "PyTorch"}
FAINT = 10                                                                                  # decibels, below which notes say so


@dataclass(frozen=True)
class Exported(files.Description):
    """What export wrote, and how the file did on so many calibration images; str() tells it in a few lines.

    path, runtime: where, and whose. images: on how many the file ran; 0: it did not, and notes say why. same: how many have the largest
    output where the float network has it, None without one or without classes. decibels: signal to noise of all outputs against the
    float network's. codes: share of the output's codes that are those of qlab's integer network; apart: the largest difference, in codes;
    None where the runtime quantizes by itself. notes: what was done to the copy, and what else there is to know.
    """

    path: str
    runtime: str
    images: int
    same: int | None
    decibels: float | None
    codes: float | None
    apart: int | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.format}, operations: {len(self.layers)}, {self.nbytes:,} bytes"]
        if self.images:
            found = [] if self.same is None else [f"the float network's answer for {self.same}"]
            found += [] if self.decibels is None else [f"signal to noise {self.decibels:.1f} dB"]
            if self.codes is not None:
                share = "all codes" if self.codes == 1 else f"{self.codes:.2%} of the codes"
                found.append(f"{share} those of the integer network" + f", the others at most {self.apart} apart" * (self.codes < 1))
            lines.append(f"run by {RUN_BY[self.runtime]} on {self.images} calibration image{'s' * (self.images > 1)}: {', '.join(found)}")
        return "\n".join([*lines, *self.notes])


@contextlib.contextmanager
def _as_torch_starts() -> Iterator[None]:
    """float32 and the CPU unless something else is said, no autocast, no inference mode: whatever the caller has set."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        yield


@_as_torch_starts()
def export(model: nn.Module | Quantized | IntegerNetwork, calibration, path: str | os.PathLike, to: str | None = None,
           **options) -> Exported:
    """Write the network for a runtime, with its description beside it, after running the file on the calibration images.

    model: a torch.nn.Module of any float dtype; tflite and c also take what ptq.quantize, qat.convert or integer.convert made.
    calibration: training images (n, ...), floats scaled as the network was trained: a tensor, an array, (images, labels), or a DataLoader,
    Dataset, list or generator of images, of batches or of (batch, labels), of which the first 1,024 images are read; labels are left
    out. path: its ending names the runtime, or to does: tflite, c, onnx or pytorch. options: of ptq.quantize for tflite and c (ranges,
    equalize, ...), and of the runtime's own export (name, softmax, kind, ...); a C file that is told no name gets one of its path's.

    Raises TypeError or ValueError, in one sentence, for what does not fit or cannot be quantized, ImportError with what to install,
    OSError where nothing can be written; then nothing is.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = export(net, torch.rand(8, 1, 4, 4), f"{folder}/tiny.tflite")
    >>> done.runtime, done.images, done.notes[0]
    ('tflite', 8, 'batch norms folded into the layers before them: 1')
    """
    path, runtime = where(path, to)
    module, notes = importlib.import_module(f"qlab.deploy.{runtime}"), []
    network = model if isinstance(model, (Quantized, IntegerNetwork)) else _float_copy(model, notes)
    if network is model and runtime not in INTEGER:
        raise TypeError(tr("model is a {kind}, and must be the float network: {runtime} brings its own quantizer.",
                           kind=type(model).__name__, runtime=runtime))
    quantizing, writing = _sorted(options, runtime, module, network)
    if runtime == "c" and writing.get("name") is None:
        writing["name"] = _c_name(path.stem)
        notes += [f"its names in C begin with {writing['name']}"] * (writing["name"] != path.stem)
    floats = network.model if isinstance(network, Quantized) else network
    images = images_for(tried.decoded(network) if isinstance(network, IntegerNetwork) else floats, calibration, notes)
    shape = tuple(images.shape[1:])
    if runtime in INTEGER or checks.readable(network):
        notes += _rewritten(network)
    if runtime in INTEGER:
        quantized = ptq.quantize(network, images, **quantizing) if isinstance(network, nn.Module) else network
        notes += [f"{name or 'the network'} is left in floats: {why}" for name, why in getattr(quantized, "left", {}).items()]
        ours = quantized if isinstance(quantized, IntegerNetwork) else integer.convert(quantized, shape)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        if runtime in INTEGER:
            about = module.export(ours, made, shape, **writing)
            truth = None if network is ours else floats
            found = tried.run_codes(module, made, ours, images[:tried.CHECKED], truth, bool(writing.get("softmax")), notes)
        else:
            about = module.export(network, made, images, image_shape=shape, **writing)
            found = tried.run_floats(module, made, images[:tried.CHECKED], floats, writing.get("batch"))
        contents = {path.parent / file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    if found["decibels"] is not None and found["decibels"] < FAINT:
        notes.append(f"the file is far from the network: signal to noise {found['decibels']:.1f} dB, where 30 to 50 are usual")
    saving.write(contents)
    told = {field.name: getattr(about, field.name) for field in fields(files.Description)}
    return Exported(**told, path=str(path), runtime=runtime, notes=tuple(notes), **found)


# Where to


def where(path: str | os.PathLike, to: str | None) -> tuple[Path, str]:
    """The file to write, and the runtime that it is for. Raises as export does.

    >>> where("net.onnx", None)[1], where("net.int8", to="tflite")[1]
    ('onnx', 'tflite')
    """
    path = _path(path)
    return path, _runtime(path, to)


def _path(path) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(tr("path is a {kind}, and must be the name of a file, such as 'net.tflite'.", kind=type(path).__name__))
    path = Path(path)
    try:
        if "\0" in str(path):
            raise OSError(tr("it holds a zero"))
        folder = path.is_dir()
        if not folder:
            files.beside(path).exists()                                                     # the longer of the two names
    except OSError as error:
        raise OSError(tr("cannot write {path!r} ({reason}): name another place.", path=str(path), reason=error.strerror or error)) from None
    if folder:
        raise ValueError(tr("path is {path}, a folder, and must be the name of a file, such as {example}.",
                            path=path, example=path / "net.tflite"))
    if not path.parent.is_dir():
        raise FileNotFoundError(tr("cannot write {path}: there is no folder {parent}.", path=path, parent=path.parent))
    return path


def _c_name(stem: str) -> str:
    """The stem, or a name for C like it.

    >>> _c_name("ds_cnn"), _c_name("my-net v2"), _c_name("8bit")
    ('ds_cnn', 'my_net_v2', 'net_8bit')
    """
    name = re.sub(r"[^A-Za-z0-9_]", "_", stem)
    return name if name[0].isalpha() else f"net_{name.lstrip('_')}"


def _runtime(path: Path, to: str | None) -> str:
    named = ENDINGS.get(path.suffix.lower())
    if to is not None and to not in RUNTIMES:
        raise ValueError(tr("to is {to!r}, and must be one of {choices}.", to=to, choices=", ".join(RUNTIMES)))
    if to is None and named is None:
        raise ValueError(tr("path is {path}, and must end in {endings}, or to must name the runtime: {runtimes}.",
                            path=path, endings=", ".join(ENDINGS), runtimes=", ".join(RUNTIMES)))
    if to is not None and (named or to) != to or to == "c" and path.suffix != ".c":
        raise ValueError(tr("path is {path}, and a file for {to} ends in {ending}.",
                            path=path, to=to, ending=next(end for end, runtime in ENDINGS.items() if runtime == to)))
    return to or named


def _sorted(options: dict, runtime: str, module, network) -> tuple[dict, dict]:
    """The options for ptq.quantize, and those for the runtime's export."""
    quantizing = set(inspect.signature(ptq.quantize).parameters) if runtime in INTEGER and isinstance(network, nn.Module) else set()
    writing = set(inspect.signature(module.export).parameters)
    quantizing, writing = ({*names} - {"model", "network", "calibration", "path", "image_shape"} for names in (quantizing, writing))
    if unknown := sorted({*options} - quantizing - writing):
        raise ValueError(tr("there is no option {option} here: {runtime} takes {choices}.",
                            option=unknown[0], runtime=runtime, choices=", ".join(sorted(quantizing | writing))))
    return {k: v for k, v in options.items() if k in quantizing}, {k: v for k, v in options.items() if k in writing - quantizing}


# The network


def _float_copy(model, notes: list[str]) -> nn.Module:
    """A copy on the CPU, in float32 and evaluation mode; notes get what that changed."""
    if hasattr(model, "_orig_mod") or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        notes.append(f"taken out of its {type(model).__name__}")
        model = getattr(model, "_orig_mod", None) or model.module
    _check_module(model)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(tr("{name} has no values yet, for its layer is a lazy one: run the network on an image, and train it, first.",
                                name=name))
        if tensor.is_meta:
            raise ValueError(tr("{name} is on the meta device, and has no values: load the network's weights first.", name=name))
        if tensor.is_complex():
            raise ValueError(tr("{name} holds {dtype}, and must hold real numbers.", name=name, dtype=tensor.dtype))
        if tensor.is_floating_point() and not tensor.detach().float().isfinite().all():
            raise ValueError(tr("{name} holds NaN or infinity, in float32 at least, and must be finite everywhere.", name=name))
    if any(module.training for module in model.modules()):
        notes.append("the network was in training mode: exported as it computes in evaluation mode")
    if dtypes := sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()} - {"float32"}):
        notes.append(f"{' and '.join(dtypes)} made float32")
    try:
        return plain_copy(model).eval().cpu().float()
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - an object may refuse to be copied in any way
        raise ValueError(tr("the network cannot be copied ({why}).", why=first_line(error))) from None


def _check_module(model) -> None:
    """TypeError, saying what to give instead, for what is no torch.nn.Module, or one that can only be called."""
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule) and not hasattr(model, "_guards_fn"):
        return
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        what = tr("a scripted module (torch.jit), and must be the torch.nn.Module that it was made of")
    elif isinstance(model, torch.export.ExportedProgram) or hasattr(model, "_guards_fn"):   # .module() of one
        what = tr("an exported program, and must be the torch.nn.Module that it was made of")
    elif isinstance(model, (str, os.PathLike)):
        what = tr("the path {path}, and must be the network itself: make it, then load_state_dict(torch.load(path))", path=os.fspath(model))
    elif isinstance(model, dict):
        what = tr("a dict, such as a state_dict, and must be the network itself: make it, then load_state_dict(...)")
    elif isinstance(model, type):
        what = tr("the class {kind}, and must be an instance of it: {kind}(...)", kind=model.__name__)
    elif callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        what = tr("a function, {name}, and must be a torch.nn.Module, which has its weights", name=name)
    else:
        what = tr("a {kind}, and must be a torch.nn.Module", kind=type(model).__name__)
    raise TypeError(tr("model is {what}.", what=what))


def _rewritten(network) -> list[str]:
    """What qlab.nets.graph writes in another way, of a float network."""
    layers = list(network.modules()) if isinstance(network, nn.Module) else []
    norms = sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    turned = sum(isinstance(layer, nn.ConvTranspose2d) for layer in layers)
    told = [f"batch norms folded into the layers before them: {norms}", f"transposed convolutions written as convolutions: {turned}"]
    return [line for line, count in zip(told, (norms, turned)) if count]
