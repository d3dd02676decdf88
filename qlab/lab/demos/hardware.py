"""Notebook 13's two widgets: a systolic array stepped through its cycles, and the roofline of one product on several machines.

The peaks of MACHINES are those of the makers' own tables, named in `source`: dense (no sparsity), float32 without TF32. What a
product may reach follows from them by `qlab.matmul.roofline`, if each matrix crosses the memory bus once. On the TPU v1 only the weights
do: activations and results stay in buffers on the chip (Jouppi et al. 2017, section 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qlab.lab import plot, widgets
from qlab.matmul import roofline, systolic

WIDTHS = {"float32": (4, 4), "float16": (2, 2), "int8": (1, 4)}  # format: bytes of a factor's element, of a result's
FORMAT_COLORS = {"float32": plot.COLORS["float"], "float16": plot.COLORS["log"], "int8": plot.COLORS["linear"]}
LARGEST = 4  # elements on an edge of the array that is drawn


@dataclass(frozen=True)
class Machine:
    """bandwidth in bytes/s; peaks: format -> operations/s (a multiplication and an addition are two); source of the figures; weights_only:
    whether only the second factor of a product crosses the memory bus.

    >>> round(MACHINES["TPU v1"].roof("int8").ridge)
    2706
    """

    bandwidth: float
    peaks: Mapping[str, float]
    source: str
    weights_only: bool = False

    def roof(self, number_format: str) -> roofline.Roof:
        """The roofline of one format; raises KeyError where the machine has no peak for it."""
        return roofline.Roof(self.peaks[number_format], self.bandwidth)

    def intensity(self, number_format: str, m: int, k: int, n: int) -> float:
        """Operations/byte of an (m, k) by (k, n) product on this machine.

        >>> MACHINES["TPU v1"].intensity("int8", 64, 600, 600)
        128.0
        """
        factor, result = WIDTHS[number_format]
        return 2.0 * m / factor if self.weights_only else roofline.matmul_intensity(m, k, n, factor, result)

    def seconds(self, number_format: str, m: int, k: int, n: int) -> tuple[float, float]:
        """Seconds that an (m, k) by (k, n) product needs at least for its traffic, and for its arithmetic.

        >>> traffic, arithmetic = MACHINES["A100"].seconds("int8", 1, 4096, 4096)
        >>> f"{traffic * 1e6:.2f} and {arithmetic * 1e6:.2f} microseconds"
        '8.24 and 0.05 microseconds'
        """
        operations = 2 * m * k * n
        return operations / self.intensity(number_format, m, k, n) / self.bandwidth, operations / self.peaks[number_format]


MACHINES = {
    "Haswell CPU": Machine(51e9, {"float32": 1.3e12, "int8": 2.6e12}, "Xeon E5-2699 v3, 18 cores: Jouppi et al. 2017, table 2"),
    "TPU v1": Machine(34e9, {"int8": 92e12}, "Jouppi et al. 2017, table 2", weights_only=True),
    "A100": Machine(2039e9, {"float32": 19.5e12, "float16": 312e12, "int8": 624e12}, "NVIDIA A100 SXM 80 GB, data sheet, dense, no TF32"),
    "H100": Machine(3350e9, {"float32": 67e12, "float16": 989.4e12, "int8": 1978.9e12}, "NVIDIA H100 SXM, data sheet, dense, no TF32"),
}


def array_steps(size: int = 3, m: int = 4, k: int = 3, n: int = 3, seed: int = 0) -> widgets.Live:
    """A systolic array, size x size, that multiplies a small (m, k) by a (k, n), cycle by cycle; a button plays it.

    In an element: its weight (top left), its activation (top right), its sum (large). Pink: a useful product; grey: padded. Left: the rows
    of a that wait, skewed. Below: what leaves. Raises ValueError for sizes that the sliders lack: size 1 to 4, m 1 to 8, k and n 1 to 6.
    """
    for name, (value, most) in {"size": (size, LARGEST), "m": (m, 8), "k": (k, 6), "n": (n, 6)}.items():
        if not 1 <= value <= most:
            raise ValueError(f"{name} is {value}, and must be from 1 to {most}.")
    rng = np.random.default_rng(seed)
    all_a, all_b = rng.integers(-9, 10, (8, 6), np.int8), rng.integers(-9, 10, (6, 6), np.int8)
    controls = {
        "size": ipywidgets.IntSlider(size, 1, LARGEST, description="array"),
        "m": ipywidgets.IntSlider(m, 1, 8, description="M, rows of a"),
        "k": ipywidgets.IntSlider(k, 1, 6, description="K"),
        "n": ipywidgets.IntSlider(n, 1, 6, description="N"),
        "cycle": ipywidgets.IntSlider(0, 0, 1),
    }
    fig, (ax, right) = widgets.figure(8.8, 4.3, ncols=2, width_ratios=(1.75, 1))
    ax.set(xlim=(-3.1, LARGEST), ylim=(LARGEST + 0.75, -0.62), aspect="equal")
    ax.axis("off")
    places = [(i, j) for i in range(LARGEST) for j in range(LARGEST)]
    boxes = {at: ax.add_patch(Rectangle((at[1] + 0.04, at[0] + 0.04), 0.92, 0.92, edgecolor="#555555")) for at in places}
    corner = {"fontsize": 9.5, "va": "center", "ha": "center"}
    weights = {(i, j): ax.text(j + 0.24, i + 0.24, "", color=plot.INK["linear"], **corner) for i, j in places}
    activations = {(i, j): ax.text(j + 0.76, i + 0.24, "", color=plot.INK["error"], **corner) for i, j in places}
    sums = {(i, j): ax.text(j + 0.5, i + 0.63, "", fontsize=12.5, va="center", ha="center") for i, j in places}
    waiting = {(i, d): ax.text(0.35 - 0.6 * d, i + 0.5, "", color=plot.INK["error"], **corner)
               for i in range(LARGEST) for d in range(1, 6)}
    leaving = [ax.text(j + 0.5, 0, "", fontsize=11, va="center", ha="center", weight="bold") for j in range(LARGEST)]
    phase = ax.text(-3.0, -0.4, "", fontsize=11, va="center")
    for y, (what, color) in enumerate({"weight": "linear", "activation": "error", "sum": "float"}.items()):
        ax.text(-3.0, 3.45 + 0.32 * y, what, fontsize=10.5, va="center", color=plot.INK[color])
    curve, = right.plot([], [], color=plot.COLORS["muted"], linewidth=1.4)
    so_far, = right.plot([], [], color=plot.COLORS["float"])
    here, = right.plot([], [], "o", color=plot.COLORS["accent"], markersize=9)
    right.set(xlabel="cycle", ylabel="utilization so far (%)", ylim=(0, 100))
    right.yaxis.set_major_locator(plot.plt.MultipleLocator(20))
    right.xaxis.set_major_locator(plot.plt.MaxNLocator(5, integer=True))
    known = {"shape": None, "states": []}

    def update(size: int, m: int, k: int, n: int, cycle: int) -> str:
        a, b = all_a[:m, :k], all_b[:k, :n]
        if known["shape"] != (size, m, k, n):
            known.update(shape=(size, m, k, n), states=list(systolic.steps(a, b, size, size)))
            right.set_xlim(-0.5, len(known["states"]) - 0.5)
        states = known["states"]
        last = len(states) - 1
        controls["cycle"].max = player.max = last
        cycle = min(cycle, last)
        state = states[cycle]
        for (i, j), box in boxes.items():
            shown = i < size and j < size
            used = shown and state.tile[0] + i < k and state.tile[1] + j < n
            box.set_visible(shown)
            box.set_facecolor("#F4D6E6" if shown and state.active[i, j] else "white" if used else "#E4E4E4")
            weights[i, j].set_text(f"{state.weight[i, j]}" if shown else "")
            busy = shown and state.row[i, j] >= 0
            activations[i, j].set_text(f"{state.activation[i, j]}" if busy else "")
            sums[i, j].set_text(f"{state.partial_sum[i, j]}" if busy else "")
        size_n = min(size, n - state.tile[1])
        into_tile = cycle % (len(states) // (-(-k // size) * -(-n // size))) - size  # below 0 while the weights shift in
        for (i, d), text in waiting.items():
            row = into_tile - i + d
            entry = i < size and state.tile[0] + i < k and 0 <= row < m
            text.set_text(f"{a[row, state.tile[0] + i]}" if entry else "")
        for j, text in enumerate(leaving):
            done = next((value for _, column, value in state.out if column - state.tile[1] == j), None)
            text.set_text("" if done is None else f"\u2193 {done}")
            text.set_y(size + 0.28)
        of = f"tile b[{state.tile[0]}:{min(k, state.tile[0] + size)}, {state.tile[1]}:{state.tile[1] + size_n}]"
        phase.set_text(f"{of}: {'weights shift down' if state.loading else 'multiply'}")
        shares = [100 * s.utilization for s in states]
        curve.set_data(range(last + 1), shares)
        so_far.set_data(range(cycle + 1), shares[:cycle + 1])
        here.set_data([cycle], [shares[cycle]])
        left = "".join(f"; c[{row}, {column}] {'+=' if k > size else '='} {value} leaves" for row, column, value in state.out)
        return (f"Cycle {cycle} of {last}: {state.active.sum()} of {size * size} elements at work, <b>utilization so far "
                f"{shares[cycle]:.0f} %</b>, at the end {shares[-1]:.0f} %{left}.")

    player = ipywidgets.Play(min=0, max=1, interval=700)
    live = widgets.Live(fig, update, **controls)
    live.link = ipywidgets.jslink((controls["cycle"], "value"), (player, "value"))  # in the browser: one update a step, not two
    live.children[0].children += (player,)
    return live


def rooflines(machines: Mapping[str, Machine] = MACHINES, machine: str = "A100", number_format: str = "int8", m: int = 1,
              k: int = 4096, n: int = 4096) -> widgets.Live:
    """What an (m, k) by (k, n) product may reach on any of the named machines, and why.

    Left: the machine's roofs and the product; small dots are the same layer with other batches M. Right: the least time for the traffic
    and for the arithmetic in each format that the machine has; the longer of the two decides. Raises ValueError for no machines, an unknown
    name, or a size that is no power of two from 1 to 4,096 (m), from 64 to 16,384 (k, n).
    """
    if machine not in machines:
        raise ValueError(f"machine is {machine!r}, and must be one of {', '.join(machines) or 'at least one'}.")
    batches, widths = [2**e for e in range(13)], [2**e for e in range(6, 15)]
    for name, (value, allowed) in {"m": (m, batches), "k": (k, widths), "n": (n, widths)}.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value}, and must be a power of two from {allowed[0]:,} to {allowed[-1]:,}.")

    def slider(allowed: list[int], value: int, what: str):
        options = [(f"{x:,}", x) for x in allowed]
        return ipywidgets.SelectionSlider(options=options, value=value, description=what)

    controls = {
        "machine": ipywidgets.Dropdown(options=list(machines), value=machine, layout={"width": "220px"}),
        "number_format": ipywidgets.ToggleButtons(options=list(WIDTHS), value=number_format, description="format"),
        "m": slider(batches, m, "M, batch"), "k": slider(widths, k, "K"), "n": slider(widths, n, "N"),
    }
    fig, (ax, right) = widgets.figure(9.2, 4.0, ncols=2, width_ratios=(1.5, 1))
    x = np.logspace(-1, 5, 200)
    lines = {name: ax.plot([], [], color=color, linewidth=1.6, label=name)[0] for name, color in FORMAT_COLORS.items()}
    trail, = ax.plot([], [], "o", color=plot.COLORS["muted"], markersize=4)
    here, = ax.plot([], [], "o", color=plot.COLORS["accent"], markersize=11)
    ax.set(xscale="log", yscale="log", xlim=(0.1, 1e5), ylim=(1e8, 1e16), xlabel="intensity (operations/byte)", ylabel="operations/s")
    right.set(yticks=range(3), yticklabels=WIDTHS, ylim=(2.6, -0.6), xscale="log", xlim=(1e-9, 10), xlabel="least time")
    units = ((0.99, "s"), (0.99e-3, "ms"), (0.99e-6, "\u00b5s"), (0.99e-9, "ns"))  # 0.99: powers of ten are not exact
    right.xaxis.set_major_formatter(FuncFormatter(lambda t, _: next((f"{t / u:.0f} {name}" for u, name in units if t >= u), "")))
    for axis, step in ((ax.xaxis, 10), (ax.yaxis, 100), (right.xaxis, 1000)):
        axis.set_major_locator(LogLocator(step))
        axis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(plot.powers())
    right.grid(axis="y", visible=False)
    traffic, = right.plot([], [], "s", color=plot.COLORS["error"], markersize=9, label="traffic")
    arithmetic, = right.plot([], [], "o", color=plot.COLORS["kmeans"], markersize=9, label="arithmetic")
    notes = [right.text(1.5e-9, i, "", va="center", fontsize=10) for i in range(3)]
    ax.legend(loc="upper left", fontsize=10)
    right.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=10)

    def update(machine: str, number_format: str, m: int, k: int, n: int) -> str:
        chosen = machines[machine]
        for name, line in lines.items():
            line.set_data(x, chosen.roof(name).attainable(x)) if name in chosen.peaks else line.set_data([], [])
            line.set_linewidth(2.8 if name == number_format else 1.2)
        rows = [i for i, name in enumerate(WIDTHS) if name in chosen.peaks]
        times = [chosen.seconds(list(WIDTHS)[i], m, k, n) for i in rows]
        traffic.set_data([pair[0] for pair in times], rows)
        arithmetic.set_data([pair[1] for pair in times], rows)
        for i, note in enumerate(notes):
            note.set_text("" if i in rows else "no peak is stated")
        if number_format not in chosen.peaks:
            trail.set_data([], [])
            here.set_data([], [])
            return f"{machine} states no peak for {number_format}: choose another format. Source: {chosen.source}."
        roof = chosen.roof(number_format)
        at = [chosen.intensity(number_format, batch, k, n) for batch in batches]
        trail.set_data(at, roof.attainable(at))
        intensity = at[batches.index(m)]
        rate = roof.attainable(intensity)
        here.set_data([intensity], [rate])
        bound, share = "memory" if intensity < roof.ridge else "compute", 100 * rate / roof.peak
        return (f"{m:,} x {k:,} by {k:,} x {n:,} in {number_format}: {_number(intensity)} operations/byte, ridge at {_number(roof.ridge)}: "
                f"<b>{bound}-bound</b>, at most {_number(rate / 1e12)} of {_number(roof.peak / 1e12)} TOP/s ({_number(share)} %), "
                f"{_number(1e6 * max(chosen.seconds(number_format, m, k, n)))} \u00b5s. Source: {chosen.source}.")

    return widgets.Live(fig, update, **controls)


def _number(x: float) -> str:
    """Two or more digits, and never a power of ten: 0.0051, 2.0, 46, 1,365."""
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}" if x < 1 else f"{x:.1f}"
