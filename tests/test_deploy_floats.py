"""ONNX and PyTorch take every network that torch.export reads, not only those whose layers qlab quantizes."""


import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("onnxruntime", reason="pip install qlab[deploy]")
pytest.importorskip("onnxscript", reason="pip install qlab[deploy]")
pytest.importorskip("torchao", reason="pip install qlab[deploy]")

import own_networks
from exporter import one_table_of_operators  # noqa: F401 - a fixture of every test here
from own_networks import Forward

from qlab.deploy import onnx, pt2, pytorch


def _attention(net, x):
    weights = torch.softmax(net.q(x) @ net.k(x).transpose(1, 2) / 8**0.5, -1)
    return net.fc((weights @ net.v(x)).flatten(1))


def _over(net, x):
    """What is written over a tensor, its codes alone would miss."""
    y = net.a(x)
    z = net.b(y)
    y += z
    y[:, 0] = 0.5
    return net.fc(net.p(y + z).flatten(1))


def _linear(n, values=144):
    return nn.Flatten(), nn.Linear(values, n)


NETWORKS = {  # a name, how to make it, the shape of its images: none can be read by qlab.nets.graph
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)), (12,)),
    "LayerNorm of maps": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.LayerNorm([4, 4, 4]), *_linear(3, 64)), (2, 6, 6)),
    "PReLU, BatchNorm2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4),
                              nn.ReLU(), *_linear(3)), (2, 6, 6)),
    "GroupNorm, map out": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1)), (2, 6, 6)),
    "Upsample": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 2, 3)), (2, 6, 6)),
    "GRU": (lambda: Forward(lambda n, x: n.fc(n.g(x)[0][:, -1]), g=nn.GRU(5, 6, batch_first=True), fc=nn.Linear(6, 3)), (7, 5)),
    "attention": (
        lambda: Forward(_attention, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), fc=nn.Linear(56, 3)), (7, 8)),
    "transformer": (
        lambda: Forward(lambda n, x: n.fc(n.t(n.p(x).flatten(2).transpose(1, 2)).mean(1)), p=nn.Conv2d(2, 8, 2, 2),
                        t=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), fc=nn.Linear(8, 3)), (2, 6, 6)),
    "one layer twice": (
        lambda: Forward(lambda n, x: n.fc(n.p(n.c(n.r(n.c(x)))).flatten(1)), c=nn.Conv2d(2, 2, 3, padding=1), r=nn.ReLU(inplace=True),
                        p=nn.PReLU(), fc=nn.Linear(72, 3)), (2, 6, 6)),
    "written over": (
        lambda: Forward(_over, a=nn.Conv2d(2, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, padding=1), p=nn.PReLU(), fc=nn.Linear(144, 3)),
        (2, 6, 6)),
}


def made(name):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net, x = make(), torch.randn(48, *shape)
    with torch.no_grad():
        for _ in range(5):
            net.train()(x.clone())
        return net.eval(), x, net(x.clone())


def decibels(found, wanted):
    return 10 * torch.log10(wanted.double().square().sum() / (found - wanted).double().square().sum().clamp(min=1e-30)).item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, module, kind, least", [
    *((name, *way) for name in NETWORKS for way in [(onnx, "static", 25), (pytorch, "static-8bit", 28)]),  # the float graph, quantized
    *((name, *way) for name in ("GRU", "transformer", "one layer twice", "written over")
      for way in [(onnx, "float", 100), (pytorch, "float", 100), (pytorch, "dynamic", 30)]),
])
def test_networks_of_any_layers(name, module, kind, least, tmp_path):
    net, x, wanted = made(name)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    told = module.export(net, tmp_path / "net", x, kind, image_shape=tuple(x.shape[1:]))
    run = module.load(tmp_path / "net")
    assert decibels(run(x), wanted) > least and told.output.shape == tuple(wanted.shape[1:])
    if kind != "dynamic":  # whose ranges are those of a batch
        torch.testing.assert_close(run(x[:1]), run(x)[:1], rtol=1e-3, atol=0.02 * wanted.abs().max().item())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_layers_are_quantized_where_the_graph_cannot_be_read(tmp_path):
    """Weights are int8, and a batch norm is folded by PyTorch itself."""
    net, x, _ = made("PReLU, BatchNorm2d")
    pytorch.export(net, tmp_path / "net", x, "static", image_shape=(2, 6, 6))
    called = pytorch.operators(tmp_path / "net")
    assert called["quantized_decomposed.dequantize_per_channel.default"] == 3 and not any("norm" in name for name in called)
    program = torch.export.load(tmp_path / "net")
    assert sorted(tuple(t.shape) for t in program.state_dict.values() if t.dtype == torch.int8) == [(3, 144), (4, 2, 3, 3), (4, 4, 3, 3)]


@pytest.mark.parametrize("module", [onnx, pytorch])
def test_a_transposed_convolution_keeps_its_values(module, tmp_path):
    net, x = own_networks.network("ConvTranspose2d, every setting")
    module.export(net, tmp_path / "net", x, "static", image_shape=tuple(x.shape[1:]))
    with torch.no_grad():
        assert decibels(module.load(tmp_path / "net")(x), net(x)) > 25


@pytest.mark.parametrize("forward, said", [
    (lambda n, x: n.fc(x) if x.sum() > 9e9 else -n.fc(x), "torch.export cannot read the network: its forward decides by the values of the"),
    (lambda n, x: n.fc(x) if len(x) < 9 else -n.fc(x), "cannot be exported for any number of images: its forward decides by their number"),
    (lambda n, x: torch.cat([n.fc(image[None]) for image in x]), "cannot be exported for any number of images"),
    (lambda n, x: n.fc(torch.from_numpy(x.numpy())), "torch.export cannot read the network"),
    (lambda n, x: (n.fc(x), x), "the network returns several values, and may return one tensor"),
])
@pytest.mark.parametrize("module", [onnx, pytorch])
def test_what_no_file_can_hold_is_one_sentence(module, forward, said, tmp_path, capfd):
    net = Forward(forward, fc=nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=said) as told:
        module.export(net, tmp_path / "net", torch.rand(20, 4), image_shape=(4,))
    assert len(str(told.value).splitlines()) == 1 and "While executing" not in str(told.value)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    net = Forward(lambda n, x: torch.special.i0e(x)).eval()
    with pytest.raises(ValueError, match="^PyTorch's ONNX exporter cannot translate the network .No ONNX function found for .*i0e") as told:
        onnx.export(net, tmp_path / "net", kind="float", image_shape=(4,))
    assert len(str(told.value).splitlines()) == 1 and "\x1b" not in str(told.value) and not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_pickled(tmp_path):
    with pytest.raises(ValueError, match="^the network cannot be pickled whole, as the document's listing does it .*lambda"):
        pytorch.export(Forward(lambda n, x: F.relu(x)), tmp_path / "net", kind="document", image_shape=(4,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("safe, expressions", [
    (True, ("", "n", "Symbol('s77', positive=True, integer=True)", "Mul(Integer(8), Symbol('s77', positive=True, integer=True))",
            "Add(Integer(-1), FloorDiv(Symbol('s7', integer=True), Integer(2)))", "Symbol('zuf0')")),
    (False, ("print(1)", "Symbol('a' or print(1))", "Mul(Integer(8), __import__('os'))", "Pow(Integer(9), Integer(9))", "Symbol('s').x",
             "Integer(1) or print(1)", "Lambda(x, x)", "[Integer(1)]", "Symbol('s77', cls=print)", "9**9")),
])
def test_sizes_that_are_arithmetic_and_nothing_else(safe, expressions):
    assert [bool(pt2.SIZE.fullmatch(expression)) for expression in expressions] == [safe] * len(expressions)


def test_calls_that_are_arithmetic_and_nothing_else():
    assert all(pt2.OPERATOR.fullmatch(name) for name in ("_operator.mul", "torch.ops.aten.relu.default"))
    assert not any(pt2.OPERATOR.fullmatch(name) for name in ("_operator.call", "_operator.setitem", "_operator.mul.__call__", "os.system",
                                                             "_operator.pow", "torch.ops.load_library"))


@pytest.mark.parametrize("name, kind", [("resnet18", "dynamic"), ("shufflenet_v2_x1_0", "static")])
def test_networks_of_torchvision(name, kind, tmp_path):
    """Where torchvision happens to be installed; qlab needs it nowhere. All of its nine: qlab.lab.experiments.other_networks."""
    from qlab.lab.experiments import other_networks

    try:
        other_networks.torchvision_models()
    except ImportError as error:
        pytest.skip(str(error))
    make, shape = other_networks.makers()[name]
    net, x = other_networks.seasoned(make, shape), other_networks.images(shape, 8)
    pytorch.export(net, tmp_path / "net", x, kind, image_shape=shape)
    assert decibels(pytorch.load(tmp_path / "net")(x), net(x)) > {"static": 3, "dynamic": 30}[kind]
