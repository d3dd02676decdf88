"""The four networks of the benchmark MLPerf Tiny, untrained (Banbury et al. 2021, arXiv:2106.07597; its reference code is in Keras).

    keyword spotting        DS-CNN              a spectrogram, (1, 49, 10)          12 words
    person detection        MobileNetV1 0.25    an image, (3, 96, 96)               2 classes
    image classification    ResNet-8            an image, (3, 32, 32)               10 classes
    anomaly detection       autoencoder         five frames of a spectrum, (640,)   the frames again

Keras pads "same" with what is missing on the right and below: a ZeroPad2d before a convolution that has stride 2.
"""

import torch
from torch import nn


def ds_cnn(classes: int = 12, channels: int = 64) -> nn.Sequential:
    """A convolution of 10 x 4 and four depthwise-separable blocks (Zhang et al. 2017, "Hello Edge"): 24,908 numbers with batch norm's.

    >>> ds_cnn().eval()(torch.zeros(2, 1, 49, 10)).shape
    torch.Size([2, 12])
    """
    blocks = [layer for _ in range(4) for layer in (*_normed(channels, channels, 3, groups=channels), *_normed(channels, channels, 1))]
    return nn.Sequential(nn.ZeroPad2d((1, 1, 4, 5)), *_normed(1, channels, (10, 4), stride=2, padding=0), nn.Dropout(0.2), *blocks,
                         nn.Dropout(0.4), nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(channels, classes), nn.Softmax(1))


def mobilenet_v1(classes: int = 2, width: float = 0.25) -> nn.Sequential:
    """Thirteen depthwise-separable blocks (Howard et al. 2017), a quarter as wide: 221,794 numbers with batch norm's.

    >>> mobilenet_v1().eval()(torch.zeros(2, 3, 96, 96)).shape
    torch.Size([2, 2])
    """
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    into = int(32 * width)
    layers = [nn.ZeroPad2d((0, 1, 0, 1)), *_normed(3, into, 3, stride=2, padding=0)]
    for out, stride in plan:
        out = int(out * width)
        if stride == 2:
            layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
        layers += _normed(into, into, 3, stride=stride, padding=0 if stride == 2 else 1, groups=into)
        layers += _normed(into, out, 1)
        into = out
    return nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(into, classes), nn.Softmax(1))


class _Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int):
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()
        self.first = nn.Sequential(*_normed(into, out, 3, stride=stride, padding=0 if stride == 2 else 1))
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out))
        self.skip = nn.Conv2d(into, out, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(self.pad(x))) + self.skip(x))


def resnet8(classes: int = 10) -> nn.Sequential:
    """A convolution and three residual blocks of 16, 32 and 64 channels: 78,666 numbers with batch norm's.

    >>> resnet8().eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(*_normed(3, 16, 3), _Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2), nn.AvgPool2d(8), nn.Flatten(),
                         nn.Linear(64, classes), nn.Softmax(1))


def autoencoder(values: int = 640, width: int = 128, narrowest: int = 8) -> nn.Sequential:
    """Ten linear layers, narrow in the middle; a machine that sounds unlike the training set is badly put together again: 269,992 numbers
    with batch norm's.

    >>> autoencoder().eval()(torch.zeros(2, 640)).shape
    torch.Size([2, 640])
    """
    sizes = [values, *[width] * 4, narrowest, *[width] * 4]
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, values))


def _normed(into: int, out: int, kernel, stride: int = 1, padding: int | None = None, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2 if padding is None else padding
    return [nn.Conv2d(into, out, kernel, stride, padding, groups=groups), nn.BatchNorm2d(out), nn.ReLU()]


NETWORKS = {  # the task, how to make the network, the shape of what it is given
    "DS-CNN": (ds_cnn, (1, 49, 10)), "MobileNetV1 0.25": (mobilenet_v1, (3, 96, 96)), "ResNet-8": (resnet8, (3, 32, 32)),
    "autoencoder": (autoencoder, (640,)),
}
