"""qlab doctor: what this machine can do, and whether everything is in place."""

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

import qlab
from qlab.translate import tr

NEEDED = ("torch", "numpy", "matplotlib", "jupyterlab", "ipywidgets", "safetensors")
OPTIONAL_MODULES = ("torchao", "triton", "amaranth", "onnx", "onnxruntime", "onnxscript", "ai_edge_litert", "tflite_micro",
                    "distributed", "nbgrader", "sklearn", "kmeans1d", "jupytext")
OPTIONAL_PROGRAMS = ("gcc", "arm-none-eabi-gcc", "qemu-system-arm")


def _data() -> str:
    from qlab.lab import data

    train, test = (len(data.load(split).labels) for split in ("train", "test"))
    return tr("{train:,} train images, {test:,} test images", train=train, test=test)


def _network(name: str) -> str:
    from qlab.lab import zoo

    zoo.load(name)  # checks the sha256
    return tr("{accuracy:.2%} on the test images, says its record", accuracy=zoo.record(name)["test_accuracy"])


def _novels() -> str:
    from qlab.lab import text

    return tr("{count:,} characters of six novels", count=sum(len(text.part(part)) for part in text.PARTS))


def _language_model() -> str:
    from qlab.lab import language

    language.load()
    return tr("{bits:.3f} bits per byte of the test part, says its record", bits=language.record()["test_bits_per_byte"][0])


def _sandbox() -> str:
    from qlab.grading.sandbox import bwrap

    return tr("present: {path}", path=bwrap.find_bwrap())


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
    checks += [(tr("network {name}", name=name), _network, (name,)) for name in names or ()]
    checks += [(tr("Austen's novels"), _novels, ()), (tr("network {name}", name="gpt"), _language_model, ())]
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
        table.add_row(thing, details, tr("ok") if works else tr("broken"))
    table.add_section()
    present = {name: importlib.util.find_spec(name) for name in OPTIONAL_MODULES} | {name: shutil.which(name) for name in OPTIONAL_PROGRAMS}
    for name, found in present.items():
        table.add_row(name, tr("optional"), tr("present") if found else tr("absent"))
    sandbox, why_not = attempt(_sandbox)
    table.add_row("bubblewrap", tr("optional"), sandbox or tr("absent: {why}", why=why_not))
    table.add_section()
    abilities, wrong = attempt(_abilities)
    for ability, value in (abilities or {tr("this machine"): wrong}).items():
        table.add_row(ability, {"True": tr("yes"), "False": tr("no"), "None": tr("none")}.get(str(value), str(value)))
    for name, page in (("INT8 matmul", "product"), ("INT4 matmul", "int4")):
        backend, why_not = attempt(_backend, page)
        table.add_row(name, backend or why_not)
    Console().print(table)
    broken = [thing for thing, _, works in rows if not works] + ([tr("this machine")] if wrong else [])
    if broken:
        print(tr("qlab: broken: {things}. Run make setup again, or restore the files with git checkout.", things=", ".join(broken)),
              file=sys.stderr)
    return 1 if broken else 0
