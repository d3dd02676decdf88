"""What makes a module compute other than its parameters say: shared, recomputed and hooked, in place, in half and in double.

The truth is the original model, run by torch as its author wrote it.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from qlab.nets import dead, equalize, integer, plain, prune, ptq, qat
from qlab.nets.graph import calls, trace
from qlab.quant import linear

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


def bits(n, axis=None):
    return lambda w: linear.quantize(w, n, "symmetric", axis=axis)


def seasoned(model, shape, seed=0):
    """The model with batch norms that have seen something, in evaluation mode."""
    torch.manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, *shape) + 0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(-2, 2)
                module.bias.uniform_(-1, 1)
    return model.eval()


def tied_chains(second_norm):
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1),
                        nn.BatchNorm2d(2) if second_norm else nn.Identity())
    net[3].weight = net[0].weight
    return net


class OneNormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.c2(F.relu(self.bn(self.c1(x)))))


def one_norm_under_two_names():
    bn = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(2, 2, 1), bn, nn.ReLU(), nn.Conv2d(2, 2, 1), bn)


# Shared weights


@pytest.mark.parametrize("make", [lambda: tied_chains(True), lambda: tied_chains(False), OneNormTwice, one_norm_under_two_names])
def test_what_is_shared_is_folded_for_each_chain(make):
    net, x = seasoned(make(), (2, 6, 6)), torch.randn(8, 2, 6, 6)
    before = copy.deepcopy(net.state_dict())
    folded = ptq.fold_batch_norm(net)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    for quantized in (ptq.quantize(net, x), qat.convert(qat.prepare(net, x, 8, 8, learned=False, ranges="minmax"))):
        network = integer.convert(quantized, (2, 6, 6))
        assert (network.decode(network(x)) - net(x)).abs().max() < 0.06 * net(x).abs().max()
    prepared = qat.prepare(net, x, 8, 8)
    qat.train(prepared, x, torch.zeros(8, 6, 6, dtype=torch.long), 1, 1e-3)
    assert torch.isfinite(prepared(x)).all()


def test_a_norm_that_cannot_be_folded_everywhere_becomes_a_layer_of_its_own():
    class Both(OneNormTwice):
        def forward(self, x):
            return self.bn(F.relu(self.bn(self.c1(x))))

    net, x = seasoned(Both(), (2, 6, 6)), torch.randn(8, 2, 6, 6)
    folded = ptq.fold_batch_norm(net)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)
    network = integer.convert(ptq.quantize(net, x), (2, 6, 6))
    assert (network.decode(network(x)) - net(x)).abs().max() < 0.06 * net(x).abs().max()
    prepared = qat.prepare(net, x, 8, 8, learned=False, ranges="minmax")
    assert (prepared(x) - net(x)).abs().max() < 0.06 * net(x).abs().max()


class Tied(nn.Module):
    """An embedding whose table is the last layer's weight, as in a language model."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.hidden(self.embedding(tokens)))


def test_an_embedding_keeps_its_floats():
    net, tokens = Tied(), torch.arange(10)
    q = ptq.quantize_weights(net, bits(2))
    assert torch.equal(q.model.embedding.weight, net.embedding.weight)
    expected = net.hidden(net.embedding(tokens))
    expected = F.linear(F.linear(net.embedding(tokens), q.tensors["hidden"].dequantize(), net.hidden.bias), q.tensors["head"].dequantize())
    torch.testing.assert_close(q.model(tokens), expected)
    assert q.nbytes == q.tensors["head"].nbytes + q.tensors["hidden"].nbytes + 4 * (6 + 60)
    with pytest.raises(ValueError, match="head shares its weight with embedding, which is not pruned"):
        prune.magnitude(net, 0.5)
    with pytest.raises(ValueError, match="head shares its weight with embedding, which is not pruned"):
        prune.apply(net, {"head": torch.zeros(10, 6, dtype=torch.bool)})


def test_layers_that_share_a_weight_and_not_its_quantizer():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[2].weight = net[0].weight
    q = ptq.quantize_weights(net, {"0": bits(8), "1": bits(2), "2": bits(2)})
    assert torch.equal(q.model[0].weight, q.tensors["0"].dequantize()) and q.tensors["0"].bits == 8
    assert q.tensors["1"] is q.tensors["2"] and q.model[1].weight is q.model[2].weight
    assert q.nbytes == q.tensors["0"].nbytes + q.tensors["1"].nbytes + 3 * 16
    skipped = ptq.quantize_weights(net, bits(2), skip=("1",))
    assert torch.equal(skipped.model[1].weight, net[1].weight) and skipped.nbytes == skipped.tensors["0"].nbytes + 64 + 3 * 16


def test_learned_scales_of_a_shared_weight_are_each_layer_s_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    prepared = qat.prepare(net, torch.randn(32, 4), 3, 8, axis=None)
    with torch.no_grad():
        prepared.get_submodule("2").quantizer.scale.mul_(1.7)
    x = torch.randn(16, 4)
    torch.testing.assert_close(qat.convert(prepared).model(x), prepared(x))


def test_equalization_leaves_a_shared_bias_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    net[2].bias = net[0].bias
    traced, x = trace(net), torch.randn(8, 3)
    with torch.no_grad():
        traced.get_submodule("2").weight.mul_(torch.tensor([[100.0], [1.0], [0.01]]))
        expected = traced(x)
        assert equalize.cross_layer_equalize(traced).pairs == [("4", "6")]
    torch.testing.assert_close(traced(x), expected)


def test_dead_filters_of_a_shared_weight_die_apart():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    net[2].weight = net[0].weight
    net[0].weight.data.fill_(1.0), net[0].bias.data.fill_(-9.0), net[2].bias.data.fill_(0.5)
    x = torch.rand(8, 1, 3, 3)
    cleaned = dead.zero(net, {"0": dead.find(net, x)["0"]})
    assert cleaned[0].weight.item() == 0 and cleaned[2].weight.item() == 1 and torch.equal(cleaned(x), net(x))
    folded = seasoned(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False), nn.ReLU(), nn.Conv2d(2, 1, 1)), (2, 3, 3))
    silent = dead.Dead(torch.tensor([False, False]), torch.tensor([True, False]))
    cleaned = dead.zero(folded, {"0": silent})
    assert (cleaned[:2](torch.randn(2, 2, 3, 3))[:, 0] == 0).all()
    with pytest.raises(ValueError, match="bn stands behind c1 and another convolution"):
        dead.zero(seasoned(OneNormTwice(), (2, 6, 6)), {"c1": dead.Dead(torch.zeros(4, dtype=torch.bool), torch.tensor([True] * 4))})
    with pytest.raises(ValueError, match="NaN or infinity"):
        dead.find(net, x * torch.nan)


# What is computed in place


class InPlace(nn.Module):
    """y = d's input; `how` changes y in place; then an early and a late reader of y."""

    def __init__(self, how, module=None):
        super().__init__()
        self.c, self.d, self.e, self.act, self.how = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), module, how

    def forward(self, x):
        y = self.c(x)
        early = self.e(y)
        return self.how(self, y, x, early)


def with_use(call):
    """The result of the in-place call is used, with a later reader of its operand."""
    def how(net, y, x, early):
        z = call(net, y, x)
        return net.d(y) + z + early
    return how


def without_use(call):
    def how(net, y, x, early):
        call(net, y, x)
        return net.d(y) + early
    return how


def add_to(net, y, x):
    held = y
    held += x
    return held


def twice(net, y, x):
    held = y
    y += x
    return F.relu_(held)


IN_PLACE = {
    "F.relu": lambda net, y, x: F.relu(y, inplace=True), "positional": lambda net, y, x: F.relu(y, True),
    "named": lambda net, y, x: F.relu(input=y, inplace=True), "relu6": lambda net, y, x: F.relu6(y, inplace=True),
    "module": lambda net, y, x: net.act(y), "relu_": lambda net, y, x: y.relu_(), "torch.relu_": lambda net, y, x: torch.relu_(y),
    "iadd": add_to, "add_": lambda net, y, x: y.add_(x), "iadd, then relu_": twice,
}


@pytest.mark.parametrize("use", [with_use, without_use])
@pytest.mark.parametrize("name", IN_PLACE)
def test_every_later_reader_reads_what_was_computed_in_place(name, use):
    torch.manual_seed(1)
    net = InPlace(use(IN_PLACE[name]), nn.ReLU(inplace=True)).eval()
    x = torch.randn(16, 2, 5, 5)
    with torch.no_grad():
        expected = net(x.clone())
        torch.testing.assert_close(trace(net)(x.clone()), expected)
        if name == "relu6":
            assert expected.isfinite().all()
        quantized = ptq.quantize(net, x.clone())
        torch.testing.assert_close(quantized.model(x.clone()), expected, rtol=0, atol=0.03 * expected.abs().max().item())
        if name != "relu6":  # a ReLU6 that does not directly follow its layer is refused
            network = integer.convert(quantized, (2, 5, 5))
            torch.testing.assert_close(network.decode(network(x)), expected, rtol=0, atol=0.03 * expected.abs().max().item())


def test_a_flattened_view_that_may_change_too_is_refused():
    class View(nn.Module):
        def forward(self, x):
            y = x + x
            flat = y.flatten(1)
            y.relu_()
            return flat + flat

    class Late(View):
        def forward(self, x):
            y = x + x
            y.relu_()
            return y.flatten(1)

    with pytest.raises(ValueError, match="relu_ changes add in place, and flatten, which shares its memory, is read later"):
        trace(View())
    x = torch.randn(3, 2, 2)
    assert torch.equal(trace(Late())(x), Late()(x))


def test_other_operations_in_place_are_refused_by_name():
    class Rest(nn.Module):
        def forward(self, x):
            x %= 2
            return x

    with pytest.raises(ValueError, match="imod, a call of imod, cannot be quantized"):
        trace(Rest())


def test_numbers_multiplied_in_place_are_read_by_all_later_readers():
    class Times(nn.Module):
        def forward(self, x):
            y = x + 1
            held = y
            y *= -2
            return held + y

    x = torch.randn(3, 2)
    assert torch.equal(trace(Times())(x), Times()(x))


def test_dropout_that_never_stops_is_refused():
    class Drops(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.options = options

        def forward(self, x):
            return F.relu(F.dropout(x, 0.5, **self.options))

    with pytest.raises(ValueError, match="dropout, a call of dropout, drops values in evaluation too"):
        trace(Drops())
    assert [node.op for node in trace(Drops(training=False)).graph.nodes] == ["placeholder", "call_module", "output"]


# Weights that are recomputed


class Halved(nn.Module):
    def forward(self, w):
        return w / 2


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


RECOMPUTED = {
    "prune": lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5),
    "prune twice": lambda layer: torch_prune.l1_unstructured(torch_prune.random_unstructured(layer, "weight", 0.3), "weight", 0.3),
    "weight_norm": lambda layer: torch.nn.utils.weight_norm(layer), "spectral_norm": lambda layer: torch.nn.utils.spectral_norm(layer),
    "new weight_norm": lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
    "new spectral_norm": lambda layer: torch.nn.utils.parametrizations.spectral_norm(layer), "parametrized": parametrized,
}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_a_recomputed_weight_is_quantized_as_what_it_comes_to(name):
    torch.manual_seed(0)
    make = RECOMPUTED[name]
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), make(nn.Conv2d(4, 4, 3)), nn.Flatten(), make(nn.Linear(16, 3)))
    x = torch.randn(8, 1, 6, 6)
    net(x)                                                                                  # leaves computed tensors in the modules
    net.eval()
    with torch.no_grad():
        expected, effective = net(x), net[4].weight.detach().clone()
    q = ptq.quantize_weights(net, bits(2))
    assert torch.equal(q.model[4].weight, linear.quantize(effective, 2, "symmetric").dequantize())
    assert isinstance(q.model[4].weight, nn.Parameter) and not torch.equal(q.model(x), expected)
    full = ptq.quantize(net, x)
    network = integer.convert(full, (1, 6, 6))
    assert (network.decode(network(x)) - expected).abs().max() < 0.05 * expected.abs().max()
    assert torch.equal(net(x), expected) and net(x).requires_grad                           # the original is as it was
    for attempt in (lambda: prune.magnitude(net, 0.5), lambda: prune.n_m(net, skip=["0"]), lambda: prune.sensitivity(net, len, [0.5]),
                    lambda: prune.apply(net, {"4": torch.zeros(3, 16, dtype=torch.bool)})):
        with pytest.raises(ValueError, match="the weight of 2 is computed anew in each forward.*make it a parameter first .*'weight'"):
            attempt()


@pytest.mark.parametrize("name", RECOMPUTED)
def test_a_layer_that_shares_what_another_recomputes_from_keeps_it(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    RECOMPUTED[name](net[0])
    net, x = net.eval(), torch.randn(8, 4)
    with torch.no_grad():
        torch.testing.assert_close(trace(net)(x), net(x))
        torch.testing.assert_close(plain.plain_copy(net)(x), net(x))


def test_a_bias_is_made_plain_too_and_modes_and_sharing_stay():
    net = nn.Sequential(torch_prune.random_unstructured(nn.Linear(4, 4), "bias", 0.5), nn.Linear(4, 4), nn.Dropout())
    net[1].weight = net[0].weight
    net[2].eval()
    copied = plain.plain_copy(net)
    assert torch.equal(copied[0].bias, net[0].bias) and copied[0].weight is copied[1].weight
    assert [m.training for m in copied.modules()] == [m.training for m in net.modules()]
    assert plain.recomputed(net[0]) == {"bias": "torch.nn.utils.prune.remove(layer, 'bias')"} and plain.recomputed(copied[0]) == {}


def test_weights_that_are_no_parameters_are_refused():
    class Own(nn.Linear):
        weight = property(lambda self: torch.ones(2, 4))

        def __init__(self):
            nn.Module.__init__(self)
            self.in_features, self.out_features, self.bias = 4, 2, None

    with pytest.raises(ValueError, match="the weight of 0, a Own, is no parameter"):
        ptq.quantize_weights(nn.Sequential(Own()), bits(8))
    with pytest.raises(ValueError, match="the weight of 0 is computed anew"):
        prune.magnitude(nn.Sequential(Own()), 0.5)
    with pytest.raises(ValueError, match="the weight of 0 has no values yet"):
        ptq.quantize_weights(nn.Sequential(nn.LazyLinear(3)), bits(8))


# Hooks


def doubled(module, args, output):
    return 2 * output


@pytest.mark.parametrize("hook", [
    lambda net: net[0].register_forward_hook(doubled), lambda net: net[1].register_forward_hook(doubled),
    lambda net: net[0].register_forward_pre_hook(lambda module, args: (2 * args[0],)), lambda net: net.register_forward_hook(doubled),
    lambda net: setattr(net[0], "forward", lambda x: x),
], ids=["layer", "activation", "before", "root", "instance"])
def test_hooks_are_refused_by_name(hook):
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(4, 1, 5, 5)
    quantized = ptq.quantize(net, x)
    prepared = qat.prepare(net, x)
    hook(net)
    for attempt in (lambda: trace(net), lambda: ptq.fold_batch_norm(net), lambda: ptq.quantize(net, x), lambda: qat.prepare(net, x),
                    lambda: dead.find(net, x)):
        with pytest.raises(ValueError, match="(0|1|the network) has a forward (hook|of its own)"):
            attempt()
    quantized.model.get_submodule("0").register_forward_hook(doubled)
    prepared.get_submodule("0").register_forward_hook(doubled)
    with pytest.raises(ValueError, match="0 has a forward hook .doubled."):
        integer.convert(quantized, (1, 5, 5))
    with pytest.raises(ValueError, match="0 has a forward hook .doubled."):
        qat.convert(prepared)


def test_a_copy_would_call_the_original_s_forward():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].forward = lambda x, given=net[0].forward: 2 * given(x)
    with pytest.raises(ValueError, match="0 has a forward of its own"):
        ptq.quantize_weights(net, bits(2))


def test_a_hook_on_all_modules_is_refused():
    handle = nn.modules.module.register_module_forward_hook(doubled)
    try:
        with pytest.raises(ValueError, match="registered for all modules"):
            trace(nn.Linear(2, 2))
    finally:
        handle.remove()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_none_is_refused_by_name(scale):
    quantized = ptq.quantize(nn.Sequential(nn.MaxPool2d(1), nn.Flatten()), torch.rand(4, 1, 2, 2))
    quantized.model.get_submodule("input_1_codes").scale.fill_(scale)
    with pytest.raises(ValueError, match="the scale of input_1_codes is"):
        integer.convert(quantized, (1, 2, 2))


def test_a_weight_changed_after_quantization_is_refused():
    quantized = ptq.quantize(nn.Linear(3, 2), torch.randn(8, 3))
    with torch.no_grad():
        quantized.model.get_submodule("0").weight[0, 0] += 1
    with pytest.raises(ValueError, match="the weight of 0 is no longer what its codes decode to"):
        integer.convert(quantized, (3,))


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_precision_have_the_codes_of_their_float32_copies(dtype):
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(64, 1, 8, 8)
    network = integer.convert(ptq.quantize(net, x), (1, 8, 8))
    images = torch.randn(500, 1, 8, 8).to(dtype)
    assert torch.equal(network.encode(images), network.encode(images.float()))
    with pytest.raises(TypeError, match="torch.uint8, and must be floating point"):
        network.encode(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    for bad in (torch.nan, torch.inf, -torch.inf):
        images[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            network(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_any_precision_becomes_integers(dtype):
    net = seasoned(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (1, 6, 6)).to(dtype)
    x = torch.randn(32, 1, 6, 6).to(dtype)
    with torch.no_grad():
        expected = net(x).double()
        slack = 2.0 * torch.finfo(dtype).eps                                                # bfloat16: 2**-7 of the largest logit
        torch.testing.assert_close(ptq.fold_batch_norm(net)(x).double(), expected, rtol=0, atol=4 * slack * expected.abs().max().item())
        network = integer.convert(ptq.quantize(net, x), (1, 6, 6))
        assert (network.decode(network(x)) - expected).abs().max() < (0.05 + 4 * slack) * expected.abs().max()


def test_calibration_that_does_not_fit_is_refused_in_one_sentence():
    net = nn.Sequential(nn.Conv2d(1, 2, 3)).double()
    with pytest.raises(ValueError, match="a network of torch.float64, cannot take the calibration images, torch.float32") as caught:
        ptq.quantize(net, torch.randn(4, 1, 5, 5))
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="calibration holds a tuple"):
        ptq.quantize(net, [(torch.randn(4, 1, 5, 5), torch.zeros(4))])


# Words


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf"), 2.0**31])
def test_a_multiplier_that_is_none(value):
    with pytest.raises(ValueError, match="a multiplier is"):
        integer.multiplier([value])


def test_layers_called_by_name_are_layers():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return torch.add(input=self.c(input=x), other=F.relu(input=x))

    net, x = Named(), torch.randn(2, 1, 3, 3)
    traced = trace(net)
    assert torch.equal(traced(x), net(x)) and len(calls(traced, "conv", "relu", "add")) == 3


# Where the channels are


@pytest.mark.parametrize("net, shape, paired", [
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Linear(4, 2)), (1, 4, 4), False),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 2)), (1, 4, 4), False),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)), (3, 4), False),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv2d(4, 2, 1)), (4, 4, 4), False),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.MaxPool2d(1), nn.Linear(4, 2)), (4, 4, 4), False),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (3, 4), True),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(5, 2)), (4,), True),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), (1, 4, 4), True),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)), (1, 4, 4), True),
])
def test_equalization_pairs_layers_whose_channels_are_at_one_place(net, shape, paired):
    torch.manual_seed(0)
    net, x = net(), torch.randn(16, *shape)
    traced = trace(net)
    with torch.no_grad():
        traced.get_submodule("0").weight.mul_(torch.logspace(-2, 2, len(net[0].weight)).view(-1, *[1] * (net[0].weight.dim() - 1)))
        expected = traced(x)
        assert bool(equalize.cross_layer_equalize(traced).pairs) == paired
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_s_filters_are_along_its_last_axis():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    net[0].weight.data = torch.eye(2)
    x = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    assert not dead.find(net, x)["0"].any.any() and torch.equal(dead.zero(net, dead.find(net, x))(x), x)
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)), torch.rand(3, 6, 4)
    net[0].bias.data[2] = -100.0
    found = dead.find(net, x)
    assert found["0"].silent.tolist() == [False, False, True, False, False] and torch.equal(dead.zero(net, found)(x), net(x))


# What prunes more than it says


def test_memory_that_is_shared_is_shared():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = nn.Parameter(net[0].weight.data)
    masks = prune.magnitude(net, {"0": 0.5})
    assert torch.equal(masks["0"], masks["1"])
    with pytest.raises(ValueError, match="0 shares its weight with 1, which is skipped"):
        prune.magnitude(net, 0.5, skip=["1"])
    net[1].weight = nn.Parameter(net[0].weight.data.T)
    with pytest.raises(ValueError, match="0 and 1 share their weight's memory in two shapes"):
        prune.magnitude(net, 0.5)


def test_float64_weights_are_ranked_as_they_are():
    net = nn.Sequential(nn.Linear(2, 1)).double()
    for pair in ([1e300, 1e200], [1 + 1e-12, 1.0], [1e-310, 1e-320]):
        net[0].weight.data = torch.tensor([pair], dtype=torch.float64)
        assert prune.magnitude(net, 0.5)["0"].tolist() == [[True, False]]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_earlier_masks_remove_stays_removed_or_is_refused(scope):
    net = nn.Sequential(nn.Linear(4, 4))
    earlier = prune.magnitude(net, 0.5, scope)
    assert torch.equal(prune.magnitude(net, 0.5, scope, within=earlier)["0"], earlier["0"])
    with pytest.raises(ValueError, match="within removes 8 weights of 0, and the sparsity is to remove 4"):
        prune.magnitude(net, 0.25, scope, within=earlier)


def test_sensitivity_of_a_forward_of_its_own_and_of_a_normed_bias():
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.rand(2, 4)
    torch.nn.utils.weight_norm(net[0], "bias", dim=None)
    net(x)
    assert prune.sensitivity(net, lambda model: int((model[0].weight != 0).sum()), [0, 0.5]) == {"0": [16, 8]}
    net[0].forward = lambda x, given=net[0].forward: 2 * given(x)
    with pytest.raises(ValueError, match="0 has a forward of its own"):
        prune.sensitivity(net, len, [0.5])


# Doors


@pytest.mark.parametrize("quantizer, error, said", [
    (lambda w: linear.quantize(w[:1], 8, "symmetric"), ValueError, "returns codes of shape .1, 4., and the weight has .4, 4."),
    (lambda w: linear.quantize(w, 2, "symmetric").dequantize(), TypeError, "the quantizer of 0 returns a Tensor, and must return a QT"),
    (lambda w: linear.quantize(w * torch.nan), ValueError, "the weight of 0 cannot be quantized: x holds NaN"),
])
def test_a_quantizer_s_answer_is_looked_at(quantizer, error, said):
    with pytest.raises(error, match=said):
        ptq.quantize_weights(nn.Sequential(nn.Linear(4, 4)), quantizer)


@pytest.mark.parametrize("calibration, error, said", [
    ([None], TypeError, "holds a NoneType"), ([0], TypeError, "holds a int"), (5, TypeError, "calibration is a int"),
    (torch.tensor(1.0), ValueError, "of shape .., and must hold images"), (torch.zeros(2, 4, dtype=torch.int64), ValueError, "torch.int64"),
    (torch.zeros(2, 4).to_sparse(), TypeError, "sparse"), (torch.rand(8), ValueError, "cannot take the calibration images"),
    (torch.zeros(0, 4), ValueError, "no calibration images"), (torch.full((2, 4), torch.nan), ValueError, "the values at input_1 hold NaN"),
    (torch.zeros(2, 4, dtype=torch.complex64), ValueError, "torch.complex64"),
])
def test_calibration_is_refused_in_one_sentence(calibration, error, said):
    for attempt in (ptq.quantize, qat.prepare):
        with pytest.raises(error, match=said) as caught:
            attempt(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), calibration)
        assert "\n" not in str(caught.value) and "While executing" not in str(caught.value)


def test_calibration_may_be_an_array_and_some_batches_empty():
    net, x = nn.Sequential(nn.Linear(4, 2)), torch.rand(6, 4)
    expected = ptq.quantize(net, x).model.get_submodule("_0_codes").scale
    for calibration in (x.numpy(), [x.numpy()[:3], x.numpy()[3:]], [x, x[:0]], x.numpy()[::-1]):
        assert torch.equal(ptq.quantize(net, calibration).model.get_submodule("_0_codes").scale, expected)


def test_shapes_that_are_none():
    quantized = ptq.quantize(nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)), torch.rand(4, 3, 2, 2))
    for shape in (5, None, (1, 4, 4.0), "abc", (), (0, 4), (2,)):
        with pytest.raises(ValueError, match="image_shape is"):
            integer.convert(quantized, shape)
    network = integer.convert(quantized, (3, 2, 2))
    for codes in (torch.zeros(2, 5, dtype=torch.int8), torch.zeros(2, 3, 2, 3, dtype=torch.int8)):
        with pytest.raises(ValueError, match="cannot take"):
            network.run(codes)
    assert torch.equal(network(torch.ones(2, 3, 2, 2).numpy()), network(torch.ones(2, 3, 2, 2)))


def test_a_norm_with_impossible_statistics_is_refused_by_name():
    for name, value in (("running_var", -1.0), ("running_var", float("nan")), ("running_mean", float("inf"))):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
        getattr(net[1], name)[0] = value
        with pytest.raises(ValueError, match="the running statistics of 1 hold NaN"):
            ptq.fold_batch_norm(net)


def test_a_maximum_that_returns_places_is_refused():
    with pytest.raises(ValueError, match="0 returns the places of the maxima too"):
        trace(nn.Sequential(nn.MaxPool2d(2, return_indices=True)))


@pytest.mark.parametrize("images, error, said", [
    (torch.rand(2, 3, 4, 4), ValueError, "cannot take the images"), (torch.rand(2, 1, 4, 4).double(), ValueError, "cannot take the images"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.int64), TypeError, "floating-point"), ([1.0], TypeError, "floating-point"),
])
def test_images_that_show_nothing_of_dead_filters(images, error, said):
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    with pytest.raises(error, match=said) as caught:
        dead.find(net, images)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="batch_size is 0"):
        dead.find(net, torch.rand(2, 1, 4, 4), batch_size=0)
