"""Networks as people bring them: every layer, function and method of qlab.nets.operations, in the forms in which forwards use it."""

import torch
import torch.nn.functional as F
from torch import nn


class Forward(nn.Module):
    """Layers by name, and a forward that is any function of them and of the image."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.how(self, x)


class Held(nn.Module):
    """Tensors that a forward reads, as buffers; a parameter where it is told."""

    def __init__(self, trained=(), **tensors):
        super().__init__()
        for name, values in tensors.items():
            tensor = torch.tensor(values)
            self.register_parameter(name, nn.Parameter(tensor)) if name in trained else self.register_buffer(name, tensor)


class Conv3x3(nn.Conv2d):
    def __init__(self, into, out):
        super().__init__(into, out, 3, padding=1)


def _conv(into=2, out=4, kernel=3, **options):
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, **options)


MAP, FLAT, LINE = (2, 6, 6), (12,), (3, 10)


def _head(how, channels=4, values=36, **layers):
    """A convolution, something, and a linear layer of all of its values."""
    return Forward(lambda net, x: net.fc(how(net, net.conv(x)).flatten(1)), conv=_conv(), fc=nn.Linear(channels * values, 3), **layers)


def _shuffle(net, x):
    n, channels, rows, columns = x.size()
    return x.view(n, 2, channels // 2, rows, columns).transpose(1, 2).contiguous().view(n, -1, rows, columns)


def _squeeze(net, x):
    return x * torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1)))))


def _split(net, x):
    a, b = x.chunk(2, dim=1)
    return torch.cat((b, a), 1)


def _swish(net, x):
    return x * F.relu6(x + 3) / 6


NETWORKS = {  # a name, how to make it, the shape of its images
    # views
    "view size(0)": (lambda: Forward(lambda n, x: n.fc(n.conv(x).view(x.size(0), -1)), conv=_conv(), fc=nn.Linear(144, 3)), MAP),
    "reshape shape[0]": (lambda: Forward(lambda n, x: n.fc(n.conv(x).reshape(x.shape[0], -1)), conv=_conv(), fc=nn.Linear(144, 3)), MAP),
    "view(-1, n)": (lambda: Forward(lambda n, x: n.fc(F.relu(n.conv(x)).view(-1, 144)), conv=_conv(), fc=nn.Linear(144, 3)), MAP),
    "view of sizes": (
        lambda: Forward(lambda n, x: n.fc(n.conv(x).view(-1, 4 * x.size(2) * x.shape[3])), conv=_conv(), fc=nn.Linear(144, 3)),
        MAP,
    ),
    "torch.reshape": (lambda: _head(lambda n, x: torch.reshape(x, (x.shape[0], 2, 72))), MAP),
    "unflatten, back": (
        lambda: Forward(lambda n, x: n.fc(n.conv(x.view(-1, 3, 2, 2)).flatten(1)), conv=_conv(3, 4), fc=nn.Linear(16, 3)),
        FLAT,
    ),
    "Unflatten": (
        lambda: nn.Sequential(nn.Linear(12, 18), nn.ReLU(), nn.Unflatten(1, (2, 3, 3)), _conv(), nn.Flatten(), nn.Linear(36, 3)),
        FLAT,
    ),
    "squeeze": (
        lambda: Forward(
            lambda n, x: n.fc(n.pool(n.conv(x)).squeeze(3).squeeze(2)), conv=_conv(), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(4, 3)
        ),
        MAP,
    ),
    "permute": (lambda: _head(lambda n, x: x.permute(0, 2, 3, 1)), MAP),
    "transpose": (lambda: _head(lambda n, x: torch.transpose(x, 2, 3)), MAP),
    "channel shuffle": (
        lambda: Forward(
            lambda n, x: n.fc(n.two(_shuffle(n, n.conv(x))).flatten(1)), conv=_conv(), two=_conv(4, 4, groups=2), fc=nn.Linear(144, 3)
        ),
        MAP,
    ),
    "ChannelShuffle": (lambda: nn.Sequential(_conv(), nn.ChannelShuffle(2), _conv(4, 4, groups=2), nn.Flatten(), nn.Linear(144, 3)), MAP),
    "slices": (
        lambda: Forward(
            lambda n, x: n.fc(n.two(n.conv(x)[:, 1:3])[..., ::2, 1:].flatten(1)), conv=_conv(), two=_conv(2, 2), fc=nn.Linear(30, 3)
        ),
        MAP,
    ),
    "chunk and cat": (
        lambda: Forward(lambda n, x: n.fc(n.two(_split(n, n.conv(x))).flatten(1)), conv=_conv(), two=_conv(4, 4), fc=nn.Linear(144, 3)),
        MAP,
    ),
    "map out": (lambda: nn.Sequential(_conv(), nn.ReLU(), _conv(4, 3, 1)), MAP),
    # means and pooling
    "mean((2, 3))": (lambda: Forward(lambda n, x: n.fc(F.relu(n.conv(x)).mean((2, 3))), conv=_conv(), fc=nn.Linear(4, 3)), MAP),
    "mean of rows": (lambda: Forward(lambda n, x: n.fc(n.conv(x).mean(2).flatten(1)), conv=_conv(), fc=nn.Linear(24, 3)), MAP),
    "mean([-2, -1], keepdim)": (
        lambda: Forward(lambda n, x: n.two(torch.mean(n.conv(x), [-2, -1], keepdim=True)).flatten(1), conv=_conv(), two=_conv(4, 3, 1)),
        MAP,
    ),
    "mean of channels": (lambda: Forward(lambda n, x: n.fc(n.conv(x).mean(dim=1).flatten(1)), conv=_conv(), fc=nn.Linear(36, 3)), MAP),
    "mean of channels and columns": (lambda: Forward(lambda n, x: n.fc(n.conv(x).mean((1, 3))), conv=_conv(), fc=nn.Linear(6, 3)), MAP),
    "average, padded": (lambda: nn.Sequential(_conv(), nn.AvgPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)), MAP),
    "average, padding not counted": (
        lambda: nn.Sequential(_conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(36, 3)),
        MAP,
    ),
    "average, ceil_mode": (lambda: nn.Sequential(_conv(), nn.AvgPool2d((2, 4), ceil_mode=True), nn.Flatten(), nn.Linear(24, 3)), MAP),
    "average, padded, ceil_mode": (
        lambda: nn.Sequential(_conv(), nn.AvgPool2d(4, 3, 1, ceil_mode=True), nn.Flatten(), nn.Linear(36, 3)),
        MAP,
    ),
    "average, divisor": (lambda: nn.Sequential(_conv(), nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(36, 3)), MAP),
    "uneven adaptive": (lambda: nn.Sequential(_conv(), nn.AdaptiveAvgPool2d((4, 5)), nn.Flatten(), nn.Linear(80, 3)), MAP),
    "adaptive, to a larger map": (lambda: nn.Sequential(_conv(), nn.AdaptiveAvgPool2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3)), MAP),
    "maximum, ceil_mode": (lambda: nn.Sequential(_conv(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(36, 3)), MAP),
    # sums, products, concatenations
    "cat": (
        lambda: Forward(
            lambda n, x: n.fc(torch.cat([n.a(x), F.relu(n.b(x)), x], 1).flatten(1)), a=_conv(), b=_conv(2, 3, 1), fc=nn.Linear(324, 3)
        ),
        MAP,
    ),
    "cat of rows": (
        lambda: Forward(
            lambda n, x: n.fc(torch.cat((n.a(x), n.b(x)), dim=-2).flatten(1)), a=_conv(), b=_conv(2, 4, 1), fc=nn.Linear(288, 3)
        ),
        MAP,
    ),
    "cat of vectors": (
        lambda: Forward(lambda n, x: n.fc(torch.cat((n.a(x), n.b(x)), 1)), a=nn.Linear(12, 5), b=nn.Linear(12, 2), fc=nn.Linear(7, 3)),
        FLAT,
    ),
    "product": (lambda: Forward(lambda n, x: n.fc((n.a(x) * n.b(x)).flatten(1)), a=_conv(), b=_conv(), fc=nn.Linear(144, 3)), MAP),
    "product, ReLU": (
        lambda: Forward(lambda n, x: n.fc(F.relu(torch.mul(n.a(x), n.b(x))).flatten(1)), a=_conv(), b=_conv(), fc=nn.Linear(144, 3)),
        MAP,
    ),
    "difference": (lambda: Forward(lambda n, x: n.fc((n.a(x) - n.b(x)).flatten(1)), a=_conv(), b=_conv(), fc=nn.Linear(144, 3)), MAP),
    "difference, ReLU": (
        lambda: Forward(lambda n, x: n.fc(F.relu(torch.sub(x, other=n.a(x))).flatten(1)), a=_conv(2, 2), fc=nn.Linear(72, 3)),
        MAP,
    ),
    "difference from the mean": (lambda: _head(lambda n, x: x.sub_(x.mean((2, 3), keepdim=True))), MAP),
    "as wide as another": (lambda: _head(lambda n, x: x * x.mean((2, 3), keepdim=True).sigmoid().expand_as(x)), MAP),
    "normalized by buffers": (
        lambda: Forward(
            lambda n, x: n.fc(n.conv(n.bn((x - n.of.mean) / n.of.std)).flatten(1)), bn=nn.BatchNorm2d(2), conv=_conv(),
            of=Held(mean=[[[[0.3]], [[-0.4]]]], std=[[[0.5]], [[2.0]]]), fc=nn.Linear(144, 3),
        ),
        MAP,
    ),
    "scales that are trained": (
        lambda: _head(lambda n, x: x + n.of.gain * (n.of.layer * x.mul_(n.of.layer)) - n.of.layer, of=Held(
            ("gain", "layer"), gain=0.7, layer=[[[1.0]], [[-0.5]], [[0.2]], [[2.0]]])),
        MAP,
    ),
    "a constant less a line": (
        lambda: Forward(lambda n, x: n.fc((n.of.mean - x.sub_(n.of.mean)).flatten(1)), of=Held(mean=[[[0.5], [1.0], [-1.0]]]),
                        fc=nn.Linear(30, 3)),
        LINE,
    ),
    "squeeze and excitation": (lambda: _head(_squeeze, down=_conv(4, 2, 1), up=_conv(2, 4, 1)), MAP),
    "sum with a vector of channels": (lambda: _head(lambda n, x: x + x.mean((2, 3), keepdim=True)), MAP),
    "numbers": (lambda: _head(lambda n, x: (1 - x / 2) * 3 + 0.5), MAP),
    # functions of one number
    **{
        f"{layer.__class__.__name__}": (lambda layer=layer: _head(lambda n, x: n.act(x), act=layer), MAP)
        for layer in (
            nn.LeakyReLU(0.1),
            nn.Sigmoid(),
            nn.Hardswish(),
            nn.Hardsigmoid(),
            nn.SiLU(),
            nn.GELU(),
            nn.Tanh(),
            nn.ELU(),
            nn.Softplus(),
            nn.Mish(),
            nn.Hardtanh(0, 6),
            nn.ReLU6(),
        )
    },
    "GELU tanh": (lambda: _head(lambda n, x: F.gelu(x, approximate="tanh")), MAP),
    "swish by hand": (lambda: _head(_swish), MAP),
    "leaky_relu": (lambda: _head(lambda n, x: F.leaky_relu(x, 0.2)), MAP),
    "roots and logarithms": (lambda: _head(lambda n, x: torch.log(x.square() + 2).sqrt() + (1 + x.abs()).reciprocal()), MAP),
    "to float32, which it is": (
        lambda: _head(lambda n, x: x.float().to(x.dtype).to(n.fc.weight.device).to("cpu", torch.float32).type_as(x).to(n.conv.weight)),
        MAP,
    ),
    "in place": (lambda: _head(lambda n, x: n.act(x.mul_(2)), act=nn.SiLU(inplace=True)), MAP),
    "clamp": (lambda: _head(lambda n, x: x.clamp(-0.5, 0.5).abs()), MAP),
    "Softmax": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Softmax(1)), MAP),
    "softmax": (lambda: Forward(lambda n, x: F.softmax(n.fc(x), dim=-1), fc=nn.Linear(12, 5)), FLAT),
    # layers
    "BatchNorm1d": (lambda: nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), FLAT),
    "BatchNorm1d first": (lambda: nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 3)), FLAT),
    "BatchNorm2d first": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), _conv(), nn.Flatten(), nn.Linear(144, 3)), MAP),
    "norm, ReLU, convolution": (
        lambda: Forward(
            lambda n, x: n.fc(torch.cat((n.conv(x), n.two(F.relu(n.bn(n.conv(x))))), 1).flatten(1)),
            conv=_conv(),
            bn=nn.BatchNorm2d(4),
            two=_conv(4, 2),
            fc=nn.Linear(216, 3),
        ),
        MAP,
    ),
    "Conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(4, 4, 3, 2, dilation=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        LINE,
    ),
    "Conv1d, same, depthwise": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 4, padding="same", groups=3), nn.AvgPool1d(3, 2, 1), nn.Flatten(), nn.Linear(30, 3)),
        LINE,
    ),
    "BatchNorm1d first, on lines": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(32, 3)), LINE),
    "mean of lines": (lambda: Forward(lambda n, x: n.fc(F.relu(n.conv(x)).mean(-1)), conv=nn.Conv1d(3, 4, 3), fc=nn.Linear(4, 3)), LINE),
    "ConvTranspose2d": (
        lambda: nn.Sequential(_conv(), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), _conv(3, 2)),
        MAP,
    ),
    "ConvTranspose2d, every setting": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, (3, 2), (2, 3), (1, 0), (1, 2), 2, False, (2, 1)), nn.Flatten(), nn.Linear(4 * 14 * 19, 3)
        ),
        MAP,
    ),
    "ZeroPad2d": (lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(196, 3)), MAP),
    "ConstantPad2d": (lambda: nn.Sequential(_conv(), nn.ConstantPad2d(1, 2.5), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(72, 3)), MAP),
    "F.pad": (lambda: _head(lambda n, x: F.pad(x, (1, 0, 2, 1), value=-0.5), values=63), MAP),
    "linear on lines": (lambda: Forward(lambda n, x: n.fc(F.relu(n.a(x)).flatten(1)), a=nn.Linear(10, 4), fc=nn.Linear(12, 3)), LINE),
    "a subclass": (lambda: nn.Sequential(Conv3x3(2, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), MAP),
    "dropout": (
        lambda: Forward(
            lambda n, x: n.fc(F.dropout(n.drop(n.conv(x)), 0.5, n.training).flatten(1)),
            conv=_conv(),
            drop=nn.Dropout2d(),
            fc=nn.Linear(144, 3),
        ),
        MAP,
    ),
}


def network(name: str, seed: int = 0, networks: dict = NETWORKS) -> tuple[nn.Module, torch.Tensor]:
    """The network in evaluation mode, its batch norms with statistics of their own, and 64 images."""
    torch.manual_seed(seed)
    make, shape = networks[name]
    net, x = make(), torch.randn(64, *shape)
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    with torch.no_grad():
        for _ in range(10):
            net.train()(x)
    return net.eval(), x
