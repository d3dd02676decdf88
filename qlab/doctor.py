"""qlab doctor: what this machine can do, and whether everything is in place."""

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

import qlab

NEEDED = ("torch", "numpy", "matplotlib", "jupyterlab", "ipywidgets", "safetensors")
OPTIONAL_MODULES = ("torchao", "triton", "amaranth", "onnx", "onnxruntime", "onnxscript", "ai_edge_litert", "tflite_micro",
                    "distributed", "nbgrader", "sklearn", "kmeans1d", "jupytext")
OPTIONAL_PROGRAMS = ("gcc", "arm-none-eabi-gcc", "qemu-system-arm")


def _data() -> str:
    from qlab.lab import data

    return ", ".join(f"{len(data.load(split).labels):,} {split} images" for split in ("train", "test"))


def _network(name: str) -> str:
    from qlab.lab import zoo

    zoo.load(name)  # checks the sha256
    return f"{zoo.record(name)['test_accuracy']:.2%} on the test images, says its record"


def _novels() -> str:
    from qlab.lab import text

    return f"{sum(len(text.part(part)) for part in text.PARTS):,} characters of six novels"


def _language_model() -> str:
    from qlab.lab import language

    language.load()
    return f"{language.record()['test_bits_per_byte'][0]:.3f} bits per byte of the test part, says its record"


def _sandbox() -> str:
    from qlab.grading.sandbox import bwrap

    return f"present: {bwrap.find_bwrap()}"


def _abilities() -> dict[str, str | int | bool]:
    from qlab.lab import machine

    return machine.abilities()


def _backend(page: str = "product") -> str:
    import torch

    door = importlib.import_module(f"qlab.matmul.{page}")
    return ": ".join(door.choose("cuda" if torch.cuda.is_available() else "cpu"))


def _networks() -> list[str]:
    from qlab.nets.models import MODELS

    return list(MODELS)


def attempt(check: Callable, *args: str) -> tuple[object, str]:
    """(result, "") of a check, or (None, what went wrong): one broken thing must not hide the others.

    >>> attempt(len, "abc"), attempt(int, "abc")
    ((3, ''), (None, "invalid literal for int() with base 10: 'abc'"))
    """
    try:
        return check(*args), ""
    except Exception as error:
        return None, str(error) or type(error).__name__


def health() -> list[tuple[str, str, bool]]:
    """(thing, details, works) of what the course stands on: the libraries, the data and the checkpoints with their checksums."""
    checks = [(name, lambda module: importlib.import_module(module).__version__, (name,)) for name in NEEDED]
    checks.append(("Fashion-MNIST", _data, ()))
    names, _ = attempt(_networks)  # None where torch is broken, and torch has its own line
    checks += [(f"network {name}", _network, (name,)) for name in names or ()]
    checks += [("Austen's novels", _novels, ()), ("network gpt", _language_model, ())]
    rows = [("qlab", qlab.__version__, True), ("python", sys.version.split()[0], True)]
    for thing, check, args in checks:
        details, wrong = attempt(check, *args)
        rows.append((thing, wrong or str(details), not wrong))
    return rows


def attack_the_sandbox() -> int:
    """Attacks the graders' sandbox and prints which limit holds; returns 1 if one does not. A machine without a sandbox is no failure."""
    from qlab.grading.sandbox import attack

    code = attack.main()
    return code if attempt(_sandbox)[0] else 0


def report() -> int:
    """Prints the table; returns 0 if everything needed works, else 1."""
    rows = health()
    table = Table(title=f"qlab {qlab.__version__}", title_justify="left", show_header=False)
    for thing, details, works in rows:
        table.add_row(thing, details, "ok" if works else "broken")
    table.add_section()
    present = {name: importlib.util.find_spec(name) for name in OPTIONAL_MODULES} | {name: shutil.which(name) for name in OPTIONAL_PROGRAMS}
    for name, found in present.items():
        table.add_row(name, "optional", "present" if found else "absent")
    sandbox, why_not = attempt(_sandbox)
    table.add_row("bubblewrap", "optional", sandbox or f"absent: {why_not}")
    table.add_section()
    abilities, wrong = attempt(_abilities)
    for ability, value in (abilities or {"this machine": wrong}).items():
        table.add_row(ability, {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value)))
    for name, page in (("INT8 matmul", "product"), ("INT4 matmul", "int4")):
        backend, why_not = attempt(_backend, page)
        table.add_row(name, backend or why_not)
    Console().print(table)
    broken = [thing for thing, _, works in rows if not works] + (["this machine"] if wrong else [])
    if broken:
        print(f"qlab: broken: {', '.join(broken)}. Run make setup again, or restore the files with git checkout.", file=sys.stderr)
    return 1 if broken else 0
