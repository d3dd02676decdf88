"""PyTorch's own quantization: the source document's section 5.2 as it is written, and what has taken its place.

    document      torch.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), the whole model pickled by torch.save.
                  Only Linear layers are touched, so a network of convolutions hardly shrinks. Deprecated: torch names torchao instead.
    weight-only   torchao quantize_, Int8WeightOnlyConfig: int8 weights per row, decoded before a float product: fewer bytes, as much to do.
    dynamic       torchao quantize_, Int8DynamicActivationInt8WeightConfig: each image's range is found as it comes, products in int8.
                  Linear layers only, as in the document.
    static        pt2e: torch.export makes a graph, the X86InductorQuantizer says where codes go, calibration images give the ranges
                  (prepare_pt2e, convert_pt2e; a histogram's least squared error). Convolutions too. Run as it is, it decodes and
                  multiplies in float32: a simulation. Through torch.compile (load(path, compile=True)) oneDNN's integer kernels take
                  over, for one batch size at a time.
    static-8bit   static has activations of 7 bits (reduce_range), this one of 8. Without VNNI an x86 processor adds two products
                  uint8 * int8 in 16 bits and saturates: 2 * 255 * 127 > 2**15 - 1 > 2 * 127 * 128. Compiled there, static-8bit computes
                  some wrong sums, silently. (ONNX Runtime takes the bit from the weights instead: qlab.deploy.onnx.)

How a network is made ready for the static kinds: qlab.deploy.pytorch_static.

The listing's torch.load(path) of a whole model fails since torch 2.6, which unpickles nothing but tensors unless told weights_only=False:
unpickling a file calls whatever functions the file names, so it hands the machine to whoever wrote it. Hence all kinds
but the document's are .pt2 files (torch.export.save), which are also looked through before they are loaded (qlab.deploy.pt2).

Of torchao 0.18's other configurations, Int4WeightOnlyConfig and the Float8 ones with dynamic activations need a GPU or its kernels.

Source: the source document, 5.2 and 6.3; torchao's documentation, "Quantization Overview" and "PyTorch 2 Export Quantization".
"""

import contextlib
import copy
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from qlab.deploy import files
from qlab.deploy.checks import as_images, calibration_batches, exported, float_network, quiet, read
from qlab.deploy.pt2 import is_pickled_module, refuse_code
from qlab.deploy.pytorch_static import check_torchao, static
from qlab.deploy.side_by_side import BATCHES, Row, all_threads, right, times
from qlab.errors import first_line

KINDS = ("float", "document", "weight-only", "dynamic", "static", "static-8bit")
COMPILED = {kind: f"{kind}, compiled" for kind in ("float", "static", "static-8bit")}        # more rows of compare
PICKLED = ("{} is a pickled model: unpickling runs whatever code its author put in. If you wrote it yourself, say trust=True; "
           "other kinds of export need no trust.")


# Writing


def export(model: nn.Module, path: str | os.PathLike, calibration=None, kind: str = "static",
           image_shape: tuple[int, ...] = (1, 28, 28), name: str | None = None) -> files.Description:
    """Write the network in one file, a .pt2 archive or ("document") a pickled module, and its description beside it (NAME.json).

    model: any float network that torch.export reads; its batch norms are folded. calibration: training images (n, ...) or batches, needed
    for the static kinds. The static kinds give each call of a layer ranges of its own. The file takes batches of any size, and neither the
    model nor the images are changed. Raises TypeError or ValueError, in one sentence, for what does not fit, ImportError with what to
    install, OSError where it cannot write; no file is left half-written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, and must be one of {', '.join(KINDS)}.")
    image_shape = tuple(image_shape)
    network = float_network(model, image_shape)
    batches = calibration_batches(calibration, image_shape) if kind.startswith("static") else []
    with quiet():
        if kind == "document":
            quantized = document(network)
            content, layers = io.BytesIO(), _modules(network, quantized)
            _pickle(quantized, content)
        else:
            quantized = network
            if kind != "float":
                quantized = static(network, batches, kind == "static") if batches else linear_only(network, kind)
            program = _without_notes(exported(quantized, image_shape))
            content, layers = io.BytesIO(), _operations(program)
            torch.export.save(program, content)
            refuse_code(content.getvalue(), path)                                           # what load would refuse is not written
    with torch.no_grad():
        shape = tuple(network(torch.zeros(1, *image_shape)).shape[1:])
    return files.write(
        path, content.getvalue(), format=f"pytorch, {kind}, batch of any size", network=Path(path).stem if name is None else name,
        layers=layers, input=files.Port(image_shape, "float32"), output=files.Port(shape, "float32"))


def document(model: nn.Module) -> nn.Module:
    """Section 5.2's call. It warns: deprecated, and to be removed."""
    return torch.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def _pickle(model: nn.Module, content: io.BytesIO) -> None:
    try:
        torch.save(model, content)
    except Exception as error:  # noqa: BLE001 - an object may refuse in any way
        raise ValueError(f"the network cannot be pickled whole, as the document's listing does it ({first_line(error)}).") from None


def linear_only(model: nn.Module, kind: str) -> nn.Module:
    """A copy whose Linear layers torchao has quantized: "weight-only" or "dynamic"."""
    check_torchao()
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass
    model = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig() if kind == "weight-only" else Int8DynamicActivationInt8WeightConfig())
    return unwrap_tensor_subclass(model)                                                    # codes and scales as plain tensors: no pickle


def _without_notes(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Take out where in whose Python files each operator came from: as many bytes as the codes, and nobody's business."""
    for node in program.graph.nodes:
        for note in ("stack_trace", "nn_module_stack", "torch_fn", "from_node"):
            node.meta.pop(note, None)
    return program


def _operations(program: torch.export.ExportedProgram) -> tuple[dict, ...]:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return tuple({"operator": str(node.target), "name": node.name} for node in calls)


def _modules(before: nn.Module, after: nn.Module) -> tuple[dict, ...]:
    names = [name for name, module in before.named_modules() if not list(module.children())]
    return tuple({"operator": after.get_submodule(name)._get_name(), "name": name} for name in names)


# Running


def load(path: str | os.PathLike, trust: bool = False, compile: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """The file as a function from float images to logits (float32, (n, classes)).

    trust: unpickle a file of kind "document". compile: through torch.compile, which takes some seconds at the first call and again for
    each new batch size, and a C++ compiler. Raises FileNotFoundError, ValueError for a file that is damaged, foreign or pickled,
    ImportError, and RuntimeError without a compiler.
    """
    module, image_shape = _open(path, trust)
    if compile:
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
            raise RuntimeError("there is no C++ compiler, and torch.compile needs one: apt-get install g++, or load without compile.")
        torch._dynamo.reset()
        module = torch.compile(module, dynamic=False)

    compiled_for = set()

    def logits(x) -> torch.Tensor:
        images = as_images(x, image_shape).clone()                                          # a network may write on them, or return them
        with torch.no_grad(), contextlib.ExitStack() as compiling:
            if compile and len(images) not in compiled_for:
                compiling.enter_context(quiet())
                compiling.enter_context(torch._inductor.config.patch(freezing=True))        # weights become constants, to be packed
            result = module(images)
            compiled_for.add(len(images))
            return result

    return logits


def run(path: str | os.PathLike, x, trust: bool = False, compile: bool = False, threads: int | None = None) -> torch.Tensor:
    """Logits of float images (n, 1, 28, 28), computed by PyTorch. threads: None leaves torch's setting. Raises as load does."""
    with torch_threads(threads or torch.get_num_threads()):
        return load(path, trust, compile)(x)


@contextlib.contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """n threads for torch's operations, and then as many as before."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"threads is {n!r}, and must be 1 or more.")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open(path: str | os.PathLike, trust: bool) -> tuple[Callable, tuple[int, ...]]:
    content = read(path)
    files.read_description(path)
    try:
        pickled = is_pickled_module(content)
    except Exception:  # noqa: BLE001 - no archive at all
        raise ValueError(f"{path} is damaged, or no file of torch: export the network again.") from None
    if pickled and not trust:
        raise ValueError(PICKLED.format(path))
    check_torchao()
    try:
        if not pickled:
            refuse_code(content, path)
        with quiet():
            if pickled:
                module = torch.load(io.BytesIO(content), weights_only=False)
                return module, _described_shape(path)
            program = torch.export.load(io.BytesIO(content))
            shape = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs)
            return program.module(), tuple(int(size) for size in shape.meta["val"].shape[1:])
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
        raise ValueError(f"{path} is damaged, or no network that torch can load ({first_line(error)}).") from None


def _described_shape(path: str | os.PathLike) -> tuple[int, ...]:
    described = files.read_description(path)
    if described is None:
        raise ValueError(f"{path} is a pickled model without its description {files.beside(path).name}, which tells the images' shape.")
    return described.input.shape


def operators(path: str | os.PathLike) -> dict[str, int]:
    """What the file calls, and how often, from its description. quantize and dequantize around a float operator are a simulation."""
    described = files.read_description(path)
    if described is None:
        raise ValueError(f"{path} has no description beside it ({files.beside(path).name}): export the network again.")
    return dict(Counter(layer["operator"] for layer in described.layers))


def compare(model: nn.Module, calibration, test, kinds: Sequence[str] = KINDS, threads: Sequence[int] = all_threads(),
            batches: Sequence[int] = BATCHES, repeats: int = 20, compile: bool = False) -> list[Row]:
    """One row for each kind of file: bytes, which test images it gets right, time by threads and batch, operators called.

    test: images and labels. compile: the rows of COMPILED too. Times are medians of turns
    taken by all, on this machine; say which it is beside them.
    """
    images, labels = test
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.pt" for kind in kinds}
        for kind, path in paths.items():
            export(model, path, calibration, kind, tuple(images.shape[1:]))
        runtimes = {kind: load(path, trust=True) for kind, path in paths.items()}
        if compile:
            for kind in [kind for kind in kinds if kind in COMPILED]:
                paths[COMPILED[kind]], runtimes[COMPILED[kind]] = paths[kind], load(paths[kind], compile=True)
        ms = {}
        for n in threads:
            with torch_threads(n):
                ms |= {(n, b): times(runtimes, images[:b], repeats) for b in batches}
        return [Row(kind, path.stat().st_size, right(runtimes[kind], images, labels), {case: taken[kind] for case, taken in ms.items()},
                    operators(path)) for kind, path in paths.items()]
