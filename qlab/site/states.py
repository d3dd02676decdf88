"""Which states of a live figure are drawn for the site: all of them if they are few, else a coarse grid.

A long slider is thinned evenly, its ends and its present value kept. Where the combinations are still too many, the last controls stay at
their present value, and the page says so.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import ipywidgets

from qlab.lab.widgets import Live, label

MOST = 100     # pictures of one figure
SHORT = 9      # a slider of so many values, or fewer, keeps them all
FEWEST = 5     # values that a longer one has at least
LONGEST = 24   # and at most


@dataclass(frozen=True)
class Axis:
    """A control of the site's figure: its name, its label, the values that it takes there, their words, and the present one's index."""

    name: str
    label: str
    values: list
    words: list[str]
    at: int
    ordered: bool
    thinned: bool = False


def grid(live: Live, most: int = MOST) -> list[Axis]:
    """The controls that move on the site, each with its values: their product is at most `most`.

    Where not all can move, lists are fixed before sliders, the last ones first. In a figure with a player, what it plays moves, and
    what does not make it longer or shorter.

    >>> from qlab.lab.widgets import figure
    >>> live = Live(figure()[0], lambda **values: None, net=ipywidgets.Dropdown(options=["a", "b"]), x=ipywidgets.IntSlider(7, 1, 100))
    >>> [axis.values for axis in grid(live, most=10)]
    [['a', 'b'], [1, 7, 51, 75, 100]]
    """
    linked = [live.link.source[0], live.link.target[0]] if hasattr(live, "link") else []  # a player and its slider
    played = [name for name, control in live.controls.items() if control in linked]
    names = [name for name in live.controls if not played or _axes(live, [*played, name])[0].values == _axes(live, played)[0].values]
    while axes := _axes(live, names):
        counts = [min(len(axis.values), most if played else LONGEST) if axis.ordered else len(axis.values) for axis in axes]
        long = [i for i, axis in enumerate(axes) if axis.ordered and len(axis.values) > SHORT]
        while math.prod(counts) > most and any(counts[i] > FEWEST for i in long):
            counts[max(long, key=counts.__getitem__)] -= 1
        if math.prod(counts) <= most:
            return [_thinned(axis, count) for axis, count in zip(axes, counts)]
        lists = [axis for axis in axes if not axis.ordered]
        drop = (lists if len(lists) > 1 else axes)[-1]
        names = [axis.name for axis in axes if axis is not drop]
    return []


def _axes(live: Live, names: list[str]) -> list[Axis]:
    """Those of these controls that have several values. A whole-numbered slider's last value may hang on another control, as an iteration
    does on the bits: it is the largest that any of them leads to."""
    axes = [axis for name in names if (axis := _axis(name, live.controls[name]))]
    sliders = {axis.name: live.controls[axis.name] for axis in axes if isinstance(live.controls[axis.name], ipywidgets.IntSlider)}
    ends, before = {name: control.max for name, control in sliders.items()}, {axis.name: axis.values[axis.at] for axis in axes}
    for axis in axes:
        for value in (axis.values[0], axis.values[-1]):
            for _ in live.frames([{axis.name: value}]):
                ends = {name: max(end, sliders[name].max) for name, end in ends.items()}
            list(live.frames([before]))
    return [axis for name in before if len((axis := _axis(name, live.controls[name], ends.get(name))).values) > 1]


def states(axes: list[Axis]) -> Iterator[tuple[tuple[int, ...], dict]]:
    """Each combination: the indices, and the values by control.

    >>> list(states([Axis("bits", "bits", [2, 4], ["2", "4"], 0, True), Axis("net", "network", ["a"], ["a"], 0, False)]))
    [((0, 0), {'bits': 2, 'net': 'a'}), ((1, 0), {'bits': 4, 'net': 'a'})]
    """
    for at in itertools.product(*(range(len(axis.values)) for axis in axes)):
        yield at, {axis.name: axis.values[index] for axis, index in zip(axes, at)}


def _axis(name: str, control: ipywidgets.Widget, longest: int | None = None) -> Axis | None:
    """All values of a control, or None for one that has too many to list, such as a field for a number."""
    ordered = True
    if isinstance(control, ipywidgets.Dropdown | ipywidgets.ToggleButtons | ipywidgets.RadioButtons | ipywidgets.SelectionSlider):
        ordered = isinstance(control, ipywidgets.SelectionSlider)
        words = list(control._options_labels)
        values = list(control._options_values)
    elif isinstance(control, ipywidgets.Checkbox):
        values, words, ordered = [False, True], ["off", "on"], False
    elif isinstance(control, ipywidgets.IntSlider):
        end = max(control.max, longest or control.max)
        values = sorted({*range(control.min, end + 1, control.step), end, control.value})
        words = [str(value) for value in values]
    elif isinstance(control, ipywidgets.FloatSlider):
        count = round((control.max - control.min) / control.step)
        values = sorted({*(round(control.min + i * control.step, 10) for i in range(count + 1)), control.value})
        words = [f"{value:g}" for value in values]
    else:
        return None
    at = next(i for i, value in enumerate(values) if value is control.value or value == control.value)
    return Axis(name, label(control, name), values, words, at, ordered)


def _thinned(axis: Axis, count: int) -> Axis:
    """count of the axis' values, evenly spaced, with both ends; the present one in the place of its nearest."""
    last = len(axis.values) - 1
    if count > last:
        return axis
    kept = [round(i * last / (count - 1)) for i in range(count)]
    if axis.at not in kept:
        kept[min(range(1, count - 1), key=lambda i: abs(kept[i] - axis.at))] = axis.at
    kept.sort()
    return Axis(axis.name, axis.label, [axis.values[i] for i in kept], [axis.words[i] for i in kept], kept.index(axis.at), True, True)
