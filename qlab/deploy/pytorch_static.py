"""PyTorch's static quantization (pt2e): a graph that says where codes go, ranges from calibration images, int8 weights per channel.

The quantizer takes all operations of one module, or "source", for one layer. A network is rewritten for it first, so that each call of a
layer is one: what qlab.nets.graph reads, layer by layer; any other as torch.export reads it, operator by operator.

Source: torchao's documentation, "PyTorch 2 Export Quantization".
"""

import copy
import operator

import torch
from torch import nn

from qlab.deploy import checks
from qlab.deploy.checks import exported, quiet
from qlab.errors import first_line, not_installed
from qlab.nets.graph import kind as kind_of
from qlab.nets.graph import trace


def static(model: nn.Module, batches: list[torch.Tensor], reduce_range: bool = True) -> nn.Module:
    """The network as a graph with int8 weights per channel and activations of 7 (reduce_range) or 8 bits, after a look at the batches."""
    check_torchao()
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range))
    readable = checks.readable(model)
    program = exported(_a_module_for_each_call(model) if readable else model, tuple(batches[0].shape[1:]))
    try:
        program = program.module() if readable else _a_source_for_each_call(program)
        prepared = prepare_pt2e(program, quantizer)
        with torch.no_grad():
            for batch in batches:
                prepared(batch)
        converted = convert_pt2e(prepared)
    except Exception as error:  # noqa: BLE001 - it raises whatever an operator that it did not expect leads to
        said = first_line(error)
        raise ValueError(f"PyTorch's quantizer cannot take the network ({said}): the kinds float, weight-only and dynamic can.") from None
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name, _ in list(converted.named_parameters()):
        if name not in used:  # the float weights stay behind, and would be saved
            parent, _, leaf = name.rpartition(".")
            delattr(converted.get_submodule(parent), leaf)
    return converted


def _a_module_for_each_call(model: nn.Module) -> nn.Module:
    """The network as a graph in which no module runs twice and nothing is computed in place; a module's copies share its parameters.

    The quantizer takes all operations of one module for one layer, and refuses it where it runs twice. What is written over a tensor
    would be written over its codes alone, where it has some, and whoever else reads the tensor would miss it. Nor does it take layers
    that nobody reads, torch.add beside +, or a padding that is a word. Raises ValueError for a padding with more on one side.
    """
    traced, seen = trace(model), set()
    traced.graph.eliminate_dead_code()
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in seen:
            name, module = f"{node.name}_again", traced.get_submodule(node.target)
            while hasattr(traced, name):
                name += "_"
            traced.add_submodule(name, copy.deepcopy(module, {id(t): t for t in module.parameters()}))
            node.target = name
            node.meta.pop("nn_module_stack", None)                                          # it names the module that it was
        seen.add(node.target)
        if kind_of(traced, node) == "add":
            node.op, node.target = "call_function", operator.add
        elif kind_of(traced, node) == "conv":
            _pad_by_numbers(traced.get_submodule(node.target), node.target)
    traced.recompile()
    return traced


SOURCES = {  # operator -> the layer, or function, by which the quantizer asks for it
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "linear": nn.Linear, "relu": nn.ReLU, "hardtanh": nn.Hardtanh, "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "add": operator.add,
}


def _a_source_for_each_call(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The same for a network that only torch.export reads: each operator is told to be a layer of its own, and nothing is in place."""
    graph = program.run_decompositions({}).module()
    for node in graph.graph.nodes:
        if node.op == "call_function":
            for note in ("nn_module_stack", "torch_fn"):
                node.meta.pop(note, None)
            name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
            node.meta["source_fn_stack"] = [(node.name, SOURCES.get(name, node.target))]
    return graph


def _pad_by_numbers(conv: nn.Conv2d, name: str) -> None:
    if isinstance(conv.padding, str):
        sums = [d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size)]
        if any(both % 2 for both in sums):
            raise ValueError(f"{name} pads by 'same' with more on one side, which PyTorch's quantizer cannot take: give it an odd kernel.")
        conv.padding = tuple(both // 2 for both in sums)


def check_torchao() -> None:
    """ImportError, with what to install, where torchao is missing; its operators are known to torch afterwards."""
    try:
        with quiet():
            import torchao.quantization.pt2e  # noqa: F401 - which registers them
    except ImportError:
        raise ImportError(not_installed("torchao", extra="deploy")) from None
