"""The course's own language models: a small transformer trained on Jane Austen, and the same function with outliers planted in it.

    gpt            2.2 million parameters, trained from nothing by `qlab zoo gpt`
    gpt-planted    the same function: two channels of every norm in a block 30 times as large, what reads them 30 times smaller

The checkpoint holds float16, as checkpoints of large models do; loading makes float32 of it. The test part is looked at once, at the end.
"""

import datetime
import hashlib
import json
import math
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as save_bytes

from qlab import saving
from qlab.lab import text
from qlab.lab.zoo import FOLDER, read_checkpoint, read_record
from qlab.llm import evaluate, outliers, tokenizer
from qlab.llm.model import GPT, Config
from qlab.llm.training import fit

NAMES = ("gpt", "gpt-planted")
CONFIG = Config(vocabulary=text.ENTRIES, width=256, blocks=3, heads=4, kv_heads=4, hidden=512, context=256)
RECIPE = {"steps": 2000, "batch_size": 16, "max_lr": 2e-3, "warmup": 100, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def load(name: str = "gpt", folder: Path = FOLDER) -> GPT:
    """The trained model, float32, in evaluation mode: "gpt" or "gpt-planted".

    Raises ValueError for another name or a checkpoint whose sha256 is not the record's, FileNotFoundError if it is missing.

    >>> model = load()
    >>> sum(p.numel() for p in model.parameters())
    2230016
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}, and must be one of {', '.join(NAMES)}.")
    entry = record(folder)
    model = GPT(Config(**entry["config"]))
    model.load_state_dict({key: weight.float() for key, weight in read_checkpoint("gpt", entry, folder).items()})
    model.eval().requires_grad_(False)
    return model if name == "gpt" else outliers.plant(model)


def record(folder: Path = FOLDER) -> dict:
    """The record of the run that trained the model: sizes, recipe, seed, bits per byte with their error, date, versions, sha256.

    >>> record()["config"]["width"]
    256
    """
    return read_record("gpt", folder)


def initial(config: Config, seed: int) -> GPT:
    """A model before its training: weights normal with standard deviation 0.02, those that write to the stream smaller (GPT-2)."""
    torch.manual_seed(seed)
    model = GPT(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            writes = name.endswith(("output.weight", "down.weight"))
            torch.nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.blocks) if writes else 0.02)
    return model


def train(seed: int = 0, epochs: int | None = None, folder: Path = FOLDER) -> dict:
    """Learn the vocabulary, train the model on the training part, write checkpoint and record to folder; return the record.

    The same seed, machine and number of threads give the same weights. epochs replaces the recipe's number of steps: as many as read the
    training part so often. Raises ValueError for fewer than one.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}, and must be at least 1.")
    recipe, started = dict(RECIPE), time.time()
    if epochs is not None:
        recipe["steps"] = epochs * len(text.tokens("train")) // (recipe["batch_size"] * CONFIG.context)
    saving.make_folder(folder)
    learnt = tokenizer.learn(text.part("train"), text.ENTRIES)
    if learnt.merges != text.bpe().merges:
        raise ValueError(f"{text.FOLDER / 'merges.json'} is not what the training part teaches: restore it with git checkout.")
    model = initial(CONFIG, seed)
    losses = fit(model, torch.tensor(text.tokens("train")), seed=seed, name="gpt", **recipe)
    minutes = (time.time() - started) / 60
    half = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    content = save_bytes(half)
    parts = {name: evaluate.score(model, text.sample(name)) for name in ("validation", "test")}
    model.load_state_dict({name: weight.float() for name, weight in half.items()})
    rounded = evaluate.score(model, text.sample("test"))
    entry = {
        "name": "gpt", "architecture": "qlab.llm.model.GPT", "config": asdict(CONFIG),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "five novels of Jane Austen, one of them halved", "training_tokens": len(text.tokens("train")), "optimiser": "AdamW",
        **recipe, "seed": seed, "last_training_loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "validation_bits_per_byte": evaluate.bits_per_byte(parts["validation"]),
        "test_bits_per_byte": evaluate.bits_per_byte(rounded), "test_perplexity": evaluate.perplexity(rounded),
        "float16_minus_float32": evaluate.difference(rounded, parts["test"]), "command": "qlab zoo gpt",
        "date": datetime.date.today().isoformat(), "minutes": round(minutes, 1), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "sha256": hashlib.sha256(content).hexdigest(),
    }
    saving.write({folder / "gpt.safetensors": content, folder / "gpt.json": (json.dumps(entry, indent=2) + "\n").encode()})
    return entry
