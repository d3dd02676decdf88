"""How many tokens a second do the language models read and write here, and how near is that to what the memory allows?

    tokens/s  <=  bytes/s that the memory gives  /  bytes read for a token

Part of `qlab bench`: the course's own model, and SmolLM2 where `qlab get smollm2` has brought it; one text at a time, with one thread and
with all. A new token takes one row through every matrix, so it waits for the weights; a prompt takes all its rows through them at once,
and waits for the arithmetic. The key-value cache holds floats of the model's dtype. The weights:

    float32                     the model as it is loaded
    bfloat16                    all of it, half of the bytes; faster or not by the CPU's instructions for it (AVX512-BF16, AMX)
    INT8, Int8Linear            a scale a row, activations by token in int8, by the backend of `int8_matmul`
    INT8, Int4Linear            8 bits in groups of 32, as INT4
    INT4, Int4Linear            4 bits in groups of 32, by the backend of `int4_matmul`; activations in int8 too where that is ONNX Runtime
    INT4, torch, bfloat16       the same codes by torch's product, all the rest of the model in bfloat16

All rows but two leave the embedding in float32, and it is read whole for the logits: it is most of what SmolLM2 reads in INT4.
Bytes are those of `packed.read_nbytes` and the cache; scales are float32, for both products of INT4 read four bytes a group, whatever a
file holds. A model that fits into a cache of the CPU does not wait for the memory, and what calls of small layers cost is no byte at all.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable

import torch

from qlab.lab import language
from qlab.lab.judge import timing
from qlab.lab.matmul_bench import PAUSE
from qlab.llm import packed, smollm2, weights
from qlab.llm.kv_cache import Cache
from qlab.llm.model import GPT
from qlab.matmul import int4_torch, quantize_linears_

PROMPT, NEW = 64, 8                     # tokens of a prompt, and those written after it
ROUNDS, FEWEST = 21, 6                  # six are the fewest whose median has an interval of 95 %
SECONDS = 40.0                          # for all rounds of a model with so many threads, unless FEWEST take longer
GROUP = 32
READ_BYTES = 2**29                      # many times a last-level cache
FLOAT32 = "float32"


def models() -> dict[str, Callable[[], GPT]]:
    """name: a function that loads the model; FileNotFoundError where its file is not here."""
    return {"gpt": language.load, "SmolLM2": lambda: smollm2.load()[0]}


def contenders(model: GPT) -> dict[str, Callable[[], GPT]]:
    """name: a function that makes a copy of the float32 model with these weights, for inference; the model itself for float32."""
    def rounded(bits, backend="auto"):
        return packed.pack(weights.quantize(model, bits, GROUP), backend)

    def int8():
        copied = copy.deepcopy(model)
        quantize_linears_(copied)
        return copied

    found = {FLOAT32: lambda: model, "bfloat16": lambda: copy.deepcopy(model).bfloat16(), "INT8, Int8Linear": int8,
             "INT8, Int4Linear": lambda: rounded(8), "INT4, Int4Linear": lambda: rounded(4)}
    if not int4_torch.why_not(4, GROUP):
        found["INT4, torch, bfloat16"] = lambda: rounded(4, "torch").bfloat16()
    return found


@torch.inference_mode()
def write(model: GPT, prompt: torch.Tensor, count: int) -> tuple[float, float, list[int], int]:
    """The most likely continuation of a prompt (1, length): seconds for the prompt, seconds for the tokens after it, these tokens, and the
    bytes of the cache when the last of them has been read.

    The prompt gives the logits of the first, each token those of the next. The tokens are `generate`'s, whose checks cost no time here.
    """
    cache = Cache(model.config)
    started = time.perf_counter()
    logits = model(prompt, cache)[0, -1]
    read = time.perf_counter()
    made = []
    for _ in range(count):
        made.append(int(logits.argmax()))
        logits = model(torch.tensor([made[-1:]]), cache)[0, -1]
    return read - started, time.perf_counter() - read, made, cache.nbytes


def read_bandwidth(x: torch.Tensor) -> float:
    """Bytes/s of reading the vector x, float32 and of even length, once: by its sum or by a product of its halves, whichever is faster.

    Reading alone, as weights are read; `roofline.measure_bandwidth` copies, and waits for what it writes, too.

    >>> read_bandwidth(torch.ones(2**20)) > 1e6
    True
    """
    halves, best = x.chunk(2), math.inf
    for read in (x.sum, lambda: torch.dot(*halves)):
        started = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - started)
    return x.nbytes / best


def median_interval(values: list[float]) -> list[float]:
    """[low, high]: order statistics between which the median of what was drawn from lies with at least 95 %, with six values or more.

    With fewer than six values, the lowest and the highest, which say less.

    >>> median_interval([5, 1, 4, 2, 3, 6, 7, 8, 9])            # P(0 or 1 of 9 heads) = 10 / 512, twice
    [2.0, 8.0]
    """
    if len(values) < FEWEST:
        return [min(values), max(values)]
    found = timing.median(values)
    return [found.low, found.high]


def measure(seconds: float = SECONDS, fewest: int = FEWEST, prompt: int = PROMPT, new: int = NEW,
            read_bytes: int = READ_BYTES) -> list[dict]:
    """One row for a model, its weights, and a number of threads:

    model, weights, threads
    tokens_per_s, tokens_interval            new tokens, each after the one before: the median of the rounds, its 95 % interval
    times_as_fast, times_interval            as float32, in the same round
    prompt_per_s, prompt_interval, prompt_times_as_fast    tokens of the prompt, all at once
    read_mb                                  10**6 bytes read for a token: weights, and the cache at the last one
    roof_gb_per_s, roof_per_s                10**9 bytes/s of reading an array of read_bytes, the best of the rounds; tokens/s at that pace
    share_of_roof                            tokens_per_s / roof_per_s; may be above 1 where a cache of the CPU holds the weights
    rounds

    In a round each contender has its turn: a pause, a token untimed, the prompt, the new tokens. Rounds end after so many seconds for each
    model and number of threads, but there are `fewest` at least. What the tokens say costs no time: the prompt counts from 0.
    """
    rows, everything = [], torch.get_num_threads()
    array, tokens = torch.ones(read_bytes // 4), torch.arange(prompt)[None]
    try:
        for model_name, load in models().items():
            try:
                model = load().requires_grad_(False)
            except FileNotFoundError as error:
                print(f"{model_name} is left out: {error}", flush=True)
                continue
            made = {name: make() for name, make in contenders(model).items()}
            for threads in sorted({1, everything}):
                torch.set_num_threads(threads)
                found, roof, cached = _rounds(made, tokens, new, array, seconds, fewest)
                rows += [_row(model_name, name, threads, found, roof, packed.read_nbytes(made[name]) + cached[name], prompt, new)
                         for name in made]
                told = ", ".join(f"{row['weights']}: {row['tokens_per_s']:.4g}" for row in rows[-len(made):])
                print(f"{model_name}, {threads} thread{'s' * (threads > 1)}, tokens/s: {told}", flush=True)
            del made
    finally:
        torch.set_num_threads(everything)
    return rows


def _rounds(made: dict[str, GPT], tokens: torch.Tensor, new: int, array: torch.Tensor, seconds: float, fewest: int):
    """Of each contender the seconds [(prompt, new tokens), ...] of its rounds; the best bytes/s of reading; the bytes of each's cache."""
    found, cached, roof = {name: [] for name in made}, {}, 0.0
    for model in made.values():
        write(model, tokens, 1)                                                             # backends pack the weights, for so many threads
    read_bandwidth(array)
    began = time.perf_counter()
    for i in range(ROUNDS):
        if i >= fewest and time.perf_counter() - began > seconds * i / (i + 1):             # one more as long as these would be too much
            break
        time.sleep(PAUSE)
        roof = max(roof, read_bandwidth(array))
        for name, model in made.items():
            time.sleep(PAUSE)                                                               # threads of the one before go to sleep
            write(model, tokens[:, :1], 0)
            prompt_s, new_s, _, cached[name] = write(model, tokens, new)
            found[name].append((prompt_s, new_s))
    return found, roof, cached


def _row(model: str, name: str, threads: int, found: dict, roof: float, read: int, prompt: int, new: int) -> dict:
    prompts, news = ([count / pair[i] for pair in found[name]] for i, count in enumerate((prompt, new)))
    prompt_ratios, ratios = ([base[i] / own[i] for base, own in zip(found[FLOAT32], found[name])] for i in range(2))
    speed, whole = statistics.median(news), roof / read

    def short(value):
        return [short(v) for v in value] if isinstance(value, list) else float(f"{value:.4g}")

    return {"model": model, "weights": name, "threads": threads,
            "tokens_per_s": short(speed), "tokens_interval": short(median_interval(news)),
            "times_as_fast": short(statistics.median(ratios)), "times_interval": short(median_interval(ratios)),
            "prompt_per_s": short(statistics.median(prompts)), "prompt_interval": short(median_interval(prompts)),
            "prompt_times_as_fast": short(statistics.median(prompt_ratios)), "read_mb": short(read / 1e6),
            "roof_gb_per_s": short(roof / 1e9), "roof_per_s": short(whole), "share_of_roof": short(speed / whole), "rounds": len(news)}
