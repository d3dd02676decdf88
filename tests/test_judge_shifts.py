"""Changed images against scipy.ndimage, NumPy and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from qlab.lab import data
from qlab.lab.data import Split
from qlab.lab.judge import shifts


def pixels(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 9, 14), (2, 1, 1, 1)])
def test_rotation_equals_scipy(shape):
    x, degrees = pixels(*shape), torch.tensor([25.0, -7.0])
    expected = np.stack([ndimage.rotate(image, angle, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
                         for image, angle in zip(x.numpy(), degrees.tolist())])
    assert shifts.rotate(x, degrees).numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (2, 3, 9, 14), (1, 1, 2, 3)])
@pytest.mark.parametrize("sigma", [0.5, 1.25])
def test_blur_equals_scipy(shape, sigma):
    x = pixels(*shape)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest")
    assert shifts.blur(x, sigma).numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (-1, 3), (0, -9), (5, 5)])
def test_translation_equals_scipy(down, right):
    x = pixels(1, 2, 6, 7)
    expected = ndimage.shift(x.numpy(), (0, 0, down, right), order=0, mode="constant")
    assert torch.equal(shifts.translate(x, torch.tensor([down]), torch.tensor([right])), torch.from_numpy(expected))


def test_images_move_in_their_own_directions():
    dot = torch.zeros(40, 1, 11, 11)
    dot[:, 0, 5, 5] = 1
    moved = shifts.shift(dot, "translation", 2)
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(3, 5), (7, 5), (5, 3), (5, 7)} and moved.sum() == 40


def test_contrast_by_hand_of_each_image_by_itself():
    x = torch.tensor([[[[0.0, 1.0]]], [[[0.2, 0.4]]]])
    assert torch.allclose(shifts.contrast(x, 0.5), torch.tensor([[[[0.25, 0.75]]], [[[0.25, 0.35]]]]))


def test_noise_has_its_deviation_and_ends_at_black_and_white():
    grey = torch.full((20, 1, 28, 28), 0.5)
    assert shifts.shift(grey, "noise", 1).std().item() == pytest.approx(0.05, rel=0.03)
    made = shifts.shift(grey, "noise", 5)
    assert made.min() == 0 and made.max() == 1
    assert 0.5 * math.erfc(0.5 / 0.3 / 2**0.5) == pytest.approx((made == 0).double().mean().item(), abs=0.005)


@pytest.mark.parametrize("name", shifts.SEVERITIES)
def test_a_shift_is_the_same_again_grows_with_severity_and_leaves_its_images_alone(name):
    test = data.load("test")
    x = (test.images[:64] * data.STD + data.MEAN).clamp(0, 1)
    before = x.clone()
    far = [(shifts.shift(x, name, severity) - x).square().mean().item() for severity in range(1, 6)]
    assert far == sorted(far) and far[0] > 0 and torch.equal(x, before)
    assert torch.equal(shifts.shift(x, name, 3), shifts.shift(x, name, 3))
    random = name in ("rotation", "translation", "noise")
    assert torch.equal(shifts.shift(x, name, 3, seed=1), shifts.shift(x, name, 3)) is not random


def test_normalised_images_come_back_normalised():
    test = data.load("test")
    split = Split(test.images[:50], test.labels[:50])
    made = shifts.shifted(split, "translation", 3)
    # Whole pixels move, and black comes in: the very values of the images, but for rounding.
    assert made.images.dtype == torch.float32 and torch.equal(made.labels, split.labels)
    assert made.images.min().item() == pytest.approx(-data.MEAN / data.STD, abs=1e-6)
    inner = shifts.shifted(Split(torch.zeros(1, 1, 28, 28), split.labels[:1]), "blur", 5).images
    assert inner.abs().max() < 1e-6


def test_each_gives_every_network_the_same_images():
    split = Split(torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    first, second = (shifts.each(split, lambda changed: changed.images, severities=(1, 4)) for _ in range(2))
    assert len(first) == 10 and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("x", "name", "severity", "told"), [
    (pixels(1, 1, 2, 2), "rain", 1, "rotation, translation, blur, contrast, noise"), (pixels(1, 1, 2, 2), "blur", 0, "severity is 0"),
    (pixels(1, 1, 2, 2), "blur", 6, "severity is 6"), (pixels(1, 2, 2), "blur", 1, "images, channels, rows"),
    (pixels(0, 1, 2, 2), "blur", 1, "at least one"), (torch.ones(1, 1, 2, 2, dtype=torch.uint8), "blur", 1, "floating point"),
    (2 * torch.ones(1, 1, 2, 2), "blur", 1, "from 2 to 2"), (torch.full((1, 1, 2, 2), math.nan), "blur", 1, "must be from 0 to 1")])
def test_shift_refuses(x, name, severity, told):
    with pytest.raises(ValueError, match=told):
        shifts.shift(x, name, severity)


@pytest.mark.parametrize("severity", [1.0, True, "1", None])
def test_a_severity_is_a_whole_number(severity):
    with pytest.raises(ValueError, match="severity is .* must be 1, 2, 3, 4 or 5"):
        shifts.shift(pixels(1, 1, 2, 2), "blur", severity)


@pytest.mark.parametrize("seed", [1.5, -1, None, True])
@pytest.mark.parametrize("name", shifts.SEVERITIES)
def test_a_seed_is_a_whole_number(name, seed):
    with pytest.raises(ValueError, match="seed is .* must be a whole number"):
        shifts.shift(pixels(1, 1, 2, 2), name, 1, seed)


def test_arrays_are_changed_and_words_are_not():
    x = pixels(1, 1, 4, 4)
    assert torch.equal(shifts.shift(x.numpy(), "noise", 1), shifts.shift(x, "noise", 1))
    for call in (lambda: shifts.shift("x", "blur", 1), lambda: shifts.shifted(Split(None, [0]), "blur", 1),
                 lambda: shifts.shifted(Split(torch.ones(1, 1, 2, 2).int(), [0]), "blur", 1)):
        with pytest.raises(TypeError, match="(pixels|images) (is a|holds)"):
            call()


def test_images_of_another_normalisation_are_refused():
    with pytest.raises(ValueError, match="pixels run from"):
        shifts.shifted(Split(torch.full((1, 1, 2, 2), 5.0), torch.tensor([0])), "blur", 1)
