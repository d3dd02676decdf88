"""The door that ONNX Runtime's and PyTorch's files share: which images come in, and as what."""

import numpy as np
import pytest
import torch
from torch import nn

from qlab.deploy import checks, onnx, pytorch


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    images = torch.zeros(3, 2, 4)
    images[1, 0, 2] = bad
    for x in (images, images.half(), images.bfloat16(), images.double(), images.numpy(), images.tolist()):
        with pytest.raises(ValueError, match="^images hold NaN or infinity, and must be finite.$"):
            checks.as_images(x, (2, 4))
    with pytest.raises(ValueError, match="the calibration images hold NaN or infinity, and must be finite"):
        checks.calibration_batches(images, (2, 4))


def test_what_float32_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        checks.as_images(torch.tensor([[1e300]], dtype=torch.float64), (1,))


@pytest.mark.filterwarnings("error")
def test_arrays_of_any_layout():
    images = np.arange(24.0).reshape(4, 6)
    fixed = images.copy()
    fixed.flags.writeable = False
    for x in (fixed, np.asfortranarray(images), images.astype(">f4"), images.astype(np.float16), images[:, ::-1][:, ::-1], images.tolist()):
        assert torch.equal(checks.as_images(x, (6,)), torch.arange(24.0).view(4, 6))
    assert torch.equal(checks.as_images(images[::-1, ::-2], (3,)), torch.arange(24.0).view(4, 6).flip(0, 1)[:, ::2])
    for x in (["cat"], object(), np.array(["cat"])):
        with pytest.raises(TypeError, match="x is a .* and no tensor"):
            checks.as_images(x, (6,))


@pytest.mark.parametrize("module, library", [(onnx, "onnxruntime"), (pytorch, "torchao")])
def test_both_runtimes_look_at_their_images(module, library, tmp_path):
    for name in (library, "onnxscript") if module is onnx else (library,):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install qlab[deploy]")
    module.export(nn.Linear(3, 2), tmp_path / "net", kind="float", image_shape=(3,))
    images = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    want = module.run(tmp_path / "net", torch.from_numpy(images).flip(0), threads=1)
    assert torch.equal(module.run(tmp_path / "net", images[::-1], threads=1), want)
    images[2, 1] = np.inf
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        module.run(tmp_path / "net", images)


@pytest.mark.parametrize("make, shape, match", [
    (lambda: nn.Linear(3, 2).half(), (3,), "weight is torch.float16 on cpu, and must be float32 on the CPU: model.float...cpu.. is"),
    (lambda: nn.Linear(3, 2).double(), (3,), "weight is torch.float64 on cpu"),
    (lambda: nn.Linear(3, 2, device="meta"), (3,), "weight is torch.float32 on meta"),
    (lambda: nn.Linear(3, 2), (4,), "image_shape is .4,., which the network cannot take"),
    (lambda: nn.Linear(3, 2), (-3,), "image_shape is .-3,., and must be whole numbers"),
    (lambda: nn.Linear(3, 2), (3.0,), "image_shape is .3.0,., and must be whole numbers"),
    (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(5)), (1, 2, 2), "which the network cannot take .Dimension out of range"),
    (lambda: nn.Conv2d(1, 2, 1), (1, 3, 3), "gives .2, 2, 3, 3. for two images, and must give .2, classes."),
])
def test_a_network_that_does_not_fit_is_told_why(make, shape, match):
    with pytest.raises(ValueError, match=match):
        checks.float_network(make(), shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_of_nan_is_refused(bad):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    net[1].running_var[1] = bad
    with pytest.raises(ValueError, match="1.running_var holds NaN or infinity"):
        checks.float_network(net, (1, 2, 2))
