"""Notebook 16's tables, probes and widget: rows counted by hand, models that know what they are told to, and errors worked out in NumPy."""

import base64
import itertools
import re

import numpy as np
import pytest
import torch
from small_gpt import gpt, tokens

from qlab.lab import text
from qlab.lab.demos import language as demo
from qlab.llm import evaluate


def encoded(numbers, dtype):
    return base64.b64encode(np.array(numbers, dtype).tobytes()).decode()


@pytest.fixture
def record():
    """Two blocks of 4 tokens and 8 bytes: 2 bits a token in floats, a bit more in each token of the first block with few levels."""
    def row(*bits, **more):
        return {"nats": encoded(np.array(bits) * np.log(2), "<f4")} | more

    outliers = {"blocks.0.mlp.down": {"channel": 1234, "ratio": 56.78, "kurtosis": 9.1, "position": 0},
                "blocks.1.mlp.down": {"channel": 1, "ratio": 1.0, "kurtosis": 3.0, "position": 2},
                "attention on the first token": {"by_block": [0.5]}, "without token 0": row(8, 8)}
    weights = {"float32": row(8, 8), "few": row(12, 8, bits_per_weight=3.25), "apart": row(12, 12)}
    return {"nbytes_of_blocks": encoded([8, 8], "<i4"), "tokens_of_a_block": 4, "m": {"weights": weights, "outliers": outliers}}


def test_a_table_of_rows_is_what_one_counts_by_hand(record):
    lines = demo.table("title", record, "m", "weights", {"few levels": "few", "one bit a token": "apart"}).splitlines()
    assert lines[0].split()[:2] == ["title", "bits"] and lines[1].split() == ["float", "4.00"]
    assert lines[2].split()[:5] == ["few", "levels", "3.25", f"{2**2.5:.2f}", "+0.2500"] and lines[2].endswith("noise")  # 1 of 2 blocks
    assert lines[3].split() == ["one", "bit", "a", "token", "8.00", "+0.5000", "[+0.5000,", "+0.5000]"]
    assert len(lines) == 4
    assert evaluate.perplexity(demo.scores(record, "m", "weights", "apart")) == pytest.approx(8)


def test_a_table_of_outliers_has_the_blocks_that_were_asked_for(record):
    assert [line.split() for line in demo.outlier_table("m", record, "m", blocks=(0,)).splitlines()[1:]] == [
        ["blocks.0.mlp.down", "1,234", "56.8", "9", "0"]]
    assert len(demo.outlier_table("m", record, "m", blocks=(0, 1)).splitlines()) == 3


def test_places_are_names_behind_titles():
    bpe, part = text.bpe(), text.part("calibration")
    found = demo.places(part, bpe, 20)
    assert len(found) == 20
    for before, name in found:
        told = bpe.decode(before)
        assert len(before) == demo.BEFORE and re.search(r"(Mr\.|Mrs\.|Miss|Lady|Sir|Colonel)$", told)
        assert re.fullmatch(r" [A-Z][a-z]+", bpe.decode(name)) and told + bpe.decode(name) in part
    with pytest.raises(ValueError, match="and 100000 are asked for"):
        demo.places(part, bpe, 100_000)


def test_known_are_names_of_which_every_token_is_the_most_likely():
    generator = torch.Generator().manual_seed(0)
    asked = [(torch.randint(40, (demo.BEFORE,), generator=generator).tolist(), name) for name in ([1], [2, 3], [4, 5, 6], [7, 8], [9])]
    told = [[1], [2, 3], [4, 0, 6], [0, 8], [9]]

    def model(rows):
        """Sure of what it was told; of what stands behind a name it says something, too."""
        logits = torch.zeros(*rows.shape, 40)
        for row, logit in zip(rows.tolist(), logits):
            said = told[[before for before, _ in asked].index(row[:demo.BEFORE])]
            for i, token in enumerate(said):
                logit[demo.BEFORE - 1 + i, token] = 1
        return logits

    assert demo.known(model, asked).correct.tolist() == [True, True, False, False, True]


def test_repeated_runs_are_those_that_an_earlier_place_has():
    row = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for run in (1, 2, 5):
        runs = [row[i:i + run] for i in range(len(row) - run + 1)]
        again = sum(runs[i] in runs[:i] for i in range(len(runs)))
        assert demo.repeated(row, run) == pytest.approx(again / len(runs))


@pytest.fixture(scope="module")
def widget():
    return demo.smoothing(gpt(width=64, dtype=torch.float32, kv_heads=4), tokens(3, 20))


def test_every_answer_has_the_same_products():
    generator = torch.Generator().manual_seed(0)
    x, other, w, gain = (torch.randn(*shape, generator=generator) for shape in ((9, 8), (5, 8), (6, 8), (8,)))
    layer = demo.Layer((x * gain, other * gain, w), (x, other, w * gain))
    for answer, alpha in itertools.product(demo.ANSWERS, (0.0, 0.5, 1.0)):
        seen, shown, weight = layer.answered(answer, alpha)
        assert torch.allclose(shown @ weight.T, layer.exact, atol=1e-5), answer
        assert torch.allclose(seen @ weight.T, x * gain @ w.T, atol=1e-5), answer
    smoothed = layer.answered("smoothed", 1.0)[0]
    assert torch.allclose(smoothed.abs().amax(0), torch.ones(8))                            # alpha 1: all that is loud is taken from x


def test_the_errors_are_those_of_integers():
    generator = torch.Generator().manual_seed(1)
    x, other, w = (torch.randn(*shape, generator=generator) for shape in ((9, 8), (5, 8), (6, 8)))
    layer = demo.Layer((x, other, w), (x, other, w))
    for bits in (4, 8):
        top, a, b = 2 ** (bits - 1) - 1, other.double().numpy(), w.double().numpy()
        scale = np.abs(b).max(1, keepdims=True) / top
        found = []
        for step in (np.full((5, 1), float(x.abs().max())) / top, np.abs(a).max(1, keepdims=True) / top):
            codes, weights = np.clip(np.rint(a / step), -top, top).astype(int), np.rint(b / scale).astype(int)
            found.append(np.linalg.norm(codes @ weights.T * step * scale.T - a @ b.T) / np.linalg.norm(a @ b.T))
        assert layer.result("as it is", 0.5, bits)[-1] == pytest.approx(found, rel=1e-4)


def test_the_widget_says_what_it_draws(widget):
    for answer in demo.ANSWERS:
        widget.controls["answer"].value = answer
        assert widget.error is None and answer in widget.text
        ax, range_ax = widget.fig.axes
        for line, said in zip(range_ax.lines, re.findall(r"([\d.]+) times", widget.text)):
            y = line.get_ydata()
            assert y.max() / np.median(y) == pytest.approx(float(said), abs=0.051)
        verts = ax.collections[0].get_paths()
        assert len(verts) == demo.TOKENS and max(path.vertices[:, 1].max() for path in verts) <= 1 + demo.RISE * demo.TOKENS
    widget.controls["answer"].value = "smoothed"
    widget.controls["alpha"].value = 1.0
    assert np.allclose(widget.fig.axes[1].lines[0].get_ydata(), 1, atol=1e-5)
    widget.controls["answer"].value = "as it is"


def test_one_text_is_too_few():
    with pytest.raises(ValueError, match="must be two at least"):
        demo.smoothing(gpt(width=64, dtype=torch.float32), tokens(1))
