"""Notebook 18's pictures: the table of methods as bytes against what is lost, with the questions of the adviser as filters.

A pale dot is a method that does not answer the questions, a blue one does, and an orange one with its interval is a rung of the ladder: it
is better than the smaller one below it, by a paired test. Filled squares were multiplied as integers, dots were decoded to floats first.
"""

import html

import ipywidgets
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes

from qlab.lab import plot, widgets
from qlab.lab.methods import NETS, load
from qlab.search.advise import WANTS, Advice, advise
from qlab.search.methods import COLUMNS, DATA, HARDWARE, cells

ANY = "any"
BITS = (1.6, 2, 2.5, 3, 4, 6, ANY)
LOST = {"points": (0.5, 1, 3, 10, ANY), "bits a byte": (0.005, 0.01, 0.03, 0.1, ANY)}
LINEAR = {"points": 1.0, "bits a byte": 0.01}   # below it the axis is linear: a loss may be 0, or a gain
TOP = {"points": 100, "bits a byte": 2}


def dots(net: str, ax: Axes) -> Axes:
    """Every method of a network as a dot, bytes against loss; float's bytes are not among them.

    >>> _ = dots("cnn", plot.plt.figure().subplots())
    """
    rows = load(net)
    unit = rows[0].lost.unit
    ax.plot([row.nbytes / plot.KB for row in rows], [row.lost.value for row in rows], "o", color=plot.COLORS["linear"], markersize=4)
    _axes(ax, unit)
    return ax


def tables() -> HTML:
    """Every method of the course: a table a network, each folded under a line that counts it and names the smallest that loses little.

    Little: by the upper end of the 95 % interval, below the first limit of LINEAR.

    >>> "INT8, per channel" in tables().data
    True
    """
    parts = []
    for net in NETS:
        rows = load(net)
        unit = rows[0].lost.unit
        good = min((row for row in rows if row.lost.high < LINEAR[unit]), key=lambda row: row.nbytes, default=None)
        said = f"{net}: {len(rows)} method{'s' * (len(rows) > 1)}"
        little = {"points": "a point"}.get(unit, f"{LINEAR[unit]:g} {unit}")
        said += f"; the smallest that loses less than {little}: {good.name}, {good.nbytes:,} bytes, {good.lost}" if good else ""
        lines = ["".join(f"<th>{name}</th>" for name in COLUMNS)]
        lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        parts.append(f"<details><summary>{html.escape(said)}</summary><table>{body}</table></details>")
    return HTML("\n".join(parts))


def _axes(ax: Axes, unit: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=LINEAR[unit], linscale=0.8)
    ax.set(xlabel="size (KB, 1 KB = 1000 bytes)", ylabel=f"lost ({unit})", ylim=(-0.5 * LINEAR[unit], TOP[unit]))
    ax.xaxis.set_major_formatter(plot.FuncFormatter(lambda size, _: f"{size:,g}"))
    ax.xaxis.set_major_locator(plot.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(plot.NullLocator())
    ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda lost, _: f"{lost:g}"))
    ax.yaxis.set_minor_locator(plot.NullLocator())


def adviser(net: str = "depthwise", data: str = "calibration") -> widgets.Live:
    """Six questions about data, hardware and size, and the methods of the course that remain, each with its record.

    "training" is answered by data = "training". Raises as `advise` does.
    """
    controls = {
        "net": ipywidgets.Dropdown(options=NETS, value=net, layout={"width": "170px"}),
        "data": ipywidgets.Dropdown(options=[(f"{name}, and training" if name == "training" else name, name) for name in DATA], value=data,
                                    layout={"width": "220px"}),
        "hardware": ipywidgets.Dropdown(options=(ANY, *HARDWARE), layout={"width": "210px"}),
        "want": ipywidgets.Dropdown(options=WANTS, layout={"width": "150px"}),
        "bits": ipywidgets.SelectionSlider(options=BITS, value=ANY),
        "lost": ipywidgets.SelectionSlider(options=LOST[load(net)[0].lost.unit], value=ANY),
    }
    fig, ax = widgets.figure(9.2, 3.9)
    fig.get_layout_engine().set(rect=(0.02, 0, 0.98, 1))                    # room for the other unit's longer ticks: the layout stays
    ax.axhline(0, color=plot.COLORS["float"], linewidth=1.2, linestyle=plot.LINESTYLES["float"])
    pale, = ax.plot([1], [0], "o", color=plot.COLORS["muted"], alpha=0.45, markersize=4, label="out")
    fit, = ax.plot([1], [0], "o", color=plot.COLORS["linear"], markersize=5, label="answers the questions")
    bars = ax.vlines([1.0], 0, 1, color=plot.COLORS["error"], linewidth=1.4)
    rungs, = ax.plot([1], [0], "o", color=plot.COLORS["error"], markersize=8, markeredgecolor="black", label="a rung of the ladder")
    whole, = ax.plot([1], [0], "s", color=plot.COLORS["error"], markersize=8, markeredgecolor="black", label="... in integers")
    fig.legend(loc="outside upper center", ncols=4, fontsize=10)
    shown = []

    def update(net: str, data: str, hardware: str, want: str, bits, lost) -> str:
        rows = load(net)
        unit = rows[0].lost.unit
        if shown != [net]:
            shown[:] = [net]
            sizes = [row.nbytes / plot.KB for row in rows]
            _axes(ax, unit)
            ax.set_xlim(0.8 * min(sizes), 1.25 * max(sizes))
            if tuple(controls["lost"].options) != LOST[unit]:
                controls["lost"].options = LOST[unit]
                controls["lost"].value = lost = ANY
        found = answer(net, data, hardware, want, bits, lost)
        answers = [row for row, reason in found.out if reason.startswith(("beaten", "no gain"))]
        for line, those in ((fit, answers), (pale, [row for row, _ in found.out if row not in answers]),
                            (rungs, [row for row in found.rows if not row.integers]), (whole, [row for row in found.rows if row.integers])):
            line.set_data([row.nbytes / plot.KB for row in those], [row.lost.value for row in those])
        bars.set_segments([np.array([[row.nbytes / plot.KB, row.lost.low], [row.nbytes / plot.KB, row.lost.high]]) for row in found.rows])
        if not found.rows:
            return str(found)
        ends = {"The smallest" if want == "size" else "The fastest": 0, "The best": -1}
        said = [f"{name}, <b>{found.rows[i].name}</b>: {found.reasons[i]} (record {found.rows[i].record})" for name, i in ends.items()]
        count = len(found.rows)
        return "1 method remains. " + said[0] + "." if count == 1 else f"{count} rungs.<br>" + ".<br>".join(said) + "."

    return widgets.Live(fig, update, **controls)


def answer(net: str, data: str, hardware: str, want: str, bits, lost) -> Advice:
    """advise, with ANY for None.

    >>> [row.name for row in answer("cnn", "calibration", "microcontroller", "size", ANY, ANY).rows]
    ['INT8, per channel']
    """
    none = {ANY: None}
    return advise(load(net), data, data == "training", none.get(hardware, hardware), want, none.get(bits, bits), none.get(lost, lost))
