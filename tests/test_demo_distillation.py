"""Notebook 10's widget, driven without a browser: what it draws is softmax(logits / T)."""


import numpy as np
import pytest
import torch
from scipy.stats import entropy

from qlab.lab.data import CLASSES
from qlab.lab.demos.distillation import TEMPERATURES, entropy_bits, temperature

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(4, 1, 28, 28, generator=GENERATOR), torch.tensor([3, 0, 9, 6])
TEACHER, STUDENT = 4 * torch.randn(4, 10, generator=GENERATOR), torch.randn(4, 10, generator=GENERATOR)


@pytest.fixture(scope="module")
def demo():
    return temperature(IMAGES, LABELS, TEACHER, STUDENT)


def put(demo, image, t):
    demo.controls["image"].value, demo.controls["temperature"].value = image, t
    assert demo.error is None


def drawn(demo, who):
    container = next(c for c in demo.fig.axes[1].containers if c.get_label() == who)
    return np.array([bar.get_width() for bar in container])


def softmax(z, t):
    e = np.exp((z - z.max()) / t)
    return e / e.sum()


@pytest.mark.parametrize("image", [0, 3])
@pytest.mark.parametrize("t", [0.5, 1, 8, 100])
def test_bars_are_the_soft_labels_of_both(demo, image, t):
    put(demo, image, t)
    for who, logits in (("teacher", TEACHER), ("student", STUDENT)):
        np.testing.assert_allclose(drawn(demo, who), softmax(logits[image].double().numpy(), t), rtol=1e-9)


def test_caption_gives_the_entropy_and_the_second_class(demo):
    put(demo, 1, 4)
    p = softmax(TEACHER[1].double().numpy(), 4)
    second = np.argsort(p)[-2]
    assert f"<b>{entropy(p, base=2):.2f}</b> of at most 3.32 bits" in demo.text
    assert f"second {CLASSES[second]} <b>{100 * p[second]:.2g} %</b>" in demo.text


def test_entropy_rises_with_the_temperature_to_that_of_equal_shares(demo):
    bits = []
    for t in TEMPERATURES:
        put(demo, 2, t)
        bits.append(entropy_bits(torch.from_numpy(drawn(demo, "teacher"))))
    assert np.all(np.diff(bits) > 0) and bits[-1] == pytest.approx(np.log2(10), abs=0.01)


def test_the_image_and_its_label_are_shown(demo):
    put(demo, 2, 1)
    picture_ax, ax = demo.fig.axes
    np.testing.assert_array_equal(picture_ax.images[0].get_array(), IMAGES[2, 0].numpy())
    hollow = next(c for c in ax.containers if c.get_label() == "label")[0]
    assert hollow.get_y() + hollow.get_height() / 2 == pytest.approx(LABELS[2].item())


def test_every_step_changes_the_picture(demo):
    put(demo, 0, 1)
    before = demo._image.value
    for t in (2, 3, 4, 5, 6):
        put(demo, 0, t)
        assert demo._image.value != before
        before = demo._image.value


def test_without_a_student_only_the_teacher_is_drawn():
    demo = temperature(IMAGES, LABELS, TEACHER)
    assert {c.get_label() for c in demo.fig.axes[1].containers} == {"label", "teacher"}


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"teacher has the shape \(4, 9\), and must be \(4, 10\)"):
        temperature(IMAGES, LABELS, TEACHER[:, :9])
    with pytest.raises(ValueError, match=r"student has the shape \(3, 10\)"):
        temperature(IMAGES, LABELS, TEACHER, STUDENT[:3])
    with pytest.raises(ValueError, match="4 images and 3 labels"):
        temperature(IMAGES, LABELS[:3], TEACHER)
    with pytest.raises(ValueError, match="0 images"):
        temperature(IMAGES[:0], LABELS[:0], TEACHER[:0])
