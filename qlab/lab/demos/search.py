"""Notebook 17: tables of a record of qlab.lab.experiments.search, and a widget: what an integer program makes of a budget.

The widget. Left: the bits of each layer. Right: accuracy against the budget, as the layers' single drops add up to it, and as the test
images say. A switch pays in bytes or in bit operations.
"""

from collections.abc import Mapping, Sequence

import ipywidgets

from qlab.lab import plot, widgets
from qlab.lab.significance import Accuracy, holm, mcnemar

COSTS = ("bytes", "bit operations")
KINDS = {"first": plot.COLORS["accent"], "depthwise": plot.COLORS["error"], "pointwise": plot.COLORS["linear"],
         "last": plot.COLORS["float"]}


def compare(rows: Mapping[str, Accuracy], pairs: Sequence[tuple[str, str]]) -> str:
    """A line for each pair, (this, than that): the difference in points with its 95 % interval, and p of all of them together (Holm).

    >>> import torch
    >>> right = torch.arange(1000) % 10 > 0
    >>> print(compare({"a": Accuracy(right), "b": Accuracy(right | True)}, [("b", "a")]))
    b minus a: +10.00 points [+8.10, +11.86], p < 0.001
    """
    tests = [mcnemar(rows[that], rows[this]) for this, that in pairs]
    lines = []
    for (this, that), test, p in zip(pairs, tests, holm([test.p for test in tests])):
        said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}{': inside the noise' if p >= 0.05 else ''}"
        lines.append(f"{this} minus {that}: {100 * test.difference:+.2f} points [{100 * test.low:+.2f}, {100 * test.high:+.2f}], {said}")
    return "\n".join(lines)


def table(rows: Mapping[str, Mapping], names: Sequence[str]) -> str:
    """A line for each row: accuracy with its interval, bytes, and the bits of every layer."""
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {row['result']!s:19}  {row['nbytes']:6,} bytes  {' '.join(map(str, row['bits']))}"
                     for name, row in ((name, rows[name]) for name in names))


def kind_of(layers: Sequence[str]) -> list[str]:
    """What each layer is called in the picture's colours.

    >>> kind_of(["conv", "block1.depthwise", "block1.pointwise", "fc"])
    ['first', 'depthwise', 'pointwise', 'last']
    """
    inner = ["depthwise" if "depthwise" in name else "pointwise" for name in layers[1:-1]]
    return ["first", *inner, "last"]


def spend(rows: Mapping[str, Mapping], bits: float = 3.0, cost: str = COSTS[0]) -> widgets.Live:
    """A budget, in bytes or bit operations, is spent on the layers of a network: bits of each, accuracy predicted and measured.

    rows: the part budgets of a record, one network's. Raises ValueError for a record without it.
    """
    budgets = sorted({float(name.split(", ")[1].split()[0]) for name in rows if name != "float"})
    if "float" not in rows or not budgets:
        raise ValueError("rows hold no budgets: run python -m qlab.lab.experiments.search budgets.")
    whole, layers = rows["float"]["result"], rows["float"]["layers"]
    paths = {name: [rows[f"{name}, {b:g} bits"] for b in budgets] for name in COSTS}
    controls = {
        "budget, bits a weight": ipywidgets.SelectionSlider(options=[(f"{b:g}", b) for b in budgets], value=bits),
        "pay in": ipywidgets.ToggleButtons(options=COSTS, value=cost),
    }
    fig, (ax, curve_ax) = widgets.figure(9.4, 3.7, ncols=2, width_ratios=(1.25, 1))
    kinds = kind_of(layers)
    bars = ax.bar(range(len(layers)), [0] * len(layers), color=[KINDS[kind] for kind in kinds])
    ax.set(xlabel="layer, from the image to the classes", ylabel="bits", ylim=(0, 8.3), xlim=(-0.7, len(layers) - 0.3),
           xticks=range(len(layers)), yticks=range(0, 9, 2))
    ax.set_xticklabels([str(i + 1) for i in range(len(layers))])
    level = ax.axhline(0, color=plot.COLORS["muted"], linestyle=(0, (4, 3)), linewidth=1.1)
    ax.legend([bars[kinds.index(kind)] for kind in KINDS if kind in kinds], [kind for kind in KINDS if kind in kinds], ncols=4,
              loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9.5, handlelength=1.2, columnspacing=1.0)
    curve_ax.axhline(100 * whole.value, color=plot.COLORS["float"], linestyle=plot.LINESTYLES["float"], linewidth=1)
    curve_ax.text(budgets[0], 100 * whole.value + 1.5, "float32", fontsize=10)
    lines = {"predicted": curve_ax.plot(budgets, budgets, color=plot.COLORS["muted"], linestyle=(0, (2, 2)), label="predicted")[0],
             "measured": curve_ax.plot(budgets, budgets, color=plot.COLORS["linear"], marker="o", markersize=4, label="measured")[0]}
    here, = curve_ax.plot([], [], "o", color=plot.COLORS["accent"], markersize=10, markeredgecolor="black")
    curve_ax.set(xlabel="budget (bits a weight, if all were alike)", ylabel="accuracy (%)", ylim=(0, 105),
                 xlim=(budgets[0] - 0.1, budgets[-1] + 0.1))
    curve_ax.legend(loc="lower right", fontsize=10)

    def update(**values) -> str:
        bits, cost = values["budget, bits a weight"], values["pay in"]
        row = paths[cost][budgets.index(bits)]
        for bar, height in zip(bars, row["bits"]):
            bar.set_height(height)
        level.set_ydata([bits, bits])
        lines["predicted"].set_ydata([100 * max(0.0, r["predicted"]) for r in paths[cost]])
        lines["measured"].set_ydata([100 * r["result"].value for r in paths[cost]])
        here.set_data([bits], [100 * row["result"].value])
        low, high = row["result"].low, row["result"].high
        return (f"{bits:g} bits a weight, paid in {cost}: {row['nbytes']:,} bytes, {row['bitops'] / 1e6:.0f} million bit operations an "
                f"image; predicted {100 * max(0.0, row['predicted']):.1f} %, <b>measured {100 * row['result'].value:.1f} %</b> "
                f"[{100 * low:.1f}, {100 * high:.1f}].")

    return widgets.Live(fig, update, **controls)
