"""The course's networks, for 28 x 28 grey images and 10 classes: input (n, 1, 28, 28), output logits (n, 10).

    cnn         three plain convolutions, no batch norm, 93K parameters: weights with one bell-shaped histogram a layer
    depthwise   MobileNet-like (Howard et al. 2017): batch norm and depthwise convolutions, whose channels have ranges
                that differ widely once batch norm is folded: one scale for the whole tensor does not fit them. Training
                also kills some of its channels, with the widest ranges of all (qlab.nets.dead)
    resnet      a larger residual network (He et al. 2016), the teacher for distillation
    lenet300    LeNet-300-100 and LeNet-5, old and generous with weights: the two networks on which pruning and
    lenet5      Deep Compression (Han et al. 2015, 2016) report their numbers
"""

from collections import OrderedDict

from torch import nn


def plain_cnn() -> nn.Sequential:
    """Three convolutions with ReLU and pooling, then two linear layers; 93,322 parameters.

    >>> import torch
    >>> plain_cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 32, 3, padding=1), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),       # (n, 32, 14, 14)
        conv2=nn.Conv2d(32, 64, 3, padding=1), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),      # (n, 64, 7, 7)
        conv3=nn.Conv2d(64, 64, 3, padding=1), relu3=nn.ReLU(), pool3=nn.MaxPool2d(2),      # (n, 64, 3, 3)
        flatten=nn.Flatten(), fc1=nn.Linear(576, 64), relu4=nn.ReLU(), fc2=nn.Linear(64, 10),
    ))


def _separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(
        depthwise=nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False), bn1=nn.BatchNorm2d(c_in), relu1=nn.ReLU(),
        pointwise=nn.Conv2d(c_in, c_out, 1, bias=False), bn2=nn.BatchNorm2d(c_out), relu2=nn.ReLU(),
    ))


def depthwise_net() -> nn.Sequential:
    """A stem and six depthwise-separable blocks with batch norm, then one linear layer.

    >>> import torch
    >>> depthwise_net()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    widths = [(32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1), (128, 128, 1)]
    blocks = [(f"block{i}", _separable(*w)) for i, w in enumerate(widths, 1)]
    return nn.Sequential(OrderedDict([
        ("conv", nn.Conv2d(1, 32, 3, padding=1, bias=False)), ("bn", nn.BatchNorm2d(32)), ("relu", nn.ReLU()),
        *blocks,                                                                            # (n, 128, 7, 7)
        ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(128, 10)),
    ]))


class Residual(nn.Module):
    """relu(x + f(x)), f two 3 x 3 convolutions with batch norm; a 1 x 1 convolution matches the shapes where they differ."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.skip = nn.Identity() if (c_in, stride) == (c_out, 1) else nn.Sequential(OrderedDict(
            conv=nn.Conv2d(c_in, c_out, 1, stride, bias=False), bn=nn.BatchNorm2d(c_out)))

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.skip(x) + self.bn2(self.conv2(y)))


def resnet() -> nn.Sequential:
    """A stem and four residual blocks of width 48 and 96, then one linear layer.

    >>> import torch
    >>> resnet()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(1, 32, 3, padding=1, bias=False), bn=nn.BatchNorm2d(32), relu=nn.ReLU(),
        block1=Residual(32, 48, 2), block2=Residual(48, 48, 1),                             # (n, 48, 14, 14)
        block3=Residual(48, 96, 2), block4=Residual(96, 96, 1),                             # (n, 96, 7, 7)
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(96, 10),
    ))


def lenet_300_100() -> nn.Sequential:
    """Three linear layers, 784-300-100-10 (LeCun et al. 1998; the widths of Han et al. 2015); 266,610 parameters.

    >>> import torch
    >>> lenet_300_100()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(OrderedDict(
        flatten=nn.Flatten(), fc1=nn.Linear(784, 300), relu1=nn.ReLU(), fc2=nn.Linear(300, 100), relu2=nn.ReLU(), fc3=nn.Linear(100, 10),
    ))


def lenet_5() -> nn.Sequential:
    """Two 5 x 5 convolutions and two linear layers, Caffe's version of LeNet-5, as in Han et al. 2015; 431,080 parameters.

    >>> import torch
    >>> lenet_5()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 20, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),                  # (n, 20, 12, 12)
        conv2=nn.Conv2d(20, 50, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),                 # (n, 50, 4, 4)
        flatten=nn.Flatten(), fc1=nn.Linear(800, 500), relu3=nn.ReLU(), fc2=nn.Linear(500, 10),
    ))


MODELS = {"cnn": plain_cnn, "depthwise": depthwise_net, "resnet": resnet, "lenet300": lenet_300_100, "lenet5": lenet_5}
