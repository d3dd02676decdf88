"""Steps that hand on the codes that they get, in C: by other addresses for the same bytes, or moved to bytes of their own.

Which kernels compute: qlab.deploy.c_layers.
"""

from dataclasses import replace
from typing import NoReturn

import torch.nn.functional as F

from qlab.deploy.c_places import LOOPS, Place, in_order, last, loops, stored
from qlab.deploy.c_program import Program, walk
from qlab.nets import integer
from qlab.nets.integer import Step

Shape = tuple[int, ...]


def _view(program: Program, step: Step, shape: Shape) -> None:
    """The same bytes, seen otherwise: the step is taken on the table of their addresses. What loops cannot visit in the new order is
    copied into torch's before."""
    place, run = program.places[step.inputs[0]], integer.RUN[step.kind]
    at = run(step, place.at[None])[0]
    if loops(at.flatten()) is None:
        place = program.as_plain(step.inputs[0])
        at = run(step, place.at[None])[0]
        if loops(at.flatten()) is None:
            too_many(step)
    program.places[step.output] = Place(place.root, at)


def _pad(program: Program, step: Step, shape: Shape) -> None:
    padding = step.options["padding"]
    if len(padding) > 2 * len(shape):
        raise ValueError(f"{step.name} pads {len(padding) // 2} dimensions of images of {len(shape)}.")
    about = f"padding {' '.join(map(str, padding))} with {step.options['code']}"
    _spread(program, step, shape, about, lambda at: F.pad(at, padding, value=-1), step.options["code"])


def _stretch(program: Program, step: Step, shape: Shape) -> None:
    if len(shape) < 2:
        raise ValueError(f"{step.name} stretches {shape[0]} values, and must stretch a map of rows and columns.")
    nothing = replace(step.grids[0], zero_point=-1)
    alone = replace(step, grids=(nothing, nothing))
    about = "stretch {} x {}".format(*step.options["stride"])
    _spread(program, step, shape, about, lambda at: integer.RUN["stretch"](alone, at), step.grids[0].zero_point)


def _spread(program: Program, step: Step, shape: Shape, about: str, moved, code: int) -> None:
    """Bytes of its own for the output: moved puts the addresses of the input where its numbers go, and -1 elsewhere, where the code is."""
    out = last(shape)
    for made in (program.places.get, program.as_last):
        place = made(step.inputs[0])
        there = in_order(moved(place.at))
        walked = walk(there[there >= 0], in_order(out)[there >= 0])
        if walked is not None:
            program.new_map(step.output, shape)
            program.move(step.name, about, place.root, step.output, walked, program.stored[place.root], stored(shape), code)
            return
    too_many(step)


def too_many(step: Step) -> NoReturn:
    raise ValueError(f"{step.name}, a {step.kind} of so many dimensions, takes more than {LOOPS} nested loops, and C has {LOOPS}.")


MOVES = {"flatten": _view, "reshape": _view, "permute": _view, "slice": _view, "pad": _pad, "stretch": _stretch}
