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
