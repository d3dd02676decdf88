"""Networks that nobody here wrote: torchvision's, and those of MLPerf Tiny; and the record of them all."""

import pytest
import torch

from qlab.deploy import c, tflite
from qlab.lab import runs
from qlab.lab.demos import deployment as demo
from qlab.lab.experiments import other_networks
from qlab.nets import graph, integer, mlperf_tiny, ptq


@pytest.fixture(scope="module")
def record():
    return runs.load("other_networks")


@pytest.mark.parametrize("name", other_networks.TORCHVISION)
def test_torchvision_is_read_as_it_computes(name):
    make, shape = other_networks.makers()[name]
    net, x = other_networks.seasoned(make, shape), other_networks.images(shape, 2)
    with torch.no_grad():
        torch.testing.assert_close(graph.trace(net)(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, numbers", [("DS-CNN", 24_908), ("MobileNetV1 0.25", 221_794), ("ResNet-8", 78_666),
                                           ("autoencoder", 269_992)])
def test_mlperf_tiny_has_as_many_numbers_as_the_reference(name, numbers):
    net = mlperf_tiny.NETWORKS[name][0]()
    held = [*net.parameters(), *(b for key, b in net.named_buffers() if not key.endswith("num_batches_tracked"))]
    assert sum(t.numel() for t in held) == numbers


@pytest.mark.parametrize("name", ["DS-CNN", "ResNet-8", "autoencoder"])
def test_mlperf_tiny_in_integers_in_a_file_and_in_c(name, record, tmp_path):
    make, shape = other_networks.makers()[name]
    net, told = other_networks.seasoned(make, shape), record["networks"][name]
    calibration, test = other_networks.images(shape, 40).split((32, 8))
    network = integer.convert(ptq.quantize(net, calibration), shape)
    codes = network.encode(test)
    ours = network.run(codes)
    assert other_networks.decibels(network.decode(ours), net(test)) == pytest.approx(told["integer"], abs=0.3)
    tflite.export(network, tmp_path / "net.tflite", shape)
    c.export(network, tmp_path / "net.c", shape)
    assert torch.equal(tflite.run(tmp_path / "net.tflite", codes, "micro"), ours)
    assert torch.equal(c.run(tmp_path / "net.c", codes), ours)


def test_the_record_has_all_of_them_through_every_runtime(record):
    assert list(record["networks"]) == list(other_networks.makers())
    ways = {"tflite", "C", "qat", *other_networks.KERNELS, *other_networks.FLOATS}
    for name, row in record["networks"].items():
        assert ways <= set(row), name
        assert row["integer"] > row["ptq"] - 3, name


def test_what_rounds_twice_has_the_same_codes_in_every_network(record):
    for name, row in record["networks"].items():
        for runtime in ("tflite-micro", "C"):
            assert "refused" in row[runtime] or row[runtime]["same"] == 1, (name, runtime)
    assert {name for name, runtime, _ in demo.refused(record)} <= {"vgg11_bn"}


def test_the_table_says_what_the_record_says(record):
    lines = demo.others(record).splitlines()
    assert len(lines) == 2 + len(record["networks"]) and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| resnet18 | 3 x 64 x 64 | 11,689,512 |")
