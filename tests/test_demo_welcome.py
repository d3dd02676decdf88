"""Notebook 00: the answers against weights quantized by hand, the choice of pictures by brute force, the widget driven, the table."""

import numpy as np
import pytest
import torch
from torch import nn

from qlab.lab import data, plot, zoo
from qlab.lab.data import CLASSES, Split
from qlab.lab.demos import welcome
from qlab.lab.measure import Accuracy
from qlab.nets.ptq import fold_batch_norm, quantize_weights
from qlab.quant import linear


@pytest.fixture(scope="module")
def sample():
    images, labels = data.load("test")
    return Split(images[::20], labels[::20])


@pytest.fixture(scope="module")
def net():
    return fold_batch_norm(zoo.load("depthwise"))


@pytest.fixture(scope="module")
def found(net, sample):
    return welcome.answers(net, sample)


@pytest.fixture(scope="module")
def live(net, sample, found):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(welcome, "answers", lambda model, split: found)  # computed once for the whole module
        return welcome.fewer_bits(net, sample)


def set_to(live, bits, per):
    live.controls["bits"].value, live.controls["per"].value = bits, per
    assert live.error is None


def tiles(live):
    """(true class, what it says, in which colour and weight, frame's colour, cross seen) of each picture, as drawn."""
    rows = []
    for ax in live.fig.axes[:8]:
        text = next(t for t in ax.texts if t.get_text().endswith("%"))
        frame, = ax.patches
        cross, = ax.lines
        rows.append((ax.get_title(), text, frame, cross))
    return rows


# The answers


def one_layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)).requires_grad_(False)


@pytest.mark.parametrize("per, bits", [("channel", 4), ("tensor", 3), ("channel", 2), ("tensor", 8)])
def test_answers_are_those_of_weights_quantized_by_hand(per, bits):
    model, images = one_layer(), torch.randn(7, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    answer = welcome.answers(model, Split(images, torch.arange(7)))[per, bits]
    w, b = model[1].weight.double().numpy(), model[1].bias.double().numpy()
    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1 if per == "channel" else None, keepdims=True) / top
    logits = images.flatten(1).double().numpy() @ (np.round(w / scale) * scale).T + b
    e = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answer.probabilities, e / e.sum(1, keepdims=True), atol=1e-5)
    assert answer.classes.tolist() == logits.argmax(1).tolist()
    assert answer.accuracy.correct.tolist() == (logits.argmax(1) == np.arange(7)).tolist()
    assert answer.nbytes == 7840 * bits // 8 + 4 * scale.size + 4 * 10          # codes, scales, biases


def test_the_float_network_answers_as_it_is():
    model, images = one_layer(), torch.randn(250, 1, 28, 28, generator=torch.Generator().manual_seed(2))  # more than two batches
    before = [p.clone() for p in model.parameters()]
    found = welcome.answers(model, Split(images, torch.zeros(250, dtype=torch.int64)))
    torch.testing.assert_close(found[welcome.FLOAT].probabilities, model(images).softmax(1))
    assert found[welcome.FLOAT].nbytes == 4 * (7840 + 10) and len(found) == 1 + 2 * 7
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


# The choice of the pictures


def test_the_pictures_follow_their_rule():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 10, (400,), generator=generator)
    keys = [welcome.FLOAT, *(("channel", bits) for bits in welcome.BITS)]
    found = {}
    for key in keys:  # most answers right, but at 2 bits
        wrong = torch.rand(400, generator=generator) < (0.9 if key[1] == 2 else 0.1)
        said = torch.where(wrong, (labels + 1) % 10, labels)
        found[key] = welcome.Answer(nn.functional.one_hot(said, 10).float(), Accuracy(said == labels), 0)

    def right(i, *bits):
        return all(int(found["float" if b == 32 else "channel", b].classes[i]) == int(labels[i]) for b in bits)

    at_3 = [i for i in range(400) if right(i, 32, 8, 7, 6, 5, 4) and not right(i, 3)]
    at_2 = [i for i in range(400) if right(i, 32, 8, 7, 6, 5, 4, 3) and not right(i, 2)]
    expected, classes = [], []
    for group in (at_3, at_2):
        for i in group:
            if len(expected) < (4 if group is at_3 else 8) and int(labels[i]) not in classes:
                expected.append(i)
                classes.append(int(labels[i]))
    assert len(expected) == 8 and welcome.changing(found, labels) == expected


def test_the_page_s_pictures_do_what_its_text_says(found, sample):
    picked = welcome.changing(found, sample.labels)
    labels = sample.labels[picked]
    assert len(set(labels.tolist())) == 8
    for bits in range(4, 9):
        assert (found["channel", bits].classes[picked] == labels).all()
    assert (found["channel", 3].classes[picked] == labels).tolist() == [False] * 4 + [True] * 4
    assert not (found["channel", 2].classes[picked] == labels).any()
    for bits in (2, 3):  # with one scale for each tensor the network says the same of every picture
        assert len(found["tensor", bits].classes[picked].unique()) == 1


def test_the_page_s_story_holds(found):
    share = {key: answer.accuracy.value for key, answer in found.items()}
    assert min(share["channel", bits] for bits in range(4, 9)) > share[welcome.FLOAT] - 0.05 > share["channel", 3] + 0.05
    assert share["tensor", 5] > share["tensor", 4] + 0.02 > share["tensor", 3] + 0.5
    assert share["channel", 3] > 0.7 > 0.2 > share["tensor", 3]
    for bits in welcome.BITS:
        assert found["tensor", bits].nbytes < found["channel", bits].nbytes < found[welcome.FLOAT].nbytes


# The widget


@pytest.mark.parametrize("bits, per, axis", [(8, "channel", 0), (3, "channel", 0), (2, "channel", 0), (6, "tensor", None)])
def test_each_tile_says_what_the_network_says(live, net, sample, found, bits, per, axis):
    set_to(live, bits, per)
    picked = welcome.changing(found, sample.labels)
    small = quantize_weights(net, lambda w: linear.quantize(w, bits, "symmetric", axis=axis)).model
    chances, classes = small(sample.images[picked]).softmax(1).max(1)
    for i, (truth, text, frame, cross) in enumerate(tiles(live)):
        says, percent = text.get_text().removesuffix(" %").split("\n")
        assert truth == CLASSES[sample.labels[picked[i]]] and says == CLASSES[classes[i]]
        assert float(percent) == pytest.approx(100 * float(chances[i]), abs=0.51)
        wrong = says != truth
        assert cross.get_visible() == wrong and (text.get_fontweight() == "bold") == wrong      # not by colour alone
        assert (frame.get_linewidth() > 2) == wrong and (text.get_color() == plot.INK["error"]) == wrong


def test_curves_ring_bar_and_text_show_the_setting(live, found):
    accuracy_ax, size_ax = live.fig.axes[8:]
    for per, curve in zip(welcome.AXES, accuracy_ax.lines):
        assert list(curve.get_xdata()) == list(welcome.BITS)
        assert list(curve.get_ydata()) == [100 * found[per, bits].accuracy.value for bits in welcome.BITS]
    for bits, per in [(5, "tensor"), (4, "channel")]:
        set_to(live, bits, per)
        now, ring = found[per, bits], accuracy_ax.lines[-1]
        assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([bits], [100 * now.accuracy.value])
        assert size_ax.patches[1].get_width() == now.nbytes / 1000 and size_ax.patches[0].get_width() == found[welcome.FLOAT].nbytes / 1000
        assert f"{now.nbytes:,} bytes" in live.text and f"{100 * now.accuracy.value:.1f} %" in live.text
        assert f"{bits} bits a weight, one scale per {per}" in live.text


def test_a_step_of_the_slider_computes_no_network(live, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network was quantized or run")

    monkeypatch.setattr(welcome, "quantize_weights", refuse)
    monkeypatch.setattr(nn.Module, "__call__", refuse)
    before = live._image.value
    set_to(live, 7, "tensor")
    assert live._image.value != before


# The table


def rows_of(**can):
    blank = {"usable_cores": 4, "architecture": "x86_64", "avx2": True, "avx512_vnni": False, "amx_int8": None, "arm_dot": True,
             "arm_i8mm": False, "cuda": None, "cuda_capability": None}
    head, rule, *rows = welcome.machine_table(blank | can).splitlines()
    assert head.count("|") == rule.count("|") == 4
    return {name: value for name, value in ([cell.strip() for cell in row.split("|")][1:3] for row in rows)}


def test_machine_table_names_the_instructions_of_the_architecture():
    x86 = {"AVX2": "yes", "AVX-512 VNNI": "no", "AMX INT8": "unknown"}
    arm = {"dot product (SDOT)": "yes", "int8 matrix (I8MM)": "no"}
    assert rows_of() == {"cores for this notebook": "4", **x86, "CUDA GPU": "no"}
    assert rows_of(architecture="AMD64") == rows_of()
    assert rows_of(architecture="arm64") == rows_of(architecture="aarch64") == {"cores for this notebook": "4", **arm, "CUDA GPU": "no"}
    assert rows_of(cuda="NVIDIA H200", cuda_capability="9.0")["CUDA GPU"] == "NVIDIA H200, capability 9.0"


def test_machine_table_takes_what_this_machine_tells():
    from qlab.lab import machine

    assert "cores" in welcome.machine_table(machine.abilities())
