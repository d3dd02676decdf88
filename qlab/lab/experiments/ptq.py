"""The runs behind notebook 06: post-training quantization of the zoo's networks, evaluated on the 10,000 test images; nothing is trained.

    python -m qlab.lab.experiments.ptq              all parts; about 12 minutes of one core
    python -m qlab.lab.experiments.ptq calibration  one part again; the others' results stay in the record

    int8         each network in float32 and with INT8 weights and activations, one weight scale per channel or per tensor
    repairs      the depthwise net at 8, 5, 4 and 3 bits of weight: equalization, bias correction, both
    equalized    what equalization does to activations: the depthwise net, weights of 8 bits per channel, activations of 4
    calibration  how an activation's range is chosen, by each of five rules, at 8 and at 4 bits; and by entropy for all but the input
    weights      linear, logarithmic and k-means weights of 4 bits, activations of 8
    integer      the integer-only networks, and how often they say what the fake-quantized ones say; resnet on the first 2,000 images

Calibration looks at 512 training images. Weights have one scale (or codebook) per output channel where nothing else is said.
"""

import argparse
from collections.abc import Iterator

import torch

from qlab.lab import data, runs, zoo
from qlab.lab.measure import Accuracy, accuracy, size_bytes
from qlab.nets import integer, ptq
from qlab.quant import kmeans, linear, log

NETS, CALIBRATION_IMAGES = ("cnn", "depthwise", "resnet"), 512
Rows = Iterator[tuple[str, dict]]                                                           # each is written as soon as it is there
REPAIRS = {
    "channel": (0, {}), "channel, equalized": (0, {"equalize": True}), "channel, corrected": (0, {"correct_bias": True}),
    "tensor": (None, {}), "tensor, equalized": (None, {"equalize": True}),
    "tensor, corrected": (None, {"correct_bias": True}), "tensor, both": (None, {"equalize": True, "correct_bias": True}),
}
CALIBRATED = {f"{net}, {bits} bits": (net, bits) for net, bits in (("cnn", 8), ("depthwise", 4), ("depthwise", 8))}
INTEGER_IMAGES = {"cnn": 10_000, "depthwise": 10_000, "resnet": 2_000}                      # the plain integer convolution takes its time
WEIGHTS = {
    "linear": lambda w: linear.quantize(w, 4, "symmetric", axis=0), "log": lambda w: log.quantize(w, 4, axis=0),
    "kmeans": lambda w: kmeans.quantize(w, 4, axis=0),
}


def symmetric(bits: int, axis: int | None):
    """A weight quantizer: integer codes around 0, one scale for all (axis None) or for each output channel (axis 0)."""
    return lambda weight: linear.quantize(weight, bits, "symmetric", axis=axis)


def quantized(net: str, **options) -> ptq.Quantized:
    """The zoo's network, quantized with this experiment's calibration images; options: those of ptq.quantize."""
    return ptq.quantize(zoo.load(net), data.calibration(CALIBRATION_IMAGES).images, **options)


def row(net: str, input_ranges: str | None = None, **options) -> dict:
    """True bytes, and the outcome on the test images. input_ranges: another rule for the network's input than for what is inside."""
    q = quantized(net, **options)
    if input_ranges:
        q.model.input_1_codes = quantized(net, ranges=input_ranges).model.input_1_codes
    return {"nbytes": q.nbytes, **measured(q.model)}


def measured(model) -> dict:
    return runs.outcome(accuracy(model, data.load("test"), batch_size=50))                  # a batch that stays in the cache is faster


def int8() -> Rows:
    """By network: float32, INT8 per channel, INT8 per tensor."""
    for net in NETS:
        model = ptq.fold_batch_norm(zoo.load(net))
        yield net, {"float": {"nbytes": size_bytes(model), **measured(model)},
                    "channel": row(net, weights=symmetric(8, 0)), "tensor": row(net, weights=symmetric(8, None))}


def repairs() -> Rows:
    """The depthwise net, by bits of weight: each axis without and with repairs; activations have 8 bits."""
    for bits in (8, 5, 4, 3):
        yield str(bits), {name: row("depthwise", weights=symmetric(bits, axis), **options) for name, (axis, options) in REPAIRS.items()}


def equalized() -> Rows:
    """By rule for the activations' ranges: with the channels as they are, and equalized. The weights have a scale per channel."""
    for ranges in ("minmax", "mse"):
        yield ranges, {name: row("depthwise", weights=symmetric(8, 0), activation_bits=4, ranges=ranges, equalize=name == "equalized")
                       for name in ("as they are", "equalized")}


def calibration() -> Rows:
    """By network and bits of activation: each rule for the range; INT8 weights per channel."""
    for name, (net, bits) in CALIBRATED.items():
        rows = {ranges: row(net, activation_bits=bits, ranges=ranges) for ranges in ptq.RANGES}
        yield name, rows | {"entropy, input minmax": row(net, "minmax", activation_bits=bits, ranges="entropy")}


def weights() -> Rows:
    """By network: each kind of 4-bit weight, per channel; activations have 8 bits."""
    for net in ("cnn", "depthwise"):
        yield net, {name: row(net, weights=quantizer) for name, quantizer in WEIGHTS.items()}


def integer_only() -> Rows:
    """By network: bytes, accuracy, and on which images the integer network says what the fake-quantized one says; INT8 per channel."""
    for net, n in INTEGER_IMAGES.items():
        images, labels = (part[:n] for part in data.load("test"))
        q = quantized(net)
        network = integer.convert(q)
        with torch.no_grad():
            codes = torch.cat([network(batch) for batch in images.split(100)])
            fake = torch.cat([q.model(batch) for batch in images.split(100)])
        steps = (network.decode(codes) - fake).abs() / network.grid_out.scale                # how many codes apart
        yield net, {
            "nbytes": network.nbytes, **runs.outcome(Accuracy(codes.argmax(1) == labels)),
            "same": runs.outcome(Accuracy(codes.argmax(1) == fake.argmax(1))),
            "equal_logits": round((steps < 0.5).double().mean().item(), 4), "most_codes_apart": round(steps.max().item()),
        }


PARTS = {"int8": int8, "repairs": repairs, "equalized": equalized, "calibration": calibration, "weights": weights, "integer": integer_only}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="only these, beside what the record holds")
    parts = parser.parse_args(arguments).part or list(PARTS)
    for part in parts:
        done = {}
        for name, rows in PARTS[part]():
            done[name] = rows
            _write(part, done)
            print(part, name, flush=True)


def _write(part: str, rows: dict) -> None:
    try:
        found = runs.raw("ptq") | {part: rows}                                              # read again: another part may run by now
    except FileNotFoundError:
        found = {part: rows}
    runs.write("ptq", "python -m qlab.lab.experiments.ptq", calibration_images=CALIBRATION_IMAGES,
               checkpoints={net: zoo.record(net)["sha256"] for net in NETS}, **{name: found[name] for name in PARTS if name in found})


if __name__ == "__main__":
    main()
