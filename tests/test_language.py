"""The course's language model: its record, its checkpoint, its training."""

import json
import math
from pathlib import Path

import pytest
import torch

from qlab.lab import language, text
from qlab.llm import evaluate
from qlab.llm.model import Config

TINY = Config(vocabulary=1024, width=16, blocks=1, heads=2, kv_heads=2, hidden=16, context=32)


def test_the_record_is_the_checkpoints():
    record, model = language.record(), language.load()
    assert record["config"] == vars(model.config) and record["training_tokens"] == len(text.tokens("train"))
    assert record["parameters"] == sum(p.numel() for p in model.parameters()) == 2_230_016
    assert (language.FOLDER / "gpt.safetensors").stat().st_size < 6e6
    assert all(p.dtype == torch.float32 and torch.equal(p, p.half().float()) and not p.requires_grad for p in model.parameters())
    value, error = record["float16_minus_float32"]
    assert abs(value) < 5e-5 and error < 5e-5  # half precision costs nothing worth a digit


def test_it_reads_the_test_part_as_the_record_says():
    """On 24 blocks spread over it: within their own interval of all."""
    scores = evaluate.score(language.load(), text.sample("test", count=24))
    found = evaluate.bits_per_byte(scores)
    assert abs(found.value - language.record()["test_bits_per_byte"][0]) < 4 * found.error < 0.2


def test_the_planted_model_is_the_same_function():
    model, planted = language.load(), language.load("gpt-planted")
    tokens = text.sample("test", count=2).tokens[:, :-1]
    assert (planted(tokens) - model(tokens)).abs().max() < 1e-3
    gains = planted.blocks[1].mlp_norm.weight / model.blocks[1].mlp_norm.weight
    assert sorted(gains.round(decimals=3).unique().tolist()) == [1.0, 30.0] and int((gains > 2).sum()) == 2


def test_training_brings_the_loss_down_and_repeats():
    tokens = torch.tensor(text.tokens("calibration")[:4000])
    models = [language.initial(TINY, seed=1) for _ in range(2)]
    losses = [language.fit(model, tokens, 30, 1e-2, batch_size=8, warmup=5, seed=1) for model in models]
    assert losses[0] == losses[1] and losses[0][0] == pytest.approx(math.log(1024), rel=0.01)
    assert sum(losses[0][-5:]) / 5 < losses[0][0] - 0.5
    assert not models[0].training


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name is 'gpt-2', and must be one of gpt, gpt-planted"):
        language.load("gpt-2")
    with pytest.raises(ValueError, match="epochs is 0, and must be at least 1"):
        language.train(epochs=0, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="qlab zoo gpt"):
        language.load(folder=tmp_path)
    (tmp_path / "gpt.json").write_text(json.dumps(language.record()))
    with pytest.raises(FileNotFoundError, match="qlab zoo gpt"):
        language.load(folder=tmp_path)
    (tmp_path / "gpt.safetensors").write_bytes(b"0")
    with pytest.raises(ValueError, match="wrong sha256"):
        language.load(folder=tmp_path)


def test_the_readme_says_what_the_record_says():
    record, readme = language.record(), " ".join((Path(__file__).parents[1] / "README.md").read_text().split())
    assert f"a transformer of {record['parameters']:,} parameters" in readme
    assert f"with {record['test_bits_per_byte'][0]:.3f} bits per byte" in readme
