"""The runs behind notebooks 15 and 16: a language model below eight bits, in bits per byte of a novel that it has not read.

    python -m qlab.lab.experiments.language gpt             the course's own model; writes records/language_gpt.json
    python -m qlab.lab.experiments.language smollm2         SmolLM2-135M, if `qlab get smollm2` was called; language_smollm2.json
    python -m qlab.lab.experiments.language gpt weights     one part again; the others' results stay in the record

    weights      every way to place 16, 8 or 4 levels, and what GPTQ, AWQ and HQQ make of them, with true bytes of the quantized layers
    activations  8 and 4 bits for what linear layers read: static, per token, smoothed, rotated; as the model is, and with planted outliers
    cache        keys and values of 8 to 2 bits, keys by token or by channel
    outliers     how loud the loudest channel is, by layer; how much attention the first token gets

The embedding, which is also the head, keeps its floats. Methods that look at data look at the calibration part (GPTQ, AWQ, SmoothQuant,
static ranges); the result is of Persuasion. The nats of each block are kept, so that any two results can be compared block by block.
"""

import argparse
import base64
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from qlab.lab import language, runs, text
from qlab.llm import activations, awq, evaluate, gptq, hqq, kv_cache, outliers, rotate, scaling, smoothquant, weights
from qlab.llm.evaluate import Scores, Text

Rows = Iterator[tuple[str, dict]]


class Subject(NamedTuple):
    """A model, the text it is measured on, the tokens that methods may look at, and the rows of groups that its widths allow."""

    name: str
    model: nn.Module
    test: Text
    calibration: torch.Tensor
    groups: tuple[int, ...]


def gpt() -> Subject:
    """The course's model: 128 blocks of 256 tokens spread over the test part, 64 of the calibration part."""
    return Subject("gpt", language.load(), text.sample("test", count=128), text.sample("calibration", count=64).tokens[:, :-1], (32, 64))


def planted() -> Subject:
    """The same function with planted outliers."""
    return gpt()._replace(name="gpt-planted", model=language.load("gpt-planted"))


def smollm2() -> Subject:
    """SmolLM2-135M-Instruct: 24 blocks of 128 tokens, spread over the test part, and 24 of the calibration part."""
    from qlab.llm import smollm2

    model, tokenizer = smollm2.load()
    parts = {name: tokenizer.encode(text.part(name)) for name in ("test", "calibration")}
    sizes = [len(tokenizer.bytes([token])) for token in range(model.config.vocabulary)]
    test, calibration = (evaluate.blocks(parts[name], sizes, 128, 24) for name in parts)
    return Subject("smollm2", model, test, calibration.tokens[:, :-1], (64,))


def measured(subject: Subject, model: Callable, **more) -> dict:
    """A row of the record: bits per byte with its error, the nats of each block, and more."""
    started = time.process_time()
    scores = evaluate.score(model, subject.test, batch=4)
    return {"bits_per_byte": evaluate.bits_per_byte(scores).value, **more, "scoring_cpu_s": round(time.process_time() - started, 1),
            "nats": _kept(scores.nats, "<f4")}


def scores_of(record: dict, row: dict) -> Scores:
    """The Scores that a row keeps, for evaluate.difference: as `measured` had them, in float32."""
    nats, nbytes = (torch.from_numpy(np.frombuffer(base64.b64decode(kept), dtype).copy())
                    for kept, dtype in ((row["nats"], "<f4"), (record["nbytes_of_blocks"], "<i4")))
    return Scores(nats.double(), nbytes.long(), torch.full((len(nats),), record["tokens_of_a_block"]))


def _kept(x: torch.Tensor, dtype: str) -> str:
    return base64.b64encode(x.numpy().astype(dtype).tobytes()).decode()


def quantized(subject: Subject, method: Callable, *args, **options) -> dict:
    """The row of the Quantized that method(model, ...) gives: with bytes of its layers, bits a weight, and what making it took."""
    started = time.process_time()
    q = method(subject.model, *args, **options)
    took = round(time.process_time() - started, 1)
    numbers = sum(tensor.codes.numel() for tensor in q.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in q.tensors.values())
    return measured(subject, q.model, layers_nbytes=nbytes, bits_per_weight=8 * nbytes / numbers, making_cpu_s=took)


def weight_rows(subject: Subject) -> Rows:
    """By bits: rounding to nearest on every grid, then GPTQ, AWQ and HQQ on the same grids; the formats; ternary."""
    seen, half = subject.calibration, torch.float16
    yield "float32", measured(subject, subject.model)
    for bits in (8, 4, 3, 2):
        grids = {"row": {}, "row, mse": {"ranges": "mse"}}
        for size in subject.groups:
            grids |= {f"groups of {size}": {"group_size": size}, f"groups of {size}, mse": {"group_size": size, "ranges": "mse"},
                      f"groups of {size}, affine": {"group_size": size, "scheme": "affine"},
                      f"groups of {size}, minmax": {"group_size": size, "scheme": "minmax"}}
        for name, grid in grids.items() if bits < 8 else [("row", {})]:
            options = {"bits": bits, "scale_dtype": half, **grid}
            yield f"{bits} bits, {name}", quantized(subject, weights.quantize, **options)
            if bits == 8:
                continue
            yield f"{bits} bits, {name}, gptq", quantized(subject, gptq.quantize, seen, **options)
            if "groups" in name and subject.name != "gpt-planted":
                yield f"{bits} bits, {name}, gptq ordered", quantized(subject, gptq.quantize, seen, order=True, **options)
            if "groups" in name and "minmax" not in name:
                yield f"{bits} bits, {name}, awq", quantized(subject, awq.quantize, seen, **options)
        if bits < 8:
            size = subject.groups[-1]
            yield f"{bits} bits, groups of {size}, hqq", quantized(subject, hqq.quantize, bits, size, half)
    for name in ("nf4", "mxfp4", "nvfp4", "e4m3", "mxfp6_e2m3"):
        yield name, quantized(subject, weights.quantize, scheme=name)
    yield "ternary", quantized(subject, weights.quantize, scheme="ternary")


def activation_rows(subject: Subject) -> Rows:
    """By model (as it is, smoothed, rotated) and by bits of weights and activations; weights have a scale a row."""
    norms, all_places = scaling.pairs(subject.model, "norm"), scaling.pairs(subject.model, "norm", "output", "down")
    made = {
        "as it is": lambda: subject.model,
        "smoothed behind norms": lambda: smoothquant.smooth(subject.model, subject.calibration, 0.5, norms),
        "smoothed everywhere": lambda: smoothquant.smooth(subject.model, subject.calibration, 0.5, all_places),
        "rotated": lambda: rotate.rotate(subject.model),
    }
    for name, make in made.items():
        model = make()
        yield f"{name}, float32", measured(subject, model)
        for weight_bits, bits, per in ((8, 8, "static"), (8, 8, "tensor"), (8, 8, "token"), (8, 4, "token"), (4, 4, "token")):
            few = weights.quantize(model, weight_bits, ranges="max" if weight_bits == 8 else "mse").model
            yield f"{name}, W{weight_bits}A{bits} {per}", measured(
                subject, activations.quantize(few, bits, per, subject.calibration if per == "static" else None))


def cache_rows(subject: Subject) -> Rows:
    """By bits of keys and values, and what a scale of the keys is for. No window: every token behind a group is codes."""
    for bits in (8, 4, 3, 2):
        for keys in kv_cache.KEYS:
            model = kv_cache.with_cache(subject.model, bits, bits, keys, window=0)
            nbytes = kv_cache.cache_nbytes(subject.model.config, subject.test.tokens.shape[1] - 1, bits, bits, keys, window=0)
            yield f"{bits} bits, keys by {keys}", measured(subject, model, nbytes=nbytes)


def outlier_rows(subject: Subject) -> Rows:
    """What each layer reads: the loudest channel, how many times the median's, kurtosis, where in the text; attention on token 0."""
    for found in outliers.measure(subject.model, subject.calibration):
        yield found.layers[0], {"ratio": round(found.ratio, 3), "kurtosis": round(found.kurtosis, 2), "channel": found.channel,
                                "position": found.position}
    yield "attention on the first token", {"by_block": outliers.sinks(subject.model, subject.calibration).mean(1).tolist()}


PARTS = {"weights": weight_rows, "activations": activation_rows, "cache": cache_rows, "outliers": outlier_rows}
SUBJECTS = {"gpt": (gpt, planted), "smollm2": (smollm2,)}


def run(name: str, parts: tuple[str, ...] = tuple(PARTS)) -> dict:
    """Measure the parts on the subject (and its planted twin), and write the record after each part."""
    try:
        record = runs.raw(f"language_{name}")
    except FileNotFoundError:
        record = {}
    for make in SUBJECTS[name]:
        subject = make()
        record |= {"nbytes_of_blocks": _kept(subject.test.nbytes, "<i4"), "tokens_of_a_block": subject.test.tokens.shape[1] - 1}
        for part in parts:
            rows = {}
            for key, row in PARTS[part](subject):
                rows[key] = row
                print(subject.name, part, key, {k: v for k, v in row.items() if k != "nats"}, flush=True)
            record.setdefault(subject.name, {})[part] = rows
            content = {key: value for key, value in record.items() if key not in ("command", "environment")}
            record = runs.write(f"language_{name}", f"python -m qlab.lab.experiments.language {name}", **content)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A language model below eight bits: the runs behind notebooks 15 and 16.")
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    given = parser.parse_args()
    run(given.model, tuple(given.parts) or tuple(PARTS))
