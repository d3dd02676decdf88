"""The runs behind notebooks 15 and 16: a language model below eight bits, in bits per byte of a novel that it has not read.

    python -m qlab.lab.experiments.language gpt             the course's own model; writes records/language_gpt.json
    python -m qlab.lab.experiments.language smollm2         SmolLM2-135M, if `qlab get smollm2` was called; language_smollm2.json
    python -m qlab.lab.experiments.language gpt weights     one part again; the others' results stay in the record
    python -m qlab.lab.experiments.language gpt --missing   only the rows that the record does not have

    weights      every way to place 16, 8 or 4 levels, and what GPTQ, AWQ and HQQ make of them, with true bytes of the quantized layers
    activations  8 and 4 bits for what linear layers read: static, per token, smoothed, rotated; as the model is, and with planted outliers
    cache        keys and values of 8 to 2 bits, keys by token or by channel
    outliers     how loud the loudest channel is, by layer; how much attention the first token gets; tokens hidden from later ones
    calibration  GPTQ at 3 bits and static ranges of 6, calibrated on Austen, on other passages, on Python

The embedding, which is also the head, keeps its floats. Methods that look at data look at the calibration part (GPTQ, AWQ, SmoothQuant,
static ranges); the result is of Persuasion. The nats of each block are kept, so that any two results can be compared block by block.
"""

import argparse
import base64
import inspect
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from qlab.lab import language, runs, text
from qlab.llm import activations, awq, evaluate, gptq, hqq, kv_cache, outliers, rotate, scaling, smoothquant, weights
from qlab.llm.evaluate import Scores, Text
from qlab.quant import kmeans, ternary

Rows = Iterator[tuple[str, Callable[[], dict]]]  # a row's name, and what measures it


class Subject(NamedTuple):
    """A model, the text it is measured on, the tokens that methods may look at, the group sizes its widths allow, its tokenizer."""

    name: str
    model: nn.Module
    test: Text
    calibration: torch.Tensor
    groups: tuple[int, ...]
    tokenizer: object


def gpt() -> Subject:
    """The course's model: 128 blocks of 256 tokens spread over the test part, 64 of the calibration part."""
    calibration = text.sample("calibration", count=64).tokens[:, :-1]
    return Subject("gpt", language.load(), text.sample("test", count=128), calibration, (32, 64), text.bpe())


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
    return Subject("smollm2", model, test, calibration.tokens[:, :-1], (64,), tokenizer)


def measured(subject: Subject, model: Callable, **more) -> dict:
    """A row of the record: bits per byte with its error, the nats of each block, and more."""
    started = time.process_time()
    scores = evaluate.score(model, subject.test, batch=4)
    return {"bits_per_byte": evaluate.bits_per_byte(scores).value, **more, "scoring_cpu_s": round(time.process_time() - started, 1),
            "nats": kept(scores.nats, "<f4")}


def scores_of(record: dict, row: dict) -> Scores:
    """The Scores that a row keeps, for evaluate.difference: as `measured` had them, in float32."""
    nats, nbytes = (torch.from_numpy(np.frombuffer(base64.b64decode(kept), dtype).copy())
                    for kept, dtype in ((row["nats"], "<f4"), (record["nbytes_of_blocks"], "<i4")))
    return Scores(nats.double(), nbytes.long(), torch.full((len(nats),), record["tokens_of_a_block"]))


def kept(x: torch.Tensor, dtype: str) -> str:
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
    """By bits: rounding to nearest on every grid, then GPTQ, AWQ and HQQ on the same grids; the formats; ternary.

    Of a large model the dear methods that would only repeat what others show are left out: GPTQ on a row's full range, in the order of the
    Hessian's diagonal and on minmax ranges; AWQ at 2 bits and on minmax ranges or ranges by error; k-means.
    """
    seen, half, small = subject.calibration, torch.float16, subject.name != "smollm2"
    yield "float32", partial(measured, subject, subject.model)
    for bits in (8, 4, 3, 2):
        grids = {"row": {}, "row, mse": {"ranges": "mse"}}
        for size in subject.groups:
            grids |= {f"groups of {size}": {"group_size": size}, f"groups of {size}, mse": {"group_size": size, "ranges": "mse"},
                      f"groups of {size}, affine": {"group_size": size, "scheme": "affine"},
                      f"groups of {size}, minmax": {"group_size": size, "scheme": "minmax"}}
        for name, grid in grids.items() if bits < 8 else [("row", {})]:
            options = {"bits": bits, "scale_dtype": half, **grid}
            again = "groups" in name and (small or (bits > 2 and "minmax" not in name and "mse" not in name))
            yield f"{bits} bits, {name}", partial(quantized, subject, weights.quantize, **options)
            if bits == 8:
                continue
            if small or name != "row" and "minmax" not in name:
                yield f"{bits} bits, {name}, gptq", partial(quantized, subject, gptq.quantize, seen, **options)
            if again and subject.name == "gpt":
                yield f"{bits} bits, {name}, gptq ordered", partial(quantized, subject, gptq.quantize, seen, order=True, **options)
            if again:
                yield f"{bits} bits, {name}, awq", partial(quantized, subject, awq.quantize, seen, **options)
        if bits < 8:
            size = subject.groups[-1]
            yield f"{bits} bits, groups of {size}, hqq", partial(quantized, subject, hqq.quantize, bits, size, half)
    for name in ("nf4", "mxfp4", "nvfp4", "e4m3", "mxfp6_e2m3"):
        yield name, partial(quantized, subject, weights.quantize, scheme=name)
    yield "ternary", partial(quantized, subject, weights.quantize, scheme="ternary")
    yield "ternary, one gamma", partial(quantized, subject, weights.quantize_weights, ternary.quantize)
    for bits in (4, 3, 2, 1) if small else ():
        yield f"k-means, {bits} bits", partial(quantized, subject, weights.quantize_weights, partial(kmeans.quantize, bits=bits))


def activation_rows(subject: Subject) -> Rows:
    """By model (as it is, smoothed, rotated) and by bits of weights and activations; weights have a scale a row."""
    norms, all_places = scaling.pairs(subject.model, "norm"), scaling.pairs(subject.model, "norm", "output", "down")
    made = {
        "as it is": lambda: subject.model,
        "smoothed behind norms": lambda: smoothquant.smooth(subject.model, subject.calibration, 0.5, norms),
        "smoothed everywhere": lambda: smoothquant.smooth(subject.model, subject.calibration, 0.5, all_places),
        "rotated": lambda: rotate.rotate(subject.model),
    }

    def row(model, weight_bits, bits, per):
        few = weights.quantize(model, weight_bits, ranges="max" if weight_bits == 8 else "mse").model
        return measured(subject, activations.quantize(few, bits, per, subject.calibration if per == "static" else None))

    for name, make in made.items():
        model = make()
        yield f"{name}, float32", partial(measured, subject, model)
        for weight_bits, bits, per in ((8, 8, "static"), (8, 8, "tensor"), (8, 8, "token"), (8, 4, "token"), (4, 4, "token")):
            yield f"{name}, W{weight_bits}A{bits} {per}", partial(row, model, weight_bits, bits, per)


def cache_rows(subject: Subject) -> Rows:
    """By bits of keys and values, and what a scale of the keys is for. No window: every token behind a group is codes."""
    for bits in (8, 4, 3, 2):
        for keys in kv_cache.KEYS:
            model = kv_cache.with_cache(subject.model, bits, bits, keys, window=0)
            nbytes = kv_cache.cache_nbytes(subject.model.config, subject.test.tokens.shape[1] - 1, bits, bits, keys, window=0)
            yield f"{bits} bits, keys by {keys}", partial(measured, subject, model, nbytes=nbytes)


def outlier_rows(subject: Subject) -> Rows:
    """What each layer reads: the loudest channel, how many times the median's, kurtosis, where in the text; attention on token 0; the cost
    of hiding a token from all later ones: the first, its neighbour, and one among others; and of seeing 32 tokens: the latest, or the 28
    latest and four that are kept, the first or others."""
    for found in outliers.measure(subject.model, subject.calibration):
        yield found.layers[0], partial(dict, ratio=round(found.ratio, 3), kurtosis=round(found.kurtosis, 2), channel=found.channel,
                                       position=found.position)
    yield "attention on the first token", lambda: {"by_block": outliers.sinks(subject.model, subject.calibration).mean(1).tolist()}
    for hidden in (0, 1, 8):
        yield f"without token {hidden}", partial(measured, subject, partial(_with, subject.model, outliers.Without(hidden)))
    for name, window in {"the latest 32": outliers.Window(32), "the latest 28, the first 4": outliers.Window(28, range(4)),
                         "the latest 28, tokens 8 to 11": outliers.Window(28, range(8, 12))}.items():
        yield f"seen: {name}", partial(measured, subject, partial(_with, subject.model, window))


def _with(model: nn.Module, cache, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, cache)


def calibration_rows(subject: Subject) -> Rows:
    """One half of the calibration blocks, the other half, and as many tokens of Python (the standard library's argparse): what GPTQ makes
    of 3 bits in groups of 64, and static ranges of 6 bits of activations."""
    austen = subject.calibration
    half, length = len(austen) // 2, austen.shape[1]
    python = torch.tensor(subject.tokenizer.encode(inspect.getsource(argparse))[:half * length]).view(half, length)
    options, few = {"bits": 3, "group_size": 64, "scale_dtype": torch.float16}, weights.quantize(subject.model, 8).model
    yield "3 bits, no text", partial(quantized, subject, weights.quantize, **options)
    for name, seen in {"Austen": austen[0:2 * half:2], "other passages": austen[1:2 * half:2], "Python": python}.items():
        yield f"3 bits, gptq on {name}", partial(quantized, subject, gptq.quantize, seen, **options)
        for ranges in ("minmax", "mse"):
            yield f"W8A6 static on {name}, {ranges}", lambda seen=seen, ranges=ranges: measured(
                subject, activations.quantize(few, 6, "static", seen, ranges))


PARTS = {"weights": weight_rows, "activations": activation_rows, "cache": cache_rows, "outliers": outlier_rows,
         "calibration": calibration_rows}
SUBJECTS = {"gpt": (gpt, planted), "smollm2": (smollm2,)}


def run(name: str, parts: tuple[str, ...] = tuple(PARTS), missing: bool = False) -> dict:
    """Measure the parts on the subject (and its planted twin), and write the record after each row; missing: only rows it does not have."""
    try:
        record = runs.raw(f"language_{name}")
    except FileNotFoundError:
        record = {}
    for make in SUBJECTS[name]:
        subject = make()
        record |= {"nbytes_of_blocks": kept(subject.test.nbytes, "<i4"), "tokens_of_a_block": subject.test.tokens.shape[1] - 1}
        for part in parts:
            before, rows = record.get(subject.name, {}).get(part, {}), {}
            for key, measure in PARTS[part](subject):
                rows[key] = before[key] if missing and key in before else measure()
                print(subject.name, part, key, {k: v for k, v in rows[key].items() if k != "nats"}, flush=True)
                record.setdefault(subject.name, {})[part] = before | rows
                content = {key: value for key, value in record.items() if key not in ("command", "environment")}
                record = runs.write(f"language_{name}", f"python -m qlab.lab.experiments.language {name}", **content)
            record[subject.name][part] = rows
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A language model below eight bits: the runs behind notebooks 15 and 16.")
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--missing", action="store_true", help="only the rows that the record does not have")
    given = parser.parse_args()
    run(given.model, tuple(given.parts) or tuple(PARTS), given.missing)
