"""Figures are drawn into memory, never into a window; hypothesis does not time its examples, for shared machines are slow at times;
without a GPU Triton is its interpreter, whichever test imports it first; the longest files go first, so that no worker ends late."""

import functools
import os
import sys

import pytest
from hypothesis import settings

os.environ.pop("QLAB_LANG", None)  # tests read English, whatever their reader does
if not os.environ.get("CI"):  # there hypothesis has a profile of its own: the same examples each time, and no deadline either
    settings.register_profile("qlab", deadline=None)
    settings.load_profile("qlab")

# Those that take more than about eight seconds. pytest-xdist gives each file to one worker, and would start with those of most tests.
LONGEST = (
    "test_random_networks", "test_deploy_floats", "test_own_networks", "test_deploy_onnx", "test_deploy_c", "test_grading_build",
    "test_deploy_pytorch", "test_cluster", "test_sandbox", "test_class.py", "test_gradescope_container",
    "test_browser", "10_distillation", "06_", "03_", "02_", "04_", "15_", "16_", "17_", "test_triton", "07_", "01_", "05_", "09_", "13_",
    "14_", "11_", "08_", "test_lecture_pages", "test_site_pages",
    "test_hub.py", "test_notebook_tools", "test_demo_command", "test_speaker_notes",
    "test_demo_numbers", "12_", "test_data_zoo", "test_grade.py", "00_",
    "test_deploy_tflite", "test_qat", "test_deployment_record", "test_other_networks", "test_deploy_door",
)


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """A test that turns torch's gradients off for good fails itself, in place of those behind it."""
    yield
    if (torch := sys.modules.get("torch")) and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("this test left torch's gradients turned off: run what does so under torch.enable_grad().")


def pytest_collectstart():
    """Where tests are collected, and not in the process that only deals them out: imports are most of what that one would do."""
    prepare()


@functools.cache
def prepare() -> None:
    import matplotlib
    import torch

    matplotlib.use("agg")
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: next((place[name] for name in place if f"/{name}" in item.nodeid.partition("::")[0]), len(place)))
