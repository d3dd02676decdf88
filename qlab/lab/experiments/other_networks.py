"""Other people's networks through every door: what notebook 14's table of them shows.

    python -m qlab.lab.experiments.other_networks               all, and writes the record; some 40 minutes on two cores
    python -m qlab.lab.experiments.other_networks ResNet-8      only these, and prints

The nine networks of torchvision and the four of MLPerf Tiny (qlab.nets.mlperf_tiny), untrained: their weights are random, their batch norms
have the statistics of images. So this is about what can be read, quantized, written and run, never about accuracy. The images are
Fashion-MNIST's, resized and repeated for as many channels as a network takes. Each runtime runs each file on TEST images:

    an integer runtime      share of the codes that are those of qlab's integer-only network, and the largest difference, in codes
    the others              signal to noise of the logits against the float network's, in dB
    refused                 what the runtime's export says, in one sentence

torchvision comes with the extra test.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from qlab.deploy import c, onnx, pytorch, tflite
from qlab.deploy.pytorch import torch_threads
from qlab.lab import data, measure, runs
from qlab.nets import integer, mlperf_tiny, ptq, qat

CALIBRATION, TEST, QAT_IMAGES, SEED = 32, 8, 16, 0
KERNELS = {"LiteRT, XNNPACK": "xnnpack", "LiteRT, built-in": "builtin", "LiteRT, reference": "reference", "tflite-micro": "micro"}
FLOATS = {"ONNX Runtime, float32": (onnx, "float"), "ONNX Runtime, static": (onnx, "static"), "PyTorch, float32": (pytorch, "float"),
          "PyTorch, dynamic": (pytorch, "dynamic"), "PyTorch, static": (pytorch, "static")}
TORCHVISION = {  # the image's size: small, so that all of them run within minutes
    "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "shufflenet_v2_x1_0": 64, "densenet121": 32,
    "efficientnet_b0": 64, "vgg11_bn": 32, "mnasnet1_0": 64,
}


def torchvision_models():
    """torchvision.models. Its compiled operators may be of another torch: no model of the table calls one, so they need not be there."""
    registered = torch.library.register_fake

    def without(name, *args, **options):
        ours = isinstance(name, str) and name.startswith("torchvision::")
        return (lambda function: function) if ours else registered(name, *args, **options)

    torch.library.register_fake = without
    try:
        from torchvision import models
    except ImportError:
        raise ImportError("torchvision is not installed: it comes with the extra test.") from None
    finally:
        torch.library.register_fake = registered
    return models


def makers() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """How each network is made, and the shape of its images."""
    def model(name: str) -> Callable[[], nn.Module]:
        return lambda: getattr(torchvision_models(), name)(weights=None)

    return {name: (model(name), (3, size, size)) for name, size in TORCHVISION.items()} | mlperf_tiny.NETWORKS


def images(shape: tuple[int, ...], n: int) -> torch.Tensor:
    """Training images of Fashion-MNIST in another shape, float32 (n, *shape)."""
    found = data.calibration(n).images
    if len(shape) == 1:
        return F.interpolate(found.flatten(2), shape[0])[:, 0]
    return F.interpolate(found, shape[1:], mode="bilinear").repeat(1, shape[0], 1, 1)


def seasoned(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """The network with random weights, its batch norms with the statistics of images, in evaluation mode."""
    torch.manual_seed(SEED)
    net = make()
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None                                                                # the mean of all batches: there is one
    with torch.no_grad():
        net.train()(images(shape, CALIBRATION))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return net.eval().requires_grad_(False)


def one(name: str) -> dict:
    """All that the record holds of one network."""
    make, shape = makers()[name]
    net, calibration = seasoned(make, shape), images(shape, CALIBRATION)
    test = images(shape, CALIBRATION + TEST)[CALIBRATION:]
    floats, net_qat = net(test), seasoned(make, shape)
    result = {"image": list(shape), "parameters": sum(p.numel() for p in net.parameters())}
    quantized = ptq.quantize(net, calibration)
    network = integer.convert(quantized, shape)
    codes = network.encode(test)
    ours = network.run(codes)
    result |= {"steps": sorted({step.kind for step in network.steps}), "codes": network.nbytes,
               "ptq": decibels(quantized.model(test), floats), "integer": decibels(network.decode(ours), floats)}
    result["qat"] = _said(lambda: _trained(net_qat, calibration[:QAT_IMAGES], shape, test))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        result["tflite"] = _said(lambda: _written(tflite.export(network, path / "net.tflite", shape), path / "net.tflite"))
        for runtime, kernels in KERNELS.items():
            result[runtime] = _said(lambda k=kernels: _compared(tflite.run(path / "net.tflite", codes, k), ours))
        result["C"] = _said(lambda: _compared(_c(network, path / "net.c", shape, codes), ours) | {"bytes": (path / "net.c").stat().st_size})
        for runtime, (module, kind) in FLOATS.items():
            file = path / f"net-{kind}.{'onnx' if module is onnx else 'pt2'}"
            result[runtime] = _said(lambda m=module, f=file, k=kind: _in_floats(m, net, f, calibration, k, shape, test, floats))
    return result


def _said(call: Callable[[], dict]) -> dict:
    """What came out, or what was said instead: one sentence, for whatever is refused is refused by a ValueError."""
    try:
        return call()
    except (ValueError, FileNotFoundError) as error:
        return {"refused": str(error)}


def _written(about, path: Path) -> dict:
    return {"bytes": path.stat().st_size, "operators": len(about.layers)}


def _c(network, path: Path, shape: tuple[int, ...], codes: torch.Tensor) -> torch.Tensor:
    c.export(network, path, shape)
    return c.run(path, codes)


def _in_floats(module, net, path: Path, calibration, kind: str, shape, test, floats) -> dict:
    module.export(net, path, calibration, kind, image_shape=shape)
    return {"dB": decibels(module.run(path, test), floats), "bytes": path.stat().st_size}


def _trained(net: nn.Module, calibration: torch.Tensor, shape: tuple[int, ...], test: torch.Tensor) -> dict:
    """One epoch of quantization-aware training on a few images; then the converted network against the trained one."""
    prepared = qat.prepare(net, calibration, 8, 8, learned=False, ranges="minmax")
    classes = prepared(calibration).shape[1]
    qat.train(prepared, calibration, torch.arange(len(calibration)) % classes, epochs=1, max_lr=1e-4, batch_size=8)
    network = integer.convert(qat.convert(prepared), shape)
    with torch.no_grad():
        return {"dB": decibels(network.decode(network(test)), prepared(test))}


def _compared(found: torch.Tensor, ours: torch.Tensor) -> dict:
    difference = (found.int() - ours.int()).abs()
    return {"same": (difference == 0).double().mean().item(), "largest": int(difference.max())}


def decibels(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """measure.sqnr_db as a record holds it, two digits behind the point; None where there is no difference.

    >>> decibels(torch.tensor([1.0, 1.1]), torch.tensor([1.0, 1.0]))
    23.01
    """
    found_db = measure.sqnr_db(wanted, found)
    return None if found_db == math.inf else round(found_db, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="only these, and print them; without: all, and write the record")
    chosen = parser.parse_args().networks
    found = {}
    with torch_threads(1):
        for name in chosen or makers():
            found[name] = one(name)
            print(name, *(f"    {key}: {value}" for key, value in found[name].items()), sep="\n", flush=True)
    if not chosen:
        runs.write("other_networks", "python -m qlab.lab.experiments.other_networks", networks=found, calibration_images=CALIBRATION,
                   test_images=TEST)


if __name__ == "__main__":
    main()
