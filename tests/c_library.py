"""Many integer-only networks as C, compiled at once."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qlab.deploy import c, c_source
from qlab.nets import integer
from qlab.nets.integer import IntegerNetwork

Networks = dict[str, tuple[IntegerNetwork, tuple[int, ...]]]


def one_library(networks: Networks, folder: Path) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Export each network to C and compile all as one file, which has each kernel once: a function of a name and int8 codes (n, ...).

    What a file keeps to itself, its constants and its arena, gets its network's name, or they would clash.
    """
    folder = Path(folder)
    numbers, abouts, texts, kernels = {name: f"n{i}" for i, name in enumerate(networks)}, {}, [], set()
    for name, (network, shape) in networks.items():
        path = folder / f"{numbers[name]}.c"
        abouts[name] = c.export(network, path, shape)
        written = path.read_text()
        for piece in c_source.ORDER:
            kernel = (c_source.KERNELS / f"{piece}.c").read_text().rstrip()
            kernels |= {piece} if kernel in written else set()
            written = written.replace(kernel, "")
        own = {word: f"{numbers[name]}_{word}" for word in re.findall(r"^static (?:const )?\w+ (\w+)", written, re.M)}
        texts.append(re.sub(r"[A-Za-z_]\w*", lambda word, own=own: own.get(word[0], word[0]), written))
    first = [f"#include <stdint.h>\n#include <string.h>\n#define ADD_SHIFT {integer.ADD_SHIFT}"]
    first += [(c_source.KERNELS / f"{piece}.c").read_text() for piece in c_source.ORDER if piece in kernels]
    (folder / "all.c").write_text("\n\n".join(first + texts))
    options = ("-O1", "-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    c.compile_c([folder / "all.c"], folder / "all.so", *options)
    library = ctypes.CDLL(str(folder / "all.so"))

    def run(name: str, codes: torch.Tensor) -> torch.Tensor:
        images = c.encode(abouts[name], codes)
        out = torch.empty(len(codes), int(np.prod(abouts[name].output.shape)), dtype=torch.int8)
        for image, logits in zip(images, out):
            getattr(library, f"{numbers[name]}_run")(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(logits.data_ptr()))
        return c.decode(abouts[name], out, torch.int8)

    return run
