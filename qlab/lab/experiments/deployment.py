"""The runs behind notebook 14: one network in every runtime, on the 10,000 test images; nothing is trained.

    python -m qlab.lab.experiments.deployment                all parts; an hour of two slow cores
    python -m qlab.lab.experiments.deployment timing         the times again, a quarter of an hour: it waits until the machine is quiet
    python -m qlab.lab.experiments.deployment onnx pytorch   these parts again; the others' results stay in the record

    integer    qlab's integer-only network: the codes that the others are compared with
    litert     the .tflite file in LiteRT, by three sets of kernels               micro    the same file in tflite-micro
    c          the C file, compiled for this machine                              cortex   the same file on a Cortex-M4 in QEMU, 200 images
    onnx       ONNX Runtime in float32 and with its own quantizer                 pytorch  PyTorch in float32 and with its own quantizers
    operators  each operator of the .tflite file by itself, fed with the codes that reach it in qlab's network: who rounds differently
    saturation the cloud's files with 8 bits and with 7: wrong sums on a machine without VNNI. One entry for each machine, the others' stay;
               ONEDNN_MAX_CPU_ISA=AVX2 python -m ... saturation shows what PyTorch does without VNNI on a machine that has it
    memory     what a runtime adds to the memory of a Python process (Linux)
    timing     microseconds an image by threads and batch size; the runtimes take turns

Calibration looks at 512 training images; weights have a scale per output channel. A runtime whose logits are floats is compared with
qlab's logits in steps of qlab's output scale.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from qlab.deploy import c, cortex_m, onnx, pytorch, tflite
from qlab.lab import data, machine, quiet, runs, zoo
from qlab.lab.experiments.deployment_files import (
    CALIBRATION_IMAGES,
    CORTEX,
    HOST,
    LITERT,
    MICRO,
    NETS,
    ONNX,
    OURS,
    TORCH,
    encoded,
    folder,
    in_batches,
    library,
    network,
    ours,
    place,
)
from qlab.lab.experiments.deployment_speed import memory, timing
from qlab.lab.significance import Accuracy
from qlab.nets import integer

NAME, COMMAND = "deployment", "python -m qlab.lab.experiments.deployment"
CORTEX_IMAGES, OPERATOR_IMAGES = 200, 200
SATURATING = ("ONNX Runtime, static", "ONNX Runtime, static, 8-bit weights", "PyTorch, pt2e, compiled", "PyTorch, pt2e, 8 bits, compiled")
IN_INTEGERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "QLinearConv", "QGemm", "ConvInteger", "DynamicQuantizeMatMul",
               "MatMulIntegerToFloat", "onednn::qconv_pointwise", "onednn::qlinear_pointwise", "quantized::linear_dynamic", "aten::_int_mm"}
IN_FLOATS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "aten::mkldnn_convolution", "aten::_conv_depthwise2d", "aten::thnn_conv2d",
             "aten::addmm", "aten::mm", "mkldnn::_convolution_pointwise", "mkl::_mkl_linear", "mkldnn::_linear_pointwise"}
Rows = Iterator[tuple[str, dict]]                                                           # (network, {runtime: row})


def row(net: str, logits: torch.Tensor, nbytes: int, **more) -> dict:
    """Which images are right, how many have qlab's prediction and qlab's codes, and how far the logits are apart, in codes.

    logits: int8 codes, or floats; of the first n test images. For floats there are no equal codes to count. nbytes: of what a device gets.
    """
    labels, want, scale = data.load("test").labels[:len(logits)], ours(net)[:len(logits)], network(net).grid_out.scale
    codes = logits.dtype == torch.int8
    apart = (logits.int() - want.int()).abs() if codes else (logits - network(net).decode(want)).abs() / scale
    return {
        "nbytes": nbytes, **runs.outcome(Accuracy(logits.argmax(1) == labels)),
        "same_prediction": int((logits.argmax(1) == want.argmax(1)).sum()), "same_bits": int((apart == 0).all(1).sum()) if codes else None,
        "different_codes": int((apart > 0).sum()) if codes else None, "most_codes_apart": round(float(apart.max()), 1), **more,
    }


def layers(operators: dict[str, int]) -> dict:
    """How many convolutions and fully connected layers ran in integers, and how many in floats; all operators, to see for oneself."""
    return {"in_integers": sum(n for name, n in operators.items() if name in IN_INTEGERS),
            "in_floats": sum(n for name, n in operators.items() if name in IN_FLOATS), "operators": operators}


def integer_only() -> Rows:
    for net in NETS:
        kinds = [step.kind for step in network(net).steps]
        done = layers({"CONV_2D": kinds.count("conv"), "FULLY_CONNECTED": kinds.count("linear")})
        yield net, {OURS: row(net, ours(net), network(net).nbytes, **done)}


def tflite_files(names: dict[str, str]) -> Rows:
    for net in NETS:
        path, done = place(net, "tflite"), {}
        counted = [operator.name for operator in tflite.describe(path).operators]
        for name, kernels in names.items():
            codes = tflite.run(path, encoded(net), kernels)
            done[name] = row(net, codes, path.stat().st_size, **layers({operator: counted.count(operator) for operator in counted}))
        yield net, done


def litert() -> Rows:
    return tflite_files(LITERT)


def micro() -> Rows:
    for net, done in tflite_files({MICRO: "micro"}):
        done[MICRO]["arena"] = tflite.arena(place(net, "tflite"))
        yield net, done


def host_c() -> Rows:
    for net in NETS:
        path = place(net, "c")
        about, codes = c.describe(path), c.run(path, encoded(net))
        yield net, {HOST: row(net, codes, library(net).stat().st_size, **c_layers(about), source_bytes=about.nbytes,
                              arena_bytes=c.arena_bytes(about), weight_bytes=c.weight_bytes(about))}


def c_layers(about) -> dict:
    kernels = [layer["about"].split(",")[0] for layer in about.layers]
    return {"in_integers": sum(layer["weight_bytes"] > 0 for layer in about.layers), "in_floats": 0,
            "operators": {kernel: kernels.count(kernel) for kernel in kernels}}


def cortex() -> Rows:
    for net in NETS:
        path = place(net, "c")
        codes, measured = cortex_m.run(path, encoded(net)[:CORTEX_IMAGES]), cortex_m.measure(path, data.load("test").images)
        yield net, {CORTEX: row(net, codes, measured["network_flash_bytes"], **c_layers(c.describe(path)), measured=measured)}


def onnx_files() -> Rows:
    for net in NETS:
        done = {}
        for name, kind in ONNX.items():
            path = place(net, f"onnx {kind}")
            logits = in_batches(onnx.load(path, 1), data.load("test").images)
            done[name] = row(net, logits, path.stat().st_size, **layers(onnx.operators(path)))
        yield net, done


def pytorch_files() -> Rows:
    for net in NETS:
        done = {}
        for name, (kind, compiled) in TORCH.items():
            path = place(net, f"pytorch {kind}")
            runtime = pytorch.load(path, trust=True, compile=compiled)
            logits = in_batches(runtime, data.load("test").images)
            with torch.profiler.profile() as seen:
                runtime(data.load("test").images[:100])
            done[name] = row(net, logits, path.stat().st_size, **layers({event.key: event.count for event in seen.key_averages()}))
        yield net, done


def operators() -> Rows:
    """By network: for each operator and set of kernels, how many of its output codes differ from qlab's, of how many, and by how much."""
    for net in NETS:
        done, whole = {}, network(net)
        tensors = {whole.input: encoded(net)[:OPERATOR_IMAGES]}
        for step in whole.steps:
            source = tensors[step.inputs[0]]
            alone = integer.IntegerNetwork((step,), step.inputs[0], step.output, step.grids[0], step.grids[-1])
            want = tensors[step.output] = alone.run(source)
            if step.m is None:  # nothing is multiplied, so nothing is rounded
                continue
            path, shape = folder() / "operator.tflite", tuple(source.shape[1:])
            about = tflite.export(alone, path, shape)
            found = {"operator": about.layers[-1]["operator"], "relu": step.relu, "right_shift": -int(step.n.min()), "values": want.numel()}
            for kernels in tflite.KERNELS:
                apart = (tflite.run(path, source, kernels).int() - want.int()).abs()
                found[kernels] = {"different": int((apart > 0).sum()), "most": int(apart.max())}
            done[step.name] = found
        yield net, done


def saturation() -> Rows:
    """By network: the quantized files of the cloud's runtimes with 8 bits and with one taken away, and which images they get right here.

    Of PyTorch's also how far its logits are from those of the same file without integer kernels: as it is, and uncut. Where oneDNN was told
    to use fewer instructions there are no rows of ONNX Runtime, which asks the processor itself.
    """
    images, labels = data.load("test")
    for net in NETS:
        done = {}
        for name in SATURATING:
            if name in TORCH:
                path = place(net, f"pytorch {TORCH[name][0]}")
                logits = in_batches(pytorch.load(path, compile=True), images)
                without = {"decoded": pytorch.load(path), "uncut": uncut(path)}
                more = {key: apart(logits, in_batches(runtime, images), net) for key, runtime in without.items()}
            elif machine.abilities()["onednn_limit"]:
                continue
            else:
                logits, more = in_batches(onnx.load(place(net, f"onnx {ONNX[name]}"), 1), images), {}
            done[name] = runs.outcome(Accuracy(logits.argmax(1) == labels)) | more
        yield net, done


def apart(a: torch.Tensor, b: torch.Tensor, net: str) -> dict:
    """The largest difference of two runtimes' logits in steps of qlab's output scale, and the images where it is above a hundredth."""
    steps = (a - b).abs().amax(1) / network(net).grid_out.scale
    return {"steps": round(steps.max().item(), 1), "images": int((steps > 0.01).sum())}


def uncut(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A file of PyTorch's quantizer, decoded, in which codes go up to 255 wherever a layer writes them: the input's stay as they are.

    The quantizer takes a bit from the activations by letting their codes end at 127. A kernel that writes bytes ends at 255.
    """
    module = torch.export.load(path).module()
    for node in module.graph.nodes:
        if "quantize_per_tensor" in str(node.target) and node.args[4] == 127:
            source = node.args[0].args[0] if "dequantize" in str(node.target) else node.args[0]
            if source.op != "placeholder":
                node.update_arg(4, 255)
    module.recompile()
    return module


PARTS = {"integer": integer_only, "litert": litert, "c": host_c, "cortex": cortex, "onnx": onnx_files, "pytorch": pytorch_files,
         "operators": operators, "saturation": saturation, "memory": memory, "micro": micro, "timing": timing}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="only these, beside what the record holds")
    quiet.add_option(parser)
    given = parser.parse_args(arguments)
    for part in given.part or PARTS:
        done = {}
        for net, rows in (timing(given.busy) if part == "timing" else PARTS[part]()):
            done[net] = rows
            print(part, net, flush=True)
        write(part, done)


def write(part: str, rows: dict) -> None:
    try:
        found = runs.raw(NAME)                                                              # read again: another part may run by now
    except FileNotFoundError:
        found = {}
    if part == "saturation":
        rows = found.get(part, {}) | {machine.describe(): {"date": machine.environment()["date"], **rows}}
    found[part] = rows
    runs.write(NAME, COMMAND, calibration_images=CALIBRATION_IMAGES, checkpoints={net: zoo.record(net)["sha256"] for net in NETS},
               versions=versions(), **{name: found[name] for name in PARTS if name in found})


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("ai-edge-litert", "tflite-micro", "onnx", "onnxruntime", "torch", "torchao")}


if __name__ == "__main__":
    main()
