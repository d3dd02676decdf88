"""What this machine can do: the line that belongs beside every measured time.

    INT8 is fast where one instruction multiplies many 8-bit integers and adds the products in 32 bits:
    x86    VNNI (as part of AVX-512, or by itself as AVX-VNNI) and AMX-INT8, which multiplies whole tiles
    ARM    the dot-product instructions (SDOT, UDOT) and the int8 matrix instructions (I8MM)
    CUDA   tensor cores from compute capability 7.2 (INT8), 8.9 (FP8)
Half precision is fast where the products themselves are of halves: AVX512-BF16, AVX512-FP16, AMX-BF16, AMX-FP16; tensor cores from 7.0
(float16) and 8.0 (bfloat16).
"""

import ctypes
import datetime
import json
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from qlab import saving

INSTRUCTIONS = {  # ability: (architecture, name in torch.cpu.get_capabilities, older torch.cpu helper, Linux flag, macOS sysctl)
    "avx2": ("x86", "avx2", "_is_avx2_supported", "avx2", "hw.optional.avx2_0"),
    "avx512": ("x86", "avx512_f", "_is_avx512_supported", "avx512f", "hw.optional.avx512f"),
    "avx512_vnni": ("x86", "avx512_vnni", "_is_vnni_supported", "avx512_vnni", "hw.optional.avx512vnni"),
    "avx_vnni": ("x86", "avx_vnni", "", "avx_vnni", ""),
    "amx_tile": ("x86", "amx_tile", "_is_amx_tile_supported", "amx_tile", ""),
    "amx_int8": ("x86", "amx_int8", "", "amx_int8", ""),
    "avx512_bf16": ("x86", "avx512_bf16", "", "avx512_bf16", ""),
    "avx512_fp16": ("x86", "avx512_fp16", "", "avx512_fp16", ""),
    "amx_bf16": ("x86", "amx_bf16", "", "amx_bf16", ""),
    "amx_fp16": ("x86", "amx_fp16", "", "amx_fp16", ""),
    "arm_dot": ("arm", "dot", "", "asimddp", "hw.optional.arm.FEAT_DotProd"),
    "arm_i8mm": ("arm", "i8mm", "", "i8mm", "hw.optional.arm.FEAT_I8MM"),
}


def _or_none(function, *arguments):
    # A machine that cannot be asked must still run the course: whatever goes wrong in a probe, the answer is "unknown".
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001
        return None


@lru_cache
def _run(*command: str) -> str | None:
    def run():
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return _or_none(run) if shutil.which(command[0]) else None


@lru_cache
def _cpuinfo() -> list[dict]:
    """/proc/cpuinfo: one dictionary a logical core; empty where there is no such file."""
    def read():
        blocks = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
        return [{k.strip(): v.strip() for k, _, v in (line.partition(":") for line in block.splitlines())} for block in blocks]
    return _or_none(read) or []


def _architecture() -> str:
    name = platform.machine().lower()
    return "x86" if name in ("x86_64", "amd64", "i386", "i686") else "arm" if name.startswith(("arm", "aarch64")) else name


def _has(architecture: str, key: str, helper: str, flag: str, sysctl: str) -> bool | None:
    """True, False, or None where nothing on this machine can tell. The first source that knows is believed."""
    if architecture != _architecture():
        return False
    known = _or_none(lambda: torch.cpu.get_capabilities()[key])
    if known is None and helper:
        known = _or_none(lambda: getattr(torch.cpu, helper)())
    if known is None and _cpuinfo():
        flags = _cpuinfo()[0].get("flags") or _cpuinfo()[0].get("Features")
        known = flag in flags.split() if flags else None
    if known is None and sysctl and platform.system() == "Darwin":
        known = _run("sysctl", "-n", sysctl) == "1"  # an unknown name is an instruction that this CPU lacks
    return None if known is None else bool(known)


def _windows_cpu() -> str:
    import winreg  # exists on Windows only
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
        return winreg.QueryValueEx(key, "ProcessorNameString")[0].strip()


def _cpu() -> str:
    return (
        (_cpuinfo()[0].get("model name") if _cpuinfo() else None)
        or (_run("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else None)
        or (_or_none(_windows_cpu) if platform.system() == "Windows" else None)
        or _or_none(lambda: torch.cpu.get_capabilities()["cpu_name"])
        or platform.processor() or platform.machine() or "unknown CPU"
    )


def _os() -> str:
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else f"{platform.system()} {platform.release().split('-')[0]}"


def _physical_cores() -> int | None:
    places = {(core["physical id"], core["core id"]) for core in _cpuinfo() if "core id" in core and "physical id" in core}
    return len(places) or _or_none(lambda: torch.cpu.get_capabilities()["num_physical_cores"]) or _or_none(
        lambda: int(_run("sysctl", "-n", "hw.physicalcpu")))


class _WindowsMemory(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [(f"field{i}", ctypes.c_ulonglong) for i in range(7)]


def _memory_bytes() -> int | None:
    def windows():
        status = _WindowsMemory()
        status.length = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status.field0
    return _or_none(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) or _or_none(windows)


def _cuda() -> dict:
    def probe():
        major, minor = torch.cuda.get_device_capability(0)
        driver = (_run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").splitlines()
        return {"cuda": torch.cuda.get_device_name(0), "cuda_capability": f"{major}.{minor}", "cuda_driver": driver[0] if driver else None}
    none = {"cuda": None, "cuda_capability": None, "cuda_driver": None}
    return (_or_none(probe) if _or_none(torch.cuda.is_available) else None) or none


def abilities() -> dict:
    """What this machine can do. Never raises; what nothing on the machine can tell is None.

    os, architecture, cpu                         names
    physical_cores, logical_cores, usable_cores   of the machine; usable: those this process may run on
    torch_threads                                 threads that one torch operation uses
    avx2, avx512, avx512_vnni, avx_vnni, amx_tile, amx_int8, arm_dot, arm_i8mm     True or False
    avx512_bf16, avx512_fp16, amx_bf16, amx_fp16  products of halves: True or False
    torch_cpu_capability                          the kernels that torch chose, e.g. "AVX2"
    onednn_limit                                  ONEDNN_MAX_CPU_ISA if it is set: it hides instructions from torch's matmul
    memory_gb                                     of the machine, 1e9 bytes
    cuda, cuda_capability, cuda_driver, mps       device 0's name, e.g. "9.0", the driver's version; Apple's GPU, True or False

    >>> sorted(abilities())[:4]
    ['amx_bf16', 'amx_fp16', 'amx_int8', 'amx_tile']
    """
    memory = _memory_bytes()
    return {
        "os": _os(),
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "physical_cores": _physical_cores(),
        "logical_cores": os.cpu_count(),
        "usable_cores": _or_none(lambda: len(os.sched_getaffinity(0))) or os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        **{ability: _has(*sources) for ability, sources in INSTRUCTIONS.items()},
        "torch_cpu_capability": _or_none(torch.backends.cpu.get_cpu_capability),
        "onednn_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "memory_gb": round(memory / 1e9, 1) if memory else None,
        **_cuda(),
        "mps": bool(_or_none(torch.backends.mps.is_available)),
    }


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def describe() -> str:
    """One line to print beside a measured figure: "AMD EPYC, 2 cores, 2 threads, AVX2, no VNNI, no AMX, no CUDA".

    >>> print(describe())  # doctest: +SKIP
    AMD EPYC, 2 cores, 2 threads, AVX2, no VNNI, no AMX, no CUDA
    """
    a = abilities()
    cores = a["physical_cores"] or a["logical_cores"] or 1
    parts = [a["cpu"], _count(cores, "core"), _count(a["torch_threads"], "thread")]
    if a["usable_cores"] and a["usable_cores"] < cores:
        parts[1] = f"{a['usable_cores']} of {_count(cores, 'core')}"

    def told(name: str, *keys: str) -> str:
        values = [a[key] for key in keys]
        return name if any(values) else f"{name} unknown" if None in values else f"no {name}"

    if _architecture() == "arm":
        parts += [told("dot product", "arm_dot"), told("I8MM", "arm_i8mm")]
    else:
        parts += ["AVX-512" if a["avx512"] else told("AVX2", "avx2")]
        parts += [told("VNNI", "avx512_vnni", "avx_vnni"), told("AMX", "amx_int8")]
    if a["onednn_limit"]:
        parts.append(f"oneDNN limited to {a['onednn_limit']}")
    gpu = f"{a['cuda']} (compute capability {a['cuda_capability']})" if a["cuda"] else "MPS" if a["mps"] else "no CUDA"
    return ", ".join([*parts, gpu])


def write_record(path: Path, command: str, **content) -> dict:
    """Write and return a run record: the command that made it, the environment, the content. Whole or not at all."""
    record = {"command": command, "environment": environment(), **content}
    saving.write({path: (json.dumps(record, indent=1) + "\n").encode()})
    return record


def environment() -> dict:
    """abilities() with the date (ISO) and the versions of python, torch and numpy: what a run record keeps.

    >>> environment()["numpy"] == np.__version__
    True
    """
    return {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__, **abilities(),
    }
