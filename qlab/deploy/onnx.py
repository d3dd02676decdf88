"""The network as one .onnx file, quantized by ONNX Runtime's own quantizer, and run there: what a server does.

QDQ, the usual form, keeps the float operators and writes around them where a tensor has codes:

    y = Q( conv( DQ(Q(x)), DQ(codes of w) ) )           Q: QuantizeLinear, DQ: DequantizeLinear

On loading, the runtime takes each such group for one integer kernel, which it picks for the machine that it is on (operators(path)
shows them: QLinearConv, QGemm). QOperator, the older form, writes the kernels into the file instead. For uint8 activations with int8
weights both run alike. For int8 activations QDQ still does, since the runtime is free to shift the codes to uint8; QOperator
asks for int8 * int8, for which the runtime has no fast kernel on x86: several times slower than float32 ("qoperator-int8"), and it warns.

Weights have 7 bits by default. Without VNNI an x86 processor adds two products uint8 * int8 in 16 bits and *saturates*:
2 * 255 * 127 = 64,770 > 32,767, but 2 * 255 * 64 = 32,640. So 8-bit weights ("static-8bit") give wrong sums on such a machine, silently,
and right ones where there is VNNI, AMX, or ARM's dot product. uint8 weights ("static-uint8") are right everywhere, and slower here.

Ranges: "minmax" is what it says, "percentile" cuts at the 99.999th percentile of |x|. The library's third, Entropy, is not offered:
quantize_static gives it 128 bins, of which it must keep 128, so the whole range is the only candidate and it returns minmax.
Dynamic quantization takes each range from the image at hand: no calibration, but every layer starts with a search for the range.

Source: ONNX Runtime's documentation, "Quantize ONNX models"; Jacob et al. 2018 for the arithmetic; the source document, 6.3.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from qlab.deploy import files
from qlab.deploy.checks import as_images, calibration_batches, exported, float_network, quiet, read, readable
from qlab.deploy.side_by_side import BATCHES, Row, all_threads, right, times
from qlab.errors import first_line, not_installed

TRANSLATED = 0.01  # of the outputs' size: what float32 may be off, summed in another order, in a network of hundreds of layers
KINDS = {  # how quantize_static and quantize_dynamic are called
    "float": None,
    "static": {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QInt8", "reduce_range": True},
    "static-8bit": {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QInt8"},
    "static-uint8": {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QUInt8"},
    "qdq-int8": {"quant_format": "QDQ", "activation_type": "QInt8", "weight_type": "QInt8", "reduce_range": True},
    "qoperator-int8": {"quant_format": "QOperator", "activation_type": "QInt8", "weight_type": "QInt8", "reduce_range": True},
    "dynamic": {"weight_type": "QUInt8"},
}
RANGES = ("minmax", "percentile")
OPSET = 20


# Writing


def export(model: nn.Module, path: str | os.PathLike, calibration=None, kind: str = "static", ranges: str = "minmax",
           batch: int | None = None, image_shape: tuple[int, ...] = (1, 28, 28), name: str | None = None) -> files.Description:
    """Write one .onnx file, weights inside, and its description beside it (NAME.onnx.json). In and out are float32.

    model: any float network that torch.export reads; its batch norms are folded. calibration: training images (n, ...) or batches of them,
    for every kind but "float" and "dynamic". kind: of KINDS. ranges: of RANGES. batch: the only number of images that the file will take;
    None: any. Raises TypeError or ValueError, in one sentence, for what does not fit, ImportError with what to install, OSError where it
    cannot write; no file is left half-written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, and must be one of {', '.join(KINDS)}.")
    if ranges not in RANGES:
        raise ValueError(f"ranges is {ranges!r}, and must be one of {', '.join(RANGES)}.")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch is {batch!r}, and must be 1 or more, or None for any.")
    _libraries("onnx", "onnxruntime", "onnxscript")
    image_shape = tuple(image_shape)
    network = float_network(model, image_shape)
    batches = calibration_batches(calibration, image_shape) if kind not in ("float", "dynamic") else []
    try:
        proto = _quantized(_translated(network, image_shape), kind, ranges, batches)
    except OSError as error:  # the quantizer works on files
        raise OSError(f"cannot write to {tempfile.gettempdir()} ({error.strerror}): make room there, or set TMPDIR.") from None
    if batch:
        _fix_batch(proto, batch)
    with torch.no_grad():
        shape = tuple(network(torch.zeros(1, *image_shape)).shape[1:])
    return files.write(
        path, proto.SerializeToString(), format=f"onnx, {kind}, batch {batch or 'of any size'}", layers=_layers(proto),
        network=Path(path).stem if name is None else name,
        input=files.Port(image_shape, "float32"), output=files.Port(shape, "float32"))


def _libraries(*names: str) -> None:
    import importlib
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ImportError(not_installed(name, extra="deploy")) from None


def _translated(network: nn.Module, image_shape: tuple[int, ...]):
    """The float network as an onnx ModelProto, for batches of any size."""
    if not readable(network):
        exported(network, image_shape)                                                     # says why not; the call below tries other ways
    try:
        with quiet():
            program = torch.onnx.export(network, (torch.zeros(2, *image_shape),), dynamo=True, opset_version=OPSET, verbose=False,
                                        dynamic_shapes=({0: torch.export.Dim("n")},), input_names=["images"], output_names=["logits"])
    except Exception as error:  # noqa: BLE001 - whatever an operator's translation raises
        while error.__cause__:  # the first of them names the operator
            error = error.__cause__
        raise ValueError(f"PyTorch's ONNX exporter cannot translate the network ({first_line(error)}).") from None
    proto = program.model_proto
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]                                                          # notes on where in whose Python file it was
    _check_translation(proto.SerializeToString(), network, torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)))
    return proto


def _check_translation(content: bytes, network: nn.Module, images: torch.Tensor) -> None:
    """ValueError where the translation computes something else: PyTorch's exporter leaves out what ONNX's operators cannot say, such as the
    divisor_override of an average pooling."""
    with torch.no_grad():
        wanted = network(images.clone()).double()
    found = torch.from_numpy(_opened(content, 1).run(None, {"images": images.numpy()})[0]).double()
    off, size = (found - wanted).square().sum().sqrt().item(), wanted.square().sum().sqrt().item()
    if not off <= TRANSLATED * size + 1e-6:
        raise ValueError("PyTorch's ONNX exporter translates the network into one that computes something else, off by "
                         f"{off / max(size, 1e-12):.2%} of its outputs: an operator of ONNX lacks one of a layer's settings, as "
                         "AveragePool lacks divisor_override.")


def _quantized(proto, kind: str, ranges: str, batches: list[torch.Tensor]):
    """The ModelProto after ONNX Runtime's quantizer; all its files are in a temporary folder."""
    if kind == "float":
        return proto
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
    options = {k: getattr(getattr(quantization, {"quant_format": "QuantFormat"}.get(k, "QuantType")), v) if isinstance(v, str) else v
               for k, v in KINDS[kind].items()}
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, result = os.path.join(folder, "float.onnx"), os.path.join(folder, "codes.onnx")
        try:
            quant_pre_process(proto, source)
            if kind == "dynamic":
                quantization.quantize_dynamic(source, result, per_channel=True, **options)
            else:
                method = {"minmax": "MinMax", "percentile": "Percentile"}[ranges]
                quantization.quantize_static(
                    source, result, reader(batches), per_channel=True, **options, nodes_to_exclude=_norms_of_maps(source),
                    calibrate_method=getattr(quantization.CalibrationMethod, method))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - it raises whatever an operator that it did not expect leads to
            raise ValueError(f"ONNX Runtime's quantizer cannot take the network ({first_line(error)}): the kind float can.") from None
        return onnx.load(result)


def _norms_of_maps(path: str) -> list[str]:
    """Normalizations with a weight of several dimensions: the quantizer's rule for biases takes one scale, and these have many."""
    import onnx
    graph = onnx.load(path).graph
    dims = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type.endswith("Normalization") and dims.get(node.input[1], 0) > 1]


def reader(batches: list[torch.Tensor]):
    """What ONNX Runtime's calibration wants: an object that hands out all images, as one batch, and then None."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"images": torch.cat(batches).numpy()}]

        def get_next(self):
            return self.left.pop() if self.left else None

    return Reader()


def _fix_batch(proto, batch: int) -> None:
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
    make_dim_param_fixed(proto.graph, proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param, batch)


def _layers(proto) -> tuple[dict, ...]:
    """Each operator with the shape and dtype of its weight, and the scale and zero-point of its result, where it has them."""
    import onnx
    tensors = {t.name: t for t in proto.graph.initializer}
    source = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    codes = {n.input[0]: n.input[1:3] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    layers = []
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        layer = {"operator": node.op_type, "name": node.name}
        for name in node.input:
            held = tensors.get(source.get(name, name))
            if held is not None and len(held.dims) > 1:
                layer |= {"weight": list(held.dims), "dtype": onnx.TensorProto.DataType.Name(held.data_type).lower()}
        if node.output[0] in codes:
            scale, zero_point = (onnx.numpy_helper.to_array(tensors[name]) for name in codes[node.output[0]])
            layer |= {"scale": float(scale), "zero_point": int(zero_point)}
        layers.append(layer)
    return tuple(layers)


# Running


def load(path: str | os.PathLike, threads: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The file as a function from float images to logits (float32, (n, classes)). threads: how many it uses; None: all cores.

    Raises FileNotFoundError, ValueError for a file that is damaged or no network of this kind, ImportError with what to install.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads is {threads!r}, and must be 1 or more, or None for all cores.")
    session = _session(path, threads or 0)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) < 2:
        raise ValueError(f"{path} takes {', '.join(f'{i.type} {i.shape}' for i in inputs)}, and must take one batch of float images.")
    batch, *shape = (size if isinstance(size, int) else None for size in inputs[0].shape)
    if None in shape:
        raise ValueError(f"{path} takes images of a size that is not fixed, {inputs[0].shape}: export it with qlab.deploy.onnx.")

    def logits(x) -> torch.Tensor:
        images = as_images(x, tuple(shape), batch).contiguous()
        return torch.from_numpy(session.run(None, {inputs[0].name: images.numpy()})[0])

    return logits


def run(path: str | os.PathLike, x, threads: int | None = None) -> torch.Tensor:
    """Logits of float images (n, 1, 28, 28), computed by ONNX Runtime. Raises as load does, and for other images."""
    return load(path, threads)(x)


def _session(path: str | os.PathLike, threads: int, optimized: str | None = None):
    _libraries("onnxruntime")
    content = read(path)
    files.read_description(path)
    try:
        return _opened(content, threads, optimized)
    except Exception as error:  # noqa: BLE001 - its errors share no class of their own
        raise ValueError(f"{path} is damaged, or no network that ONNX Runtime can read ({first_line(error)}).") from None


def _opened(content: bytes, threads: int, optimized: str | None = None):
    """An inference session of a file's content."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")                    # idle threads leave the cores to others
    if optimized:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def operators(path: str | os.PathLike) -> dict[str, int]:
    """What ONNX Runtime executes on this machine, and how often: QLinearConv and QGemm compute in integers, Conv and Gemm in floats."""
    _libraries("onnx")
    import onnx
    with tempfile.TemporaryDirectory() as folder:
        seen = os.path.join(folder, "seen.onnx")
        _session(path, 1, seen)
        return dict(Counter(node.op_type for node in onnx.load(seen).graph.node))


def compare(model: nn.Module, calibration, test, kinds: Sequence[str] = tuple(KINDS), threads: Sequence[int] = all_threads(),
            batches: Sequence[int] = BATCHES, repeats: int = 20) -> list[Row]:
    """One row for each kind of file: bytes, which test images it gets right, time by threads and batch, operators executed.

    test: images and labels. Times are medians of turns taken by all kinds, on this machine; say which it is beside them.
    """
    images, labels = test
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.onnx" for kind in kinds}
        for kind, path in paths.items():
            export(model, path, calibration, kind, image_shape=tuple(images.shape[1:]))
        ms = {}
        for n in threads:
            runtimes = {kind: load(path, n) for kind, path in paths.items()}
            ms |= {(n, b): times(runtimes, images[:b], repeats) for b in batches}
        return [Row(kind, path.stat().st_size, right(runtimes[kind], images, labels), {case: taken[kind] for case, taken in ms.items()},
                    operators(path)) for kind, path in paths.items()]
