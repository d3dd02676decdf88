"""More networks as people bring them: blocks that they copy from each other, unlucky names, indices and arguments of all kinds."""

import torch
import torch.nn.functional as F
from own_networks import FLAT, LINE, MAP, Forward, _conv, _head
from torch import nn

S = nn.Sequential


def block(into, out, kernel=3, stride=1, groups=1, act=nn.ReLU):
    return S(nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out), act())


def named(forward, **layers):
    """A network whose layers have just these names."""
    return lambda: Forward(forward, **{name: make() for name, make in layers.items()})


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.mid = block(2, 4), block(4, 8), block(8, 8)
        self.up, self.up1, self.out = nn.ConvTranspose2d(8, 4, 2, 2), block(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.mid(self.down2(F.max_pool2d(a, 2)))
        return self.out(self.up1(torch.cat([self.up(b), a], dim=1)))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Conv2d(2, 8, 2, 2), nn.Linear(8, 3)
        self.rows = S(nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 9))
        self.columns = S(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.rows(x.transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.columns(x)).mean(dim=1))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = block(2, 3, 1), S(block(2, 2, 1), block(2, 3)), S(block(2, 2, 1), block(2, 3, 5))
        self.d, self.fc = S(nn.MaxPool2d(3, 1, 1), block(2, 2, 1)), nn.Linear(11, 3)

    def forward(self, x):
        return self.fc(torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1).mean([2, 3]))


class Ghost(nn.Module):
    def __init__(self):
        super().__init__()
        self.primary, self.cheap, self.fc = block(2, 5, 1), block(5, 5, 3, 1, 5), nn.Linear(252, 3)

    def forward(self, x):
        a = self.primary(x)
        return self.fc(torch.cat([a, self.cheap(a)], dim=1)[:, :7, :, :].flatten(1))


class CrossStage(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.out = block(2, 8, act=nn.SiLU), block(12, 4, 1, act=nn.SiLU)
        self.m, self.fc = S(block(4, 4, act=nn.SiLU), block(4, 4, act=nn.SiLU)), nn.Linear(4, 3)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        return self.fc(self.out(torch.cat((a, b, self.m(b) + b), 1)).mean((-2, -1)))


class Excitation(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = S(nn.Linear(channels, 2, bias=False), nn.ReLU(inplace=True), nn.Linear(2, channels, bias=False), nn.Sigmoid())

    def forward(self, x):
        n, channels, _, _ = x.size()
        return x * self.fc(self.pool(x).view(n, channels)).view(n, channels, 1, 1)


class Attention(nn.Module):
    """Efficient channel attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


class Causal(nn.Module):
    """Padded to the left; the last moment decides."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.skip, self.fc = nn.Conv1d(3, 4, 3, dilation=2), nn.Conv1d(4, 4, 3), nn.Conv1d(3, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        y = F.relu(self.two(F.pad(F.relu(self.one(F.pad(x, (4, 0)))), (2, 0))))
        return self.fc(F.relu(y + self.skip(x))[:, :, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ConvTranspose2d(4, 2, 3, padding=1, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(F.relu(self.encode(x)))


class Shared(nn.Module):
    """One block three times, and one batch norm that stands first, twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.bn, self.conv = _conv(), S(_conv(4, 4), nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm2d(4), _conv(4, 4)
        self.fc = nn.Linear(144, 3)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        for _ in range(2):
            x = self.conv(F.relu(self.bn(x))) + x
        return self.fc(x.flatten(1))


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pools, self.fc = _conv(), nn.ModuleList([nn.AdaptiveAvgPool2d(k) for k in (1, 2, 3)]), nn.Linear(56, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(torch.cat([pool(x).flatten(1) for pool in self.pools], 1))


class Branches(nn.Module):
    """A dictionary of layers."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict({"3x3": _conv(), "1-1": nn.Conv2d(2, 4, 1), "sum": nn.Conv2d(2, 4, 1)})
        self.fc = nn.Linear(144, 3)

    def forward(self, x):
        return self.fc(sum(F.relu(branch(x)) for branch in self.branches.values()).flatten(1))


class Dense(nn.Module):
    """All features so far into each layer: norm, ReLU, convolution."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(S(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 2, 3, padding=1, bias=False)) for n in (2, 4, 6))
        self.fc = nn.Linear(288, 3)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(torch.cat(features, 1).flatten(1))


class Pyramid(nn.Module):
    """Two scales, and a class for each place of the finer one."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.side, self.up, self.out = nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2, groups=4, bias=False), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        y = self.side(fine) + self.up(F.relu(self.coarse(fine)))
        return self.out(y).permute(0, 2, 3, 1).contiguous().view(x.size(0), -1, 3)


class Wave(nn.Module):
    """A small network of raw audio."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.pool, self.fc = nn.Conv1d(1, 4, 5, 2), nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.Linear(4, 3)

    def forward(self, x):
        x = F.avg_pool1d(self.pool(F.relu(self.bn(self.conv(x)))), 9)
        return self.fc(x.permute(0, 2, 1)).squeeze(1)


class Twice(nn.ReLU):
    def forward(self, x):
        return super().forward(x) * 2


class Halved(nn.Identity):
    def forward(self, x):
        return x / 2


def _in_place_on_a_clone(net, x):
    y = x.clone()
    y.relu_()
    return y + x


def _added_to_a_clone(net, x):
    y = torch.clone(x)
    y += 1
    return y * x


def _space_to_depth(net, x):
    return net.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)).flatten(1)


def _depth_to_space(net, x):
    n = x.size(0)
    return net.conv(x).view(n, 1, 2, 2, 6, 6).permute(0, 1, 4, 2, 5, 3).reshape(n, 1, 12, 12)


def _thirds(net, x):
    a, b, c = torch.split(net.a(x), [1, 4, 2], dim=1)
    return net.fc(torch.cat([c, a, b], 1))


def _maps(net, x):
    a, b, c = net.mean_as_rows(x), net.mean_ordered(x), net.mean_map(x)
    return net.fc((a + b).mean((1, 3))) + net.two((a * b + c).flatten(1))


def _of_map(how, channels=4, values=36, **layers):
    return lambda: _head(how, channels, values, **layers)


def line(into=3, out=4):
    return lambda: nn.Conv1d(into, out, 3)


def after_conv(*layers, values=144):
    return lambda: S(_conv(), *layers, nn.Flatten(), nn.Linear(values, 3))


NETWORKS = {  # a name, how to make it, the shape of its images
    "U-Net": (UNet, (2, 8, 8)), "MLP-Mixer": (Mixer, MAP), "inception": (Inception, MAP), "ghost": (Ghost, MAP), "CSP": (CrossStage, MAP),
    "dense": (Dense, MAP), "pyramid": (Pyramid, (2, 8, 8)), "raw audio": (Wave, (1, 40)),
    "excitation": (after_conv(Excitation()), MAP), "channel attention": (after_conv(Attention()), MAP), "causal": (Causal, LINE),
    "tied autoencoder": (Tied, MAP), "shared blocks": (Shared, MAP), "several scales": (Scales, MAP), "ModuleDict": (Branches, MAP),
    "spatial attention": (
        named(lambda n, x: n.fc((x * torch.sigmoid(n.conv(x.mean(1, keepdim=True)))).flatten(1)), conv=lambda: _conv(1, 1),
              fc=lambda: nn.Linear(72, 3)), MAP),
    "depthwise 1-d": (
        lambda: S(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU6(), nn.Conv1d(8, 8, 3, 1, 2, 2, 8, False), nn.BatchNorm1d(8),
                  nn.ReLU6(), nn.Conv1d(8, 6, 1), nn.BatchNorm1d(6), nn.Hardswish(), nn.Flatten(), nn.Linear(60, 3)), LINE),
    "anomalies": (
        lambda: S(nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 72), nn.Unflatten(1, MAP),
                  nn.Sigmoid()), MAP),
    "convolutional autoencoder": (
        lambda: S(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.Tanh()), (2, 8, 8)),
    "cut to the past": (named(lambda n, x: n.fc(F.relu(n.conv(x)[:, :, :-2]).contiguous().view(x.size(0), -1)),
                              conv=lambda: nn.Conv1d(3, 4, 3, padding=2), fc=lambda: nn.Linear(40, 3)), LINE),
    "space to depth": (named(_space_to_depth, conv=lambda: nn.Conv2d(8, 3, 3)), MAP),
    "depth to space": (named(_depth_to_space, conv=lambda: nn.Conv2d(2, 4, 1)), MAP),
    "torch.split of a list": (named(_thirds, a=lambda: nn.Linear(12, 7), fc=lambda: nn.Linear(7, 3)), FLAT),
    # names that the graph or its steps would make up
    "relu_layer": (named(lambda n, x: n.fc(F.relu(n.relu_1_layer(F.relu(n.relu_layer(x)))).flatten(1)), relu_layer=_conv,
                         relu_1_layer=lambda: _conv(4, 4), fc=lambda: nn.Linear(144, 3)), MAP),
    "conv_codes": (named(lambda n, x: n.fc(n.input_1_codes(n.conv_codes(n.conv(x))).flatten(1)), conv=_conv, conv_codes=lambda: _conv(4, 4),
                         input_1_codes=lambda: _conv(4, 4), fc=lambda: nn.Linear(144, 3)), MAP),
    "conv_map": (named(lambda n, x: n.fc((n.conv(n.conv_row(x)) + n.conv_map(x)).flatten(1)), conv_map=line(), conv=line(),
                       conv_row=nn.ReLU, fc=lambda: nn.Linear(32, 3)), LINE),
    "pool_padded, fill_scaled": (
        named(lambda n, x: n.fc((n.pool(n.pool_padded(x)) + n.two(n.fill(n.fill_scaled(n.pool_padded(x))))).flatten(1)), pool_padded=_conv,
              pool=lambda: nn.AvgPool2d(3, 1, 1), fill_scaled=lambda: _conv(4, 4), fill=lambda: nn.ConstantPad2d((1, 0, 0, 1), 1.5),
              two=lambda: nn.Conv2d(4, 4, 2), fc=lambda: nn.Linear(144, 3)), MAP),
    "mean_as_rows": (named(_maps, mean_as_rows=_conv, mean_ordered=_conv, mean_map=_conv, fc=lambda: nn.Linear(6, 3),
                           two=lambda: nn.Linear(144, 3)), MAP),
    "layers named as methods": (
        named(lambda n, x: n.cat(n.chunk(n.clone(n.size(n.view(n.split(x) + n.relu(n.split(x))))))[:, 1:3].flatten(1)), split=_conv,
              chunk=lambda: _conv(4, 4), relu=lambda: _conv(4, 4), view=nn.ReLU6, size=lambda: _conv(4, 4), clone=lambda: _conv(4, 4),
              cat=lambda: nn.Linear(72, 3)), MAP),
    # copies, and what is written over them
    "clone, in place": (_of_map(_in_place_on_a_clone), MAP), "torch.clone, +=": (_of_map(_added_to_a_clone), MAP),
    "flattened, in place": (_of_map(lambda n, x: x.flatten(2).relu_()), MAP),
    # indices
    "x[:, 0]": (_of_map(lambda n, x: x[:, 0], 1), MAP), "x[..., -1]": (_of_map(lambda n, x: x[..., -1], 4, 6), MAP),
    "x[:, :, 0, 0]": (_of_map(lambda n, x: x[:, :, 0, 0], 4, 1), MAP),
    "x[:, None]": (_of_map(lambda n, x: x[:, None, 1::2, ..., None], 2), MAP),
    "negative slices": (_of_map(lambda n, x: x[:, -3:-1, :, -4:], 2, 24), MAP),
    "a vector made a map": (_of_map(lambda n, x: x * x.mean((2, 3))[:, :, None, None]), MAP),
    "chunk of dimension -3": (_of_map(lambda n, x: torch.chunk(x, 2, -3)[1] * torch.chunk(x, 2, -3)[0], 2), MAP),
    "flatten(-2)": (_of_map(lambda n, x: x.flatten(-2)), MAP), "flatten(1, 2)": (_of_map(lambda n, x: torch.flatten(x, 1, 2)), MAP),
    # arguments
    "torch.add(x, 1, alpha=2)": (_of_map(lambda n, x: torch.add(x, 1, alpha=2)), MAP), "2 ** x": (_of_map(lambda n, x: 2**x), MAP),
    "mean(2, True)": (_of_map(lambda n, x: x.mean(2, True), 4, 6), MAP), "clamp(min=0)": (_of_map(lambda n, x: x.clamp(min=0)), MAP),
    "pow(2)": (_of_map(lambda n, x: x.pow(2)), MAP), "1 / (x * x + 1)": (_of_map(lambda n, x: 1 / (x * x + 1)), MAP),
    "abs": (_of_map(lambda n, x: abs(-x)), MAP), "sum": (_of_map(lambda n, x: sum([x, x.relu(), x * 2])), MAP),
    "x + x": (_of_map(lambda n, x: x + x), MAP), "cat of one twice": (_of_map(lambda n, x: torch.cat([x, x * 9, x], -3), 12), MAP),
    "sums in both orders": (_of_map(lambda n, x: x.mean((2, 3), keepdim=True) + x + x.mean(1, keepdim=True)), MAP),
    "rows times columns": (_of_map(lambda n, x: x.mean(2, keepdim=True) * x.mean(3, keepdim=True)), MAP),
    "silu in place, read again": (_of_map(lambda n, x: F.silu(x, inplace=True) + x), MAP),
    "F.pad of channels": (_of_map(lambda n, x: F.pad(x, (0, 0, 0, 0, 1, 1)), 6), MAP),
    "F.pad far outside": (_of_map(lambda n, x: F.pad(x.relu(), (1, 1), value=-30.0), 4, 48), MAP),
    "maximum over a constant": (_of_map(lambda n, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-2.5), 2, 1), 4, 49), MAP),
    "ReLU6 behind cat": (_of_map(lambda n, x: F.relu6(torch.cat([x * 5, x * 9], 1)), 8), MAP),
    "ReLU6 behind a view": (_of_map(lambda n, x: F.relu6((x * 5).transpose(2, 3))), MAP),
    "ReLU6 three times": (after_conv(nn.ReLU6(), nn.ReLU6(), nn.MaxPool2d(2), nn.ReLU6(), values=36), MAP),
    # layers
    "subclasses": (after_conv(Twice(), Halved()), MAP), "norms in a row": (after_conv(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), MAP),
    "one norm behind two layers": (lambda: (lambda norm: S(_conv(2, 4), norm, _conv(4, 4), norm, nn.ReLU(), norm))(nn.BatchNorm2d(4)), MAP),
    "norm without factors": (after_conv(nn.BatchNorm2d(4, affine=False, momentum=None), nn.ReLU()), MAP),
    "norm behind a linear layer of lines": (
        lambda: S(nn.Linear(10, 4), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)), LINE),
    "as many features as rows": (lambda: S(nn.Linear(10, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)), LINE),
    "norm behind a linear layer of maps": (lambda: S(nn.Linear(6, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), MAP),
    "norm of flattened maps": (_of_map(lambda n, x: n.bn(x.flatten(2)), bn=nn.BatchNorm1d(4)), MAP),
    "norm of means": (_of_map(lambda n, x: n.bn(x.mean((2, 3))), 4, 1, bn=nn.BatchNorm1d(4)), MAP),
    "norm, then Flatten of vectors": (lambda: S(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)), FLAT),
    "norm of lines, read twice": (
        named(lambda n, x: n.fc(torch.cat([n.bn(x) * 2, n.conv(n.bn(x) * 2)], 1).flatten(1)), bn=lambda: nn.BatchNorm1d(3),
              conv=lambda: nn.Conv1d(3, 3, 3, padding=1), fc=lambda: nn.Linear(60, 3)), LINE),
    "a bare batch norm": (lambda: nn.BatchNorm2d(2), MAP), "a bare transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 3), MAP),
    "weight norm": (lambda: S(nn.utils.parametrizations.weight_norm(_conv()), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), MAP),
    "spectral norm, transposed": (
        lambda: S(nn.utils.parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3)), MAP),
    "maps of one number": (lambda: S(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten()), (2, 1, 1)),
    "one channel": (lambda: S(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1)), (1, 4, 4)),
    "only softmax": (lambda: nn.Softmax(1), FLAT),
    "dropout behind softmax": (lambda: S(nn.Linear(12, 3), nn.Softmax(1), nn.Dropout()), FLAT),
    "nothing": (lambda: S(), MAP),
}
