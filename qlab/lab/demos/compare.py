"""Notebook 05's live figure: the record's networks by size and accuracy, and the paired test between two of the methods.

The accuracies are spread by the logarithm of the errors, so that 92 and 93 % stay apart while 10 % is still on the page.
"""

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from qlab.lab import plot, widgets
from qlab.lab.significance import McNemar, mcnemar

METHODS = ("linear", "log", "kmeans")
RING = {"marker": "o", "linestyle": "", "markersize": 17, "markerfacecolor": "none", "markeredgecolor": plot.COLORS["accent"],
        "markeredgewidth": 2.6}
TICKS = (10, 30, 50, 70, 80, 85, 90, 92, 94, 96)


def error_scale(ax: Axes, low: float = -10, high: float = 95) -> None:
    """Accuracies in percent from low to high, spread by the logarithm of the errors: half as many errors is the same height everywhere.

    A low below 0 leaves room under the points of a network that guesses.
    """
    ax.set_yscale("function", functions=(lambda y: -np.log(np.clip(100 - y, 1e-3, None)), lambda y: 100 - np.exp(-y)))
    ax.set(ylim=(low, high), yticks=[tick for tick in TICKS if low <= tick <= high])
    ax.yaxis.set_major_formatter("{x:g}")


def sizes(rows: list[dict], net: str, per: str, ax: Axes | None = None) -> Axes:
    """Size against accuracy of one network's rows of qlab.lab.sweep.load, one line a method, on error_scale; the bits beside linear's.

    per: "tensor" or "channel". Without ax, a new figure of pyplot's.
    """
    mine = sorted((row for row in rows if row["net"] == net), key=lambda row: row["bits"])
    of = {method: [row for row in mine if (row["method"], row["per"]) == (method, per)] for method in METHODS}
    points = {method: [_size_and_interval(row) for row in of[method]] for method in METHODS}
    reference = next(_size_and_interval(row) for row in mine if row["method"] == "float")
    ax = plot.pareto(points, reference, ax, {"linear": [row["bits"] for row in of["linear"]]})
    error_scale(ax)
    return ax


def pareto(rows: list[dict], net: str | None = None, per: str = "tensor", bits: int = 4, a: str = "linear",
           b: str = "kmeans") -> widgets.Live:
    """Left: size against accuracy of one network's rows. Right: the accuracy of method B minus that of A, at each number of bits.

    rows: those of qlab.lab.sweep.load. net: the first network shown, by default the last of the rows.
    """
    table = {(row["net"], row["method"], row["per"], row["bits"]): row for row in rows}
    nets = list(dict.fromkeys(row["net"] for row in rows))
    widths = sorted({row["bits"] for row in rows if row["method"] != "float"})
    fig, (left, right) = widgets.figure(8.6, 3.7, ncols=2, width_ratios=(1.25, 1))
    size = _Sizes(left)
    difference = _Differences(right, widths)

    def update(net, per, bits, A, B):
        size.show(table, net, per, widths, [(method, bits) for method in (A, B)])
        tests = [mcnemar(table[net, A, per, width]["result"], table[net, B, per, width]["result"]) for width in widths]
        difference.show(tests, widths.index(bits), A, B)
        return _caption(*(table[net, method, per, bits] for method in (A, B)), tests[widths.index(bits)])

    toggle = ipywidgets.ToggleButtons
    return widgets.Live(fig, update, net=ipywidgets.Dropdown(options=nets, value=net or nets[-1], description="network"),
                        bits=ipywidgets.IntSlider(bits, widths[0], widths[-1]),
                        per=toggle(options=["tensor", "channel"], value=per, style={"button_width": "5.5em"}),
                        A=toggle(options=METHODS, value=a, style={"button_width": "6em"}),
                        B=toggle(options=METHODS, value=b, style={"button_width": "6em"}))


class _Sizes:
    """The panel on the left: one line a method, pale for the granularity that is not chosen, and a ring round A and B."""

    def __init__(self, ax: Axes):
        self.ax = ax
        styles = dict(zip(METHODS, plot.line_styles(METHODS)))
        self.pale = {m: ax.plot([], [], color=s["color"], linestyle=s["linestyle"], alpha=0.3, linewidth=1.3)[0] for m, s in styles.items()}
        self.lines = {m: ax.plot([], [], **s)[0] for m, s in styles.items()}
        self.bars = {m: ax.vlines([], 0, 0, color=s["color"], linewidth=1.4) for m, s in styles.items()}
        self.reference = ax.axhline(0, color=plot.COLORS["float"], linestyle=plot.LINESTYLES["float"], linewidth=1.3, label="float")
        self.rings, = ax.plot([], [], **RING)
        self.names = [ax.annotate(name, (1, 50), (side * 17, -5), textcoords="offset points", ha="center", fontweight="bold",
                                  bbox={"color": "white", "alpha": 0.7, "pad": 0})
                      for name, side in (("A", -1), ("B", 1))]  # either side: they stay apart where the points do not
        self.net = None
        ax.set_xscale("log")
        ax.set(xlabel="size (KB, 1 KB = 1000 bytes)", ylabel="test accuracy (%), by log of errors")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        error_scale(ax)
        ax.legend(loc="lower right", handles=[*self.lines.values(), self.reference])

    def show(self, table: dict, net: str, per: str, widths: list[int], chosen: list[tuple]) -> None:
        if net != self.net:
            sizes = [row["nbytes"] / plot.KB for row in table.values() if row["net"] == net and row["method"] != "float"]
            low, high = min(sizes) / 1.5, max(sizes) * 1.1  # on the left there is room for an A
            self.ax.set(xlim=(low, high), xticks=[t for t in (10, 20, 30, 40, 50, 70, 100, 200, 300, 500, 1000) if low < t < high])
            self.reference.set_ydata([100 * table[net, "float", "tensor", 32]["result"].value] * 2)
            self.net = net
        other = {"tensor": "channel", "channel": "tensor"}[per]
        for method in METHODS:
            self.pale[method].set_data(*zip(*(_point(table[net, method, other, width]) for width in widths)))
            self.lines[method].set_data(*zip(*(_point(table[net, method, per, width]) for width in widths)))
            self.bars[method].set_segments([_interval(table[net, method, per, width]) for width in widths])
        points = [_point(table[net, method, per, bits]) for method, bits in chosen]
        self.rings.set_data(*zip(*points))
        for name, xy in zip(self.names, points):
            name.xy = xy


class _Differences:
    """The panel on the right: B minus A in points with its 95 % interval; filled where p < 0.05; the chosen bits in a ring."""

    def __init__(self, ax: Axes, widths: list[int]):
        self.widths = np.array(widths)
        self.title = ax.text(0, 1.03, "", transform=ax.transAxes, size=13)  # a text, not the axes' title: those are redrawn with the frame
        ax.set_title(" ")                                                   # which keeps the place for it
        ink = plot.COLORS["float"]
        ax.axhline(0, color=plot.COLORS["muted"], linewidth=1.3)
        self.bars = ax.vlines(widths, 0, 0, color=ink, linewidth=1.6)
        self.noise, = ax.plot([], [], "o", color=ink, markerfacecolor="white", markersize=8)
        self.real, = ax.plot([], [], "o", color=ink, markersize=8)
        self.ring, = ax.plot([], [], **RING)
        ax.set_yscale("symlog", linthresh=1)
        ticks = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)
        ax.set(xlabel="bits per code", ylabel="B minus A (points)", xticks=widths, xlim=(widths[0] - 0.6, widths[-1] + 0.6))
        ax.set_ylim(-4000, 130)  # below the differences there is room for the legend
        ax.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
        ax.minorticks_off()
        mark = {"color": ink, "marker": "o", "linestyle": "", "markersize": 8}
        ax.legend(loc="lower right", ncols=2, fontsize=10, handles=[Line2D([], [], **mark, label="p < 0.05"),
                                              Line2D([], [], **mark, markerfacecolor="white", label="inside the noise")])

    def show(self, tests: list[McNemar], at: int, a: str, b: str) -> None:
        points, real = 100 * np.array([test.difference for test in tests]), np.array([test.significant for test in tests])
        self.bars.set_segments([[(width, 100 * test.low), (width, 100 * test.high)] for width, test in zip(self.widths, tests)])
        self.real.set_data(self.widths[real], points[real])
        self.noise.set_data(self.widths[~real], points[~real])
        self.ring.set_data([self.widths[at]], [points[at]])
        self.title.set_text(f"{b} minus {a}")


def _point(row: dict) -> tuple[float, float]:
    return row["nbytes"] / plot.KB, 100 * row["result"].value


def _size_and_interval(row: dict) -> tuple[int, float, float, float]:
    return row["nbytes"], row["result"].value, row["result"].low, row["result"].high


def _interval(row: dict) -> list[tuple[float, float]]:
    return [(row["nbytes"] / plot.KB, 100 * end) for end in (row["result"].low, row["result"].high)]


def _caption(a: dict, b: dict, test: McNemar) -> str:
    sides = [f"<b>{name}</b> {row['method']} per {row['per']}, {row['bits']} bits: {row['result']}, {row['nbytes']:,} bytes"
             for name, row in (("A", a), ("B", b))]
    if a is b:
        return f"{sides[0]}. Choose another method for B."
    more = 100 * (b["nbytes"] / a["nbytes"] - 1)
    bytes_ = "as many bytes" if a["nbytes"] == b["nbytes"] else f"{abs(more):.2g} % {'more' if more > 0 else 'fewer'} bytes"
    return f"{sides[0]}. {sides[1]} ({bytes_}). <b>Paired test:</b> {test}."
