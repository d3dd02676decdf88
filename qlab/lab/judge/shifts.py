"""What a network says to images that are a little different: rotated, moved, blurred, paler, noisy, in five severities, made here.

    rotation      by 5 to 30 degrees, to the left or to the right, bilinear
    translation   by 1 to 5 pixels, up, down, left or right
    blur          with a Gaussian of 0.5 to 1.5 pixels
    contrast      each pixel drawn towards the mean of its image: m + f (x - m), f from 0.75 down to 0.15
    noise         Gaussian, of 0.05 to 0.3 where black is 0 and white 1

After Hendrycks and Dietterich 2019, for images of 28 pixels. Pixels lie from 0 to 1 here, (n, channels, rows, columns), and leave so; what
comes in from outside is black. Directions and noise are drawn from a seed, on the CPU: the same on every machine and for every network.
"""

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch.nn.functional import conv2d, grid_sample, pad

from qlab.lab import data
from qlab.lab.data import Split
from qlab.quant import layout

SEVERITIES = {
    "rotation": (5, 10, 15, 20, 30), "translation": (1, 2, 3, 4, 5), "blur": (0.5, 0.75, 1.0, 1.25, 1.5),
    "contrast": (0.75, 0.6, 0.45, 0.3, 0.15), "noise": (0.05, 0.1, 0.15, 0.2, 0.3),
}


def rotate(pixels: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Each image turned about its centre, counter-clockwise, degrees (n,): every pixel is read, bilinearly, where it came from.

    >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([90.0]))[0, 0].round(decimals=5)
    tensor([[2., 4.],
            [1., 3.]])
    """
    rows, columns = pixels.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows) - (rows - 1) / 2, torch.arange(columns) - (columns - 1) / 2, indexing="ij")
    angle = torch.deg2rad(degrees.double()).view(-1, 1, 1)
    from_x, from_y = angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y            # (n, rows, columns), from the centre
    # grid_sample wants -1 and 1 at the outer edges of the outer pixels, columns first.
    grid = torch.stack([2 * from_x / columns, 2 * from_y / rows], dim=3).to(pixels.dtype)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def translate(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Each image moved by whole pixels; down, right: integers (n,), negative for up and left.

    >>> translate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([0]), torch.tensor([1]))[0, 0]
    tensor([[0., 1.],
            [0., 3.]])
    """
    n, _, rows, columns = pixels.shape
    far = max(1, int(down.abs().max()), int(right.abs().max()))
    wide = pad(pixels, (far, far, far, far))
    y, x = torch.arange(rows) + far - down[:, None], torch.arange(columns) + far - right[:, None]           # (n, rows), (n, columns)
    return wide[torch.arange(n)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Each channel convolved with a Gaussian of sigma pixels, cut off at four sigma; beyond the edge, the pixels of the edge go on.

    >>> blur(torch.ones(1, 1, 3, 3), 1.0).allclose(torch.ones(3, 3))
    True
    """
    reach, channels = int(4 * sigma + 0.5), pixels.shape[1]
    kernel = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(pixels.dtype).expand(channels, 1, 1, -1)              # a Gaussian is a row times a column
    wide = pad(pixels, (reach, reach, reach, reach), mode="replicate")
    return conv2d(conv2d(wide, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)


def contrast(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Each image's pixels drawn towards its mean: mean + factor (x - mean).

    >>> contrast(torch.tensor([[[[0.0, 1.0]]]]), 0.5)[0, 0]
    tensor([[0.2500, 0.7500]])
    """
    middle = pixels.mean((1, 2, 3), keepdim=True)
    return middle + factor * (pixels - middle)


def noise(pixels: torch.Tensor, deviation: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise added to every value, drawn on the CPU."""
    return pixels + deviation * torch.randn(pixels.shape, generator=generator).to(pixels)


def shift(pixels: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    """The images, changed: (n, channels, rows, columns), floating point from 0 to 1, to the same; the argument stays as it is.

    name: "rotation", "translation", "blur", "contrast" or "noise"; severity: 1 to 5; seed: of the directions and the noise.
    Raises ValueError for another name, severity or seed, another shape, no images, integers, or pixels outside of 0 to 1 (NaN among them),
    TypeError for what is no tensor.

    >>> pixels = torch.rand(4, 1, 28, 28)
    >>> [shift(pixels, name, 3).shape == pixels.shape for name in SEVERITIES]
    [True, True, True, True, True]
    """
    layout.check_name("name", name, SEVERITIES)
    check_severity(severity)
    pixels = layout.as_tensor(pixels, "pixels")
    if pixels.ndim != 4 or pixels.numel() == 0 or pixels.dtype not in layout.FLOATS:
        raise ValueError(f"pixels have dtype {pixels.dtype} and shape {tuple(pixels.shape)}, and must be floating point "
                         "(images, channels, rows, columns), at least one image.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels run from {pixels.min():g} to {pixels.max():g}, and must be from 0 to 1.")
    strength, generator, n = SEVERITIES[name][severity - 1], layout.generator(seed), len(pixels)
    if name == "rotation":
        made = rotate(pixels, strength * (2 * torch.randint(2, (n,), generator=generator) - 1))
    elif name == "translation":
        way = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])[torch.randint(4, (n,), generator=generator)]
        made = translate(pixels, *(strength * way).T)
    else:
        made = {"blur": blur, "contrast": contrast}[name](pixels, strength) if name != "noise" else noise(pixels, strength, generator)
    return made.clamp(0, 1)


def check_severity(severity) -> None:
    """Raises ValueError for another severity than 1 to 5."""
    if isinstance(severity, bool) or not isinstance(severity, Integral) or severity not in range(1, 6):
        raise ValueError(f"severity is {severity!r}, and must be 1, 2, 3, 4 or 5.")


def shifted(split: Split, name: str, severity: int, seed: int = 0, mean: float = data.MEAN, std: float = data.STD) -> Split:
    """A split whose images are changed: taken back to pixels, shift, and normalised again, x = (pixel - mean) / std. Labels stay.

    Raises as shift does, and TypeError for integers; images that lie outside of black and white were normalised by another mean or std.

    >>> test = data.load("test")
    >>> pale = shifted(Split(test.images[:1], test.labels[:1]), "contrast", 5).images
    >>> round(float(pale.max() - pale.min()) * data.STD, 4)                     # of black to white
    0.15
    """
    images, labels = layout.as_float(split[0], "images"), split[1]
    pixels = images.double() * std + mean
    near = math.sqrt(torch.finfo(images.dtype).eps)                                                         # black may come back as -1e-8
    pixels = torch.where((pixels > -near) & (pixels < 1 + near), pixels.clamp(0, 1), pixels).to(images.dtype)
    return Split(((shift(pixels, name, severity, seed).double() - mean) / std).to(images.dtype), labels)


def each(split: Split, judge: Callable[[Split], object], names=tuple(SEVERITIES), severities=(3,), seed: int = 0) -> dict:
    """(name, severity) -> judge(the split so changed): an accuracy of one network, a comparison of two, on the very same images.

    >>> test = data.load("test")
    >>> list(each(Split(test.images[:2], test.labels[:2]), lambda split: None, ("blur",), (1, 5)))
    [('blur', 1), ('blur', 5)]
    """
    return {(name, severity): judge(shifted(split, name, severity, seed)) for name in names for severity in severities}
