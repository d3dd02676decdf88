"""An exported C network on an ARM Cortex-M: built with arm-none-eabi-gcc, run in QEMU, its flash, RAM and instructions measured.

    flash   code and constants: .text + .rodata + .data
    RAM     .data + .bss (the arena, the image, the logits) + the deepest the stack went, which a painted stack tells
    time    instructions: QEMU executes one in a fixed time of its virtual clock (-icount), and a timer of the board counts that. It is
            no cycle count: a Cortex-M4 takes one cycle for most instructions, two or more for loads and taken branches

The boards are ARM's MPS2 (mps2-an385, an386, an500), with 4 MB of each memory: what fits a real chip, the numbers say. The program around
the network (c_kernels/cortex_m.c) reaches files by semihosting and uses no library but memcpy and memset.
"""

import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import torch

from qlab.deploy import c, files
from qlab.deploy.c_source import KERNELS

MACHINES = {"cortex-m3": "mps2-an385", "cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}   # the first has no DSP instructions
GCC, QEMU = "arm-none-eabi-gcc", "qemu-system-arm"
INSTALL = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm (Debian, Ubuntu; 840 MB)"
SHIFT, TICK_NS = 6, 40                                                                      # 2**6 ns an instruction, a timer of 25 MHz
SECONDS = 900                                                                               # for all images of a run


def missing() -> str | None:
    """What this machine lacks to build and run for a Cortex-M, in one line with how to get it; None if it lacks nothing."""
    lacks = [tool for tool in (GCC, QEMU) if shutil.which(tool) is None]
    if GCC not in lacks and not Path(_output([GCC, "-print-file-name=nano.specs"]).strip()).is_absolute():
        lacks.append("newlib")
    return f"there is no {' and no '.join(lacks)} here: {INSTALL}." if lacks else None


def build(path: str | os.PathLike, elf: str | os.PathLike, cpu: str = "cortex-m4", optimize: str = "-O2") -> Path:
    """Link the exported network into a program for the board of the CPU, that reads images.bin and writes logits.bin.

    Raises FileNotFoundError where the file or the toolchain is missing, ValueError for another CPU or a file that does not compile.
    """
    about, source, elf = _check(path, cpu), Path(path).resolve(), Path(elf)
    define = [f'-DHEADER="{source.with_suffix(".h").name}"', f"-DRUN={about.network}_run", f"-DINPUT={about.network.upper()}_INPUT",
              f"-DOUTPUT={about.network.upper()}_OUTPUT", f"-I{source.parent}"]
    c.check_run([GCC, *c.FLAGS, *_target(cpu, optimize), *define, "--specs=nano.specs", "-nostartfiles", "-Wl,--gc-sections",
                 "-T", str(KERNELS / "cortex_m.ld"), str(source), str(KERNELS / "cortex_m.c"), "-o", str(elf)], source)
    return elf


def run(path: str | os.PathLike, x: torch.Tensor, cpu: str = "cortex-m4") -> torch.Tensor:
    """Build the exported network for the CPU and run it on images in QEMU. x, result and errors: as in qlab.deploy.c.run.

    RuntimeError where the program ends with a fault (its stack too small, an address that is no memory).
    """
    about = _check(path, cpu)
    codes = c.encode(about, x)
    logits, _ = _simulate(path, codes, about, cpu)
    return c.decode(about, logits, x.dtype)


def measure(path: str | os.PathLike, x: torch.Tensor | None = None, cpu: str = "cortex-m4", optimize: str = "-O2") -> dict:
    """What the exported network takes on the CPU, in bytes and instructions; x: an image (1, ...), by default one of zeros.

    flash_bytes, ram_bytes: of the whole program. network_flash_bytes, code_bytes, constant_bytes: of the network's own file, in flash,
    weight_bytes its int8 weights alone. arena_bytes, stack_bytes: parts of ram_bytes. instructions: for one image; products: its
    multiplications. With them the CPU, the machine, the compiler's option and the versions. Raises as run does.
    """
    about = _check(path, cpu)
    image = torch.zeros(1, *about.input.shape) if x is None else x[:1]
    codes = c.encode(about, image)
    with tempfile.TemporaryDirectory() as folder:
        program = _sections(build(path, Path(folder) / "program.elf", cpu, optimize))
        own = Path(folder) / "network.o"
        c.check_run([GCC, *c.FLAGS, *_target(cpu, optimize), "-c", str(path), "-o", str(own)], Path(path))
        network = _sections(own)
    _, (_, ticks, loop_ticks, stack) = _simulate(path, codes.repeat(2, 1), about, cpu, optimize, count=True)
    if abs(_instructions(loop_ticks) - 20_000) > 10:
        raise RuntimeError(f"QEMU's clock counts {_instructions(loop_ticks)} instructions for 20000: instructions cannot be measured here.")
    return {
        "cpu": cpu, "machine": MACHINES[cpu], "optimize": optimize, "compiler": _output([GCC, "--version"]).splitlines()[0],
        "emulator": _output([QEMU, "--version"]).splitlines()[0],
        "flash_bytes": sum(program[s] for s in (".text", ".rodata", ".data")), "ram_bytes": program[".data"] + program[".bss"] + stack,
        "network_flash_bytes": sum(network[s] for s in (".text", ".rodata", ".data")),
        "code_bytes": network[".text"], "constant_bytes": network[".rodata"], "weight_bytes": c.weight_bytes(about),
        "arena_bytes": c.arena_bytes(about), "stack_bytes": stack,
        "instructions": _instructions(ticks), "products": sum(layer["products"] for layer in about.layers),
    }


def _check(path: str | os.PathLike, cpu: str) -> files.Description:
    if cpu not in MACHINES:
        raise ValueError(f"cpu is {cpu!r}, and must be one of {', '.join(MACHINES)}.")
    about = c.describe(path)
    if missing():
        raise FileNotFoundError(missing())
    return about


def _target(cpu: str, optimize: str) -> list[str]:
    return [f"-mcpu={cpu}", "-mthumb", optimize, "-ffunction-sections", "-fdata-sections"]


def _simulate(path, codes: torch.Tensor, about: files.Description, cpu: str, optimize: str = "-O2",
              count: bool = False) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The logits' codes (n, values), and what the program measured: ticks of the first two runs and of a loop, bytes of stack."""
    with tempfile.TemporaryDirectory() as folder:
        build(path, Path(folder) / "program.elf", cpu, optimize)
        (Path(folder) / "images.bin").write_bytes(codes.numpy().tobytes())
        clock = ["-icount", f"shift={SHIFT},align=off,sleep=off"] if count else []
        command = [QEMU, "-M", MACHINES[cpu], "-nographic", "-monitor", "none", "-serial", "null", *clock,
                   "-semihosting-config", "enable=on,target=native", "-kernel", "program.elf"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{path} ran for {SECONDS} seconds in QEMU and did not end: give it fewer images.") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it ended with a fault"])[0]
            raise RuntimeError(f"{path} failed in QEMU ({said}).")
        logits = bytearray((Path(folder) / "logits.bin").read_bytes())
        measured = struct.unpack("<4I", (Path(folder) / "measured.bin").read_bytes())
    logits = torch.frombuffer(logits, dtype=torch.int8) if logits else torch.empty(0, dtype=torch.int8)
    return logits.view(len(codes), -1), measured


def _instructions(ticks: int) -> int:
    return round(ticks * TICK_NS / 2**SHIFT)


def _sections(path: Path) -> dict[str, int]:
    """Bytes of .text, .rodata, .data and .bss, whatever the sections' second names."""
    sizes = {".text": 0, ".rodata": 0, ".data": 0, ".bss": 0}
    for name, size in re.findall(r"^(\.[a-z]+)\S*\s+(\d+)", _output(["arm-none-eabi-size", "-A", str(path)]), re.MULTILINE):
        if name in sizes:
            sizes[name] += int(size)
    return sizes


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
