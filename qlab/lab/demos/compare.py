"""Notebook 05: the record's networks by size and accuracy as pictures and tables, and the paired test between two of the methods.

The accuracies are spread by the logarithm of the errors, so that 92 and 93 % stay apart while 10 % is still on the page. The tables take
the page's own correction for many tests: correct, from a list of p-values to the adjusted ones in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

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
    """Size against accuracy of one network's rows of qlab.lab.sweep.load, one line a method, on error_scale.

    per: "tensor" or "channel". At the top, above linear's points, stand their bits. Without ax, a new figure of pyplot's.
    """
    mine = sorted((row for row in rows if row["net"] == net), key=lambda row: row["bits"])
    of = {method: [row for row in mine if (row["method"], row["per"]) == (method, per)] for method in METHODS}
    points = {method: [_size_and_interval(row) for row in of[method]] for method in METHODS}
    reference = next(_size_and_interval(row) for row in mine if row["method"] == "float")
    ax = plot.pareto(points, reference, ax)
    error_scale(ax, high=96)
    for drawn in ax.containers:
        drawn.lines[0].set_markersize(4)  # larger marks would cover most of the intervals
    for row in of["linear"]:              # at the top no line passes
        ax.text(row["nbytes"] / plot.KB, 0.99, str(row["bits"]), transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=10,
                color=plot.INK["linear"])
    return ax


def league(rows: list[dict], contests: Mapping[tuple[str, str], Sequence[tuple | None]], correct: Callable) -> str:
    """A table of contests: within each, every pair of candidates is tested; the p-values of all contests are corrected together.

    contests: (net, name) -> candidates (method, per, bits), None for one that does not take part, in the same order in each. A star marks
    the best of a contest and every candidate that the corrected test does not find worse (p >= 0.05).
    """
    table = _by_key(rows)
    pairs = {(*key, a, b): mcnemar(table[key[0], *a]["result"], table[key[0], *b]["result"])
             for key, candidates in contests.items() for a, b in combinations(filter(None, candidates), 2)}
    p = dict(zip(pairs, correct([test.p for test in pairs.values()])))
    columns = [next(c for c in column if c)[:2] for column in zip(*contests.values())]
    before, after = (sum(q < 0.05 for q in ps) for ps in ([test.p for test in pairs.values()], p.values()))
    lines = [f"{len(p)} tests: p < 0.05 in {before}, corrected in {after}",
             " " * 19 + "".join(f"{f'{method}/{per[:2]}':>11}" for method, per in columns)]
    for key, candidates in contests.items():
        accuracy = {c: table[key[0], *c]["result"].value for c in candidates if c}
        best = max(accuracy, key=accuracy.get)
        level = {c for c in accuracy if c == best or p[*key, *sorted((c, best), key=list(accuracy).index)] >= 0.05}
        cells = [f"({c[2]}) {100 * accuracy[c]:.1f}{'*' if c in level else ' '}" if c else "- " for c in candidates]
        lines.append(f"{key[0]:<10}{key[1]:>9}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def gains(rows: list[dict], bits: int, correct: Callable) -> str:
    """A table: what a scale or codebook a channel gains over one a tensor, in points, and pays in bytes; ? where corrected p >= 0.05."""
    table = _by_key(rows)
    pairs = {(net, method): [table[net, method, per, bits] for per in ("tensor", "channel")]
             for net in dict.fromkeys(row["net"] for row in rows) for method in METHODS}
    tests = [mcnemar(a["result"], b["result"]) for a, b in pairs.values()]
    lines = [f"{f'{bits} bits':<18}per tensor  per channel     gain    bytes"]
    for ((net, method), (a, b)), test, p in zip(pairs.items(), tests, correct([test.p for test in tests])):
        lines.append(f"{net:<10}{method:<8}{100 * a['result'].value:>9.1f}%{100 * b['result'].value:>12.1f}%"
                     f"{100 * test.difference:>+8.2f}{' ' if p < 0.05 else '?'}{b['nbytes'] / a['nbytes'] - 1:>+8.1%}")
    return "\n".join(lines)


def smallest(rows: list[dict], loss: float) -> str:
    """A table: for each network and method the fewest bytes that lose at most so many points of float.

    seen: the measured difference is within the loss. shown: so is the whole 95 % interval of the paired difference.
    """
    table, lines = _by_key(rows), []
    for net in dict.fromkeys(row["net"] for row in rows):
        reference = table[net, "float", "tensor", 32]
        lines.append(f"{net}, float {reference['nbytes'] / plot.KB:.0f} KB")
        for method in METHODS:
            tests = [(row, mcnemar(reference["result"], row["result"])) for row in rows if (row["net"], row["method"]) == (net, method)]
            for name, end in (("seen", "difference"), ("shown", "low")):
                # 1e-9: so that a loss of exactly so many points counts
                good = [row for row, test in tests if 100 * getattr(test, end) >= -loss - 1e-9]
                row = min(good, key=lambda row: row["nbytes"], default=None)
                what = "none" if row is None else (
                    f"{row['bits']} bits per {row['per']:<8}{row['nbytes'] / plot.KB:>6.1f} KB, "
                    f"{reference['nbytes'] / row['nbytes']:.1f} times smaller, {100 * row['result'].value:.1f} %")
                lines.append(f"  {method:<8}{name:<6} {what}")
    return "\n".join(lines)


def pareto(rows: list[dict], net: str | None = None, per: str = "tensor", bits: int = 4, a: str = "linear",
           b: str = "kmeans") -> widgets.Live:
    """Size against accuracy of one network's rows (left), and by how much method B is better than A at each number of bits (right).

    rows: those of qlab.lab.sweep.load. net: the first network shown, by default the last of the rows.
    """
    table = _by_key(rows)
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
        self.names = [ax.annotate(name, (1, 50), (0, 0), textcoords="offset points", ha="center", va="center", fontweight="bold")
                      for name in ("A", "B")]
        self.net = None
        ax.set_xscale("log")
        ax.set(xlabel="size (KB, 1 KB = 1000 bytes)", ylabel="test accuracy (%), by log of errors")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        error_scale(ax, low=-60)  # room under the points of a network that guesses, for an A or a B
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
        higher = int(points[1][1] > points[0][1])
        for i, (name, xy) in enumerate(zip(self.names, points)):  # the lines rise to the right: above left and below right is room
            name.xy = xy
            name.set_position((-14, 14) if i == higher else (14, -14))


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


def _by_key(rows: list[dict]) -> dict[tuple, dict]:
    return {(row["net"], row["method"], row["per"], row["bits"]): row for row in rows}


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
