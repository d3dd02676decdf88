"""An integer-only network as one C99 file that needs nothing: for a microcontroller, or for anything with a C compiler.

    NAME.c, NAME.h      the network: weights are constants (flash), activations share one static arena (RAM) whose size the header says
    NAME.c.json         what they hold: layers, shapes, scales, zero-points, bytes, a checksum, and what the arena holds during each layer

int8 codes, int32 sums, and qlab.nets.integer's multiplication by m 2**(n - 31): the same bits as IntegerNetwork, on any machine. There
is no heap, no floating point, no library but memcpy and memset, and nothing that C99 leaves undefined. On an ARM core with DSP
instructions the compiler takes a variant of the products that multiplies two pairs of numbers at once.

    void NAME_run(const int8_t image[NAME_INPUT], int8_t logits[NAME_OUTPUT]);
    int32_t NAME_argmax(const int8_t logits[NAME_OUTPUT]);
"""

import ctypes
import functools
import math
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from qlab.deploy import c_layers, c_source, files
from qlab.nets.integer import Grid, IntegerNetwork

LARGEST = 32 << 20  # bytes of weights: a compiler takes some 130 bytes of memory for each that it reads as text
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
NO_COMPILER = "there is no C compiler here: install gcc (on Debian and Ubuntu: apt-get install gcc libc6-dev), or name yours in CC."


def export(network: IntegerNetwork, path: str | os.PathLike, image_shape: tuple[int, ...] = (1, 28, 28),
           name: str | None = None) -> files.Description:
    """Write path (NAME.c), with NAME.h and NAME.c.json beside it, all or none; return what the last says.

    image_shape: of the image that a run takes: (channels, rows, columns), (channels, columns) or (values,). name: what the C names begin
    with, by default the file's; networks of different names can be linked into one program. Raises TypeError for what is no
    IntegerNetwork; ValueError for a step that C has no kernel for (by its name), a shape that is not fixed or does not fit, more than
    32 MiB of weights, a path that does not end in .c, a name that C does not allow; OSError where nothing can be written.

    >>> from qlab.nets import integer, ptq
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> network = integer.convert(ptq.quantize(net, torch.rand(8, 1, 4, 4)), image_shape=(1, 4, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     about = export(network, f"{folder}/tiny.c", image_shape=(1, 4, 4))
    >>> [(layer["name"], layer["about"], layer["shape_out"]) for layer in about.layers]
    [('_0', 'convolution 3 x 3, ReLU', [2, 2, 4]), ('_3', 'fully connected', [2])]
    >>> arena_bytes(about)                                                                  # 2 x 2 x 4 codes and a window of 3 x 3
    25
    """
    path = Path(path)
    name = path.stem if name is None else name
    if not isinstance(network, IntegerNetwork):
        raise TypeError(f"network is a {type(network).__name__}, and must be an IntegerNetwork: quantize it with qlab.nets.ptq.quantize, "
                        "then convert it with qlab.nets.integer.convert.")
    if path.suffix != ".c":
        raise ValueError(f"path is {path}, and must end in .c.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name is {name!r}, and must be a C name: letters, digits and _, a letter first (name=... gives one).")
    weights = sum({id(step.weight): step.weight.numel() for step in network.steps if step.weight is not None}.values())
    if weights > LARGEST:
        raise ValueError(f"the network has {weights / 2**20:,.0f} MiB of weights, and a C file may have {LARGEST >> 20} MiB, for compilers "
                         "take a hundred times the memory to read them.")
    program = c_layers.compile_steps(network, tuple(image_shape))
    memory = c_source.lay_out(program, network)
    out, header = program.places[network.output], path.with_suffix(".h")
    layers = tuple({
        "name": layer.name, "kernel": layer.kernel, "about": layer.about, "shape_in": list(layer.shape_in),
        "shape_out": list(layer.shape_out), "products": layer.products, "weight_bytes": layer.weight_bytes,
        "writes": "logits" if layer.tensors[-1] == out.root else "arena", "memory": memory.alive(step),
    } for step, layer in enumerate(program.layers))
    text = c_source.source(name, header.name, program, memory, network)
    return files.write(path, text.encode(), {header: c_source.header(name, network, program, memory).encode()}, format="C99",
                       network=name, layers=layers, input=_port(tuple(image_shape), network.grid_in),
                       output=_port(out.shape, network.grid_out))


def _port(shape: tuple[int, ...], grid: Grid) -> files.Port:
    return files.Port(shape, "int8", grid.scale, grid.zero_point)


def arena_bytes(description: files.Description) -> int:
    """The RAM that a network's activations take, in bytes: what lies highest in the arena, whichever the layer."""
    return max((entry["address"] + entry["bytes"] for layer in description.layers for entry in layer["memory"]), default=0)


def weight_bytes(description: files.Description) -> int:
    """The bytes of the network's int8 weights, those that layers share counted once."""
    return sum(layer["weight_bytes"] for layer in description.layers)


def describe(path: str | os.PathLike) -> files.Description:
    """What was exported to path. Raises FileNotFoundError, or ValueError for a file that is not whole or that export did not write."""
    path = Path(path)
    for needed in (path, path.with_suffix(".h"), files.beside(path)):
        if not needed.is_file():
            raise FileNotFoundError(f"there is no {needed}: export the network to {path}.")
    found = files.read_description(path)
    if found.format != "C99":
        raise ValueError(f"{path} is of the format {found.format}, and must be C99, as qlab.deploy.c exports it.")
    return found


def run(path: str | os.PathLike, x: torch.Tensor) -> torch.Tensor:
    """Compile the exported network with this machine's C compiler, and run it on images.

    x: float images (n, channels, rows, columns), which gives float32 logits (n, classes); or their int8 codes, which gives the logits'
    codes. Raises ValueError or TypeError for images of another shape or dtype, FileNotFoundError for a missing file or compiler.
    """
    about = describe(path)
    codes = encode(about, x)
    library = _library(Path(path).resolve(), about.sha256, about.network)
    out = torch.empty(len(codes), math.prod(about.output.shape), dtype=torch.int8)
    for image, logits in zip(codes, out):
        library(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(logits.data_ptr()))
    return decode(about, out, x.dtype)


def encode(about: files.Description, x: torch.Tensor) -> torch.Tensor:
    """Images as the C program takes them: int8 codes (n, values), a pixel's channels side by side."""
    shape = about.input.shape
    if not isinstance(x, torch.Tensor) or not (x.dtype == torch.int8 or x.dtype.is_floating_point):
        raise TypeError(f"x is {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}, and must be a tensor of floats, or of int8 "
                        "codes.")
    if tuple(x.shape[1:]) != shape or x.dim() != len(shape) + 1:
        raise ValueError(f"x has the shape {tuple(x.shape)}, and must have (n, {', '.join(map(str, shape))}).")
    if x.dtype != torch.int8:
        ends = Grid(about.input.scale, about.input.zero_point, -128, 127)
        x = IntegerNetwork((), "", "", ends, ends).encode(x)
    return (x.movedim(1, -1) if len(shape) > 1 else x).reshape(len(x), math.prod(shape)).contiguous()


def decode(about: files.Description, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Logits from their codes (n, values) in C's order: codes again for images that were codes, else float32."""
    stored = next(layer["shape_out"] for layer in reversed(about.layers) if layer["writes"] == "logits")
    if len(stored) > 1:
        codes = codes.view(len(codes), *stored).movedim(-1, 1)
    codes = codes.reshape(len(codes), *about.output.shape)
    return codes if dtype == torch.int8 else (codes.int() - about.output.zero_point) * torch.tensor(about.output.scale)


@functools.lru_cache(maxsize=16)
def _library(path: Path, sha256: str, name: str):
    """NAME_run of the file with this checksum, compiled and loaded once."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"{name}.so"
        try:
            compile_c([path], made, "-O3", "-march=native", "-shared", "-fPIC")             # integers: the bits are any processor's
        except ValueError:  # a compiler that does not know this processor, or a file that none accepts
            compile_c([path], made, "-O3", "-shared", "-fPIC")
        function = getattr(ctypes.CDLL(str(made)), f"{name}_run")
    function.restype = None
    return function


def compile_c(sources: list[Path], made: Path, *options: str) -> None:
    """Compile with $CC, gcc or cc, as C99 with all warnings as errors. Raises FileNotFoundError where there is no compiler,
    ValueError for what it does not accept."""
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CC") or "gcc", "cc"])), None)
    if compiler is None:
        raise FileNotFoundError(NO_COMPILER)
    check_run([compiler, *FLAGS, *options, "-o", str(made), *map(str, sources)], sources[0])


def check_run(command: list[str], path: Path) -> str:
    """What the command prints. Raises ValueError, with the first error it reports, where it fails on the file."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.splitlines()
        said = next((line for line in lines if "error" in line), lines[0] if lines else f"exit status {done.returncode}")
        raise ValueError(f"{path} cannot be compiled by {Path(command[0]).name} ({said.strip()}).")
    return done.stdout
