"""What the tests of ONNX files share."""

import functools

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_table_of_operators():
    """torch's exporter reads its table of 497 ONNX operators from their sources at every export, half the time of one; here once."""
    from torch.onnx._internal.exporter import _registration

    kept = _registration.ONNXRegistry.from_torchlib
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(functools.cache(kept)))
        yield
