"""Many integer-only networks as C, compiled at once."""

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qlab.deploy import c, c_source
from qlab.nets import integer
from qlab.nets.integer import IntegerNetwork

Networks = dict[str, tuple[IntegerNetwork, tuple[int, ...]]]


def one_library(networks: Networks, folder: Path) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Export each network to C and compile all as one file, which has each kernel once: a function of a name and int8 codes (n, ...)."""
    source, numbers, abouts = _one_file(networks, Path(folder))
    library = _compiled(source, "all.so", "-O1", "-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    loaded = ctypes.CDLL(str(library))

    def run(name: str, codes: torch.Tensor) -> torch.Tensor:
        images = c.encode(abouts[name], codes)
        out = torch.empty(len(codes), int(np.prod(abouts[name].output.shape)), dtype=torch.int8)
        for image, logits in zip(images, out):
            getattr(loaded, f"{numbers[name]}_run")(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(logits.data_ptr()))
        return c.decode(abouts[name], out, torch.int8)

    return run


def one_program(networks: Networks, folder: Path, *options: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """As one_library, a program of its own that is run for each network: so that a sanitizer sees every address."""
    source, numbers, abouts = _one_file(networks, Path(folder))
    cases = [f"    if (!strcmp(argv[1], \"{n}\")) {{\n        static int8_t image[{n.upper()}_INPUT], logits[{n.upper()}_OUTPUT];\n"
             f"        while (fread(image, 1, sizeof image, stdin) == sizeof image) {{\n            {n}_run(image, logits);\n"
             "            fwrite(logits, 1, sizeof logits, stdout);\n        }\n    }\n" for n in numbers.values()]
    with source.open("a") as file:
        file.write("\n#include <stdio.h>\nint main(int argc, char **argv)\n{\n" + "".join(cases) + "    return argc != 2;\n}\n")
    program = _compiled(source, "all", *options)

    def run(name: str, codes: torch.Tensor) -> torch.Tensor:
        given = c.encode(abouts[name], codes).numpy().tobytes()
        done = subprocess.run([program, numbers[name]], input=given, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return c.decode(abouts[name], torch.frombuffer(bytearray(done.stdout), dtype=torch.int8).view(len(codes), -1), torch.int8)

    return run


def _one_file(networks: Networks, folder: Path) -> tuple[Path, dict[str, str], dict]:
    """What a file keeps to itself, its constants and its arena, gets its network's name, or they would clash."""
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
    return folder / "all.c", numbers, abouts


def _compiled(source: Path, name: str, *options: str) -> Path:
    c.compile_c([source], source.with_name(name), *options)
    return source.with_name(name)
