"""A program's text: the kernels that it needs, each layer's constants, the arena, the calls in their order; and the header.

The kernels are C files of their own (folder c_kernels), one idea each, and become part of the network's file as they are.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

import qlab
from qlab.deploy import arena
from qlab.deploy.c_program import NONE, PATCH, Program
from qlab.nets.integer import ADD_SHIFT, IntegerNetwork

KERNELS = Path(__file__).parent / "c_kernels"
NEEDS = {  # the pieces of c_kernels that a kernel stands on
    "convolution": ("requantize", "window", "layer", "dsp", "dot", "convolution"),
    "depthwise": ("requantize", "window", "inside", "layer", "dsp", "depthwise"),
    "maxpool": ("window", "inside", "maxpool"), "mean": ("requantize", "window", "mean"), "windows": ("requantize", "windows"),
    "add": ("requantize", "added", "add"), "add_walk": ("requantize", "walk", "added", "add_walk"), "mul": ("requantize", "walk", "mul"),
    "cat": ("requantize", "walk", "cat"), "softmax": ("requantize", "softmax"), "move": ("walk", "move"),
    "relu": ("relu",), "relu6": ("relu6",), "table": ("table",),
}
ORDER = ("requantize", "window", "inside", "layer", "dsp", "dot", "convolution", "depthwise", "maxpool", "mean", "windows", "walk", "added",
         "add", "add_walk", "mul", "cat", "softmax", "relu", "relu6", "table", "move")


def _array(name: str, values: torch.Tensor) -> str:
    ctype, width = ("int8_t", 24) if values.dtype == torch.int8 else ("int32_t", 10)
    numbers = values.tolist()
    rows = [", ".join(map(str, numbers[i:i + width])) for i in range(0, len(numbers), width)]
    return f"static const {ctype} {name}[{len(numbers)}] = {{\n    " + ",\n    ".join(rows) + ",\n};"


@dataclass(frozen=True)
class Memory:
    """Where everything lies. tensors: those in the arena, patches included; the image and the logits are the caller's own memory."""

    tensors: tuple[arena.Tensor, ...]
    addresses: dict[str, int]
    arena_bytes: int

    def alive(self, step: int) -> list[dict]:
        """The tensors that the arena holds during a step, by address."""
        there = [{"tensor": t.name, "address": self.addresses[t.name], "bytes": t.size} for t in self.tensors if t.first <= step <= t.last]
        return sorted(there, key=lambda entry: entry["address"])


def lay_out(program: Program, network: IntegerNetwork) -> Memory:
    """Every tensor's place in the arena, from its first step to its last."""
    outside = (NONE, PATCH, network.input, program.places[network.output].root)
    sizes = {root: math.prod(shape) for root, shape in program.stored.items()}
    alive: dict[str, list[int]] = {}
    for step, layer in enumerate(program.layers):
        for name in layer.tensors:
            if name not in outside:
                alive.setdefault(name, [step, step])[1] = step
    tensors = [arena.Tensor(name, sizes[name], *life) for name, life in alive.items()]
    tensors += [arena.Tensor(f"{layer.prefix} patch", layer.patch, step, step) for step, layer in enumerate(program.layers) if layer.patch]
    return Memory(tuple(tensors), *arena.plan(tensors))


def source(name: str, header_name: str, program: Program, memory: Memory, network: IntegerNetwork) -> str:
    """The C file: kernels, constants and a struct for each layer, the arena, the run."""
    pieces = {piece for layer in program.layers for piece in NEEDS[layer.kernel]}
    sizes = _sizes(network, program, memory)
    parts = [f"/* {about(name)} */", f'#include "{header_name}"\n#include <string.h>',
             "#if " + " || ".join(f"{name.upper()}_{key} != {value}" for key, value in sizes.items())
             + f'\n#error "{header_name} was written for another network."\n#endif']
    if "added" in pieces:
        parts.append(f"#define ADD_SHIFT {ADD_SHIFT}")
    parts += [(KERNELS / f"{piece}.c").read_text().rstrip() for piece in ORDER if piece in pieces]
    calls, where = [], {name: f"arena + {address}" if address else "arena" for name, address in memory.addresses.items()}
    where |= {NONE: "NULL", network.input: "image", program.places[network.output].root: "logits"}
    for layer in program.layers:
        shapes = " -> ".join(" x ".join(map(str, s)) for s in (layer.shape_in, layer.shape_out))
        comment = f"/* {layer.name}: {layer.about}; {shapes}" + (f"; {layer.products} products */" if layer.products else " */")
        arrays = [_array(n, values) for n, values in program.constants.items() if n.rpartition("_")[0] == layer.prefix]
        if constants := [*arrays, *[layer.struct] * bool(layer.struct)]:
            parts.append("\n\n".join([comment, *constants]))
        calls.append("    " + layer.call.format(*(where[f"{layer.prefix} patch" if t == PATCH else t] for t in layer.tensors)))
        calls[-1] += "" if constants else f"  {comment}"
    if memory.arena_bytes:
        parts.append(f"static int8_t arena[{name.upper()}_ARENA];")
    return "\n\n".join([*parts, RUN.format(name=name, NAME=name.upper(), calls="\n".join(calls))])


def about(name: str) -> str:
    return f"{name}: an integer-only network, int8 codes and int32 sums. Written by qlab {qlab.__version__}."


def _sizes(network: IntegerNetwork, program: Program, memory: Memory) -> dict[str, int]:
    ends = {"INPUT": network.input, "OUTPUT": network.output}
    return {key: program.places[name].at.numel() for key, name in ends.items()} | {"ARENA": memory.arena_bytes}


RUN = """void {name}_run(const int8_t image[{NAME}_INPUT], int8_t logits[{NAME}_OUTPUT])
{{
{calls}
}}

int32_t {name}_argmax(const int8_t logits[{NAME}_OUTPUT])
{{
    int32_t best = 0;
    for (int32_t i = 1; i < {NAME}_OUTPUT; i++) {{
        best = logits[i] > logits[best] ? i : best;
    }}
    return best;
}}
"""

HEADER = """/* {about}

   image: {shape_in} codes from {grid_in.low} to {grid_in.high}, the nearest to value / {NAME}_INPUT_SCALE + {NAME}_INPUT_ZERO.
   logits: {shape_out} codes; value = {NAME}_OUTPUT_SCALE * (code - {NAME}_OUTPUT_ZERO).
   Maps are stored by rows, columns, channels: the first of PyTorch's dimensions last. The arena is one static array: one run at a time. */
#ifndef {NAME}_H
#define {NAME}_H

#include <stdint.h>

#define {NAME}_INPUT {INPUT}
#define {NAME}_OUTPUT {OUTPUT}
#define {NAME}_ARENA {ARENA}  /* bytes of RAM for activations; the image and the logits are the caller's */
#define {NAME}_INPUT_SCALE {grid_in.scale!r}
#define {NAME}_INPUT_ZERO ({grid_in.zero_point})
#define {NAME}_OUTPUT_SCALE {grid_out.scale!r}
#define {NAME}_OUTPUT_ZERO ({grid_out.zero_point})

#ifdef __cplusplus
extern "C" {{
#endif

/* From an image's codes to the logits' codes. */
void {name}_run(const int8_t image[{NAME}_INPUT], int8_t logits[{NAME}_OUTPUT]);

/* The class of the largest logit, the first of those that are equal. */
int32_t {name}_argmax(const int8_t logits[{NAME}_OUTPUT]);

#ifdef __cplusplus
}}
#endif

#endif
"""


def header(name: str, network: IntegerNetwork, program: Program, memory: Memory) -> str:
    """The header: what goes in, what comes out, and how much memory it takes."""
    shapes = (program.stored[program.places[end].root] for end in (network.input, network.output))
    shape_in, shape_out = (" x ".join(map(str, shape)) for shape in shapes)
    return HEADER.format(about=about(name), name=name, NAME=name.upper(), shape_in=shape_in, shape_out=shape_out, grid_in=network.grid_in,
                         grid_out=network.grid_out, **_sizes(network, program, memory))
