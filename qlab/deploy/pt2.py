"""What torch.export.load executes besides the network, and how to refuse it.

A pickle is a program: unpickling can call any function with any arguments, so torch.load(file, weights_only=False) runs whatever
the file's author wrote. The .pt2 format of torch.export.save keeps graph and weights as JSON and raw bytes. But its reader falls back on
pickle where an archive holds one, runs an archive's guards, which are Python source, evaluates its size expressions, and calls any
function under torch that a node names. An archive of torch.export.save for the networks here has none of that.
"""

import io
import json
import re
import zipfile

import torch

OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|neg)")    # the last of sizes: n images of 4 heads
SIZE = re.compile(r"\w*|(Symbol\('\w+'(, (positive|integer|nonnegative)=True)*\)|Integer\(-?\d+\)|(Add|Mul|Min|Max|FloorDiv|Mod)\(|, |\))*")


def refuse_code(content: bytes, path) -> None:
    """ValueError, in one sentence, if an archive holds a pickle, a guard, or a call of anything but one of torch's operators.

    Those are the ways found in the reader of torch 2.13; a file from a stranger is still best left alone.
    """
    # The reader that torch.export.load uses: another one might see other members in a file made to deceive.
    archive = torch._C.PyTorchFileReader(io.BytesIO(content))
    for name in archive.get_all_records():
        found = _code_in(name, archive.get_record(name))
        if found:
            raise ValueError(f"{path} holds {found}, which would run on loading, and is refused.")


def _code_in(name: str, content: bytes) -> str | None:
    if name.startswith("data/sample_inputs/"):
        return None if _plain(content) else "a pickled object"
    if name.endswith("_config.json"):
        payloads = json.loads(content)["config"].values()
        return "a pickled tensor or object" if any(p["use_pickle"] or "obj" in p["path_name"] for p in payloads) else None
    if name.startswith("models/"):
        return _code_in_graph(json.loads(content))
    known = name.startswith(("data/weights/weight_", "data/constants/tensor_", ".data/")) or "/" not in name
    return None if known else name


def _plain(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)                                  # tensors only: it raises for all else
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not plain
        return False
    return True


def _code_in_graph(part) -> str | None:
    """The first guard, call or expression in the JSON of a graph that is not plain."""
    if isinstance(part, list):
        return next(filter(None, map(_code_in_graph, part)), None)
    if not isinstance(part, dict):
        return None
    if part.get("guards_code"):
        return "a guard in Python"
    if "target" in part and not OPERATOR.fullmatch(str(part["target"])):
        return f"a call of {part['target']}"
    if not SIZE.fullmatch(str(part.get("expr_str", ""))):
        return "a size expression"
    return _code_in_graph(list(part.values()))


def is_pickled_module(content: bytes) -> bool:
    """Whether torch.save wrote it, rather than torch.export.save."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())
