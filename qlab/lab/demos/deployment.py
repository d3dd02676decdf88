"""Notebook 14's table and widget: one network in every runtime, from the record of qlab.lab.experiments.deployment.

    cost of a million images = (seconds an image * 10**6) * threads / 3600 * price of a core for an hour

if all those threads' cores are busy with nothing else. The price is an assumption of the reader's.
"""

import ipywidgets
import numpy as np
from matplotlib.ticker import LogLocator

from qlab.lab import plot, widgets
from qlab.lab.experiments.deployment_files import CORTEX, HOST, LITERT, MICRO, ONE_BY_ONE, ONNX, OURS, TORCH

RUNTIMES = (OURS, *LITERT, MICRO, HOST, CORTEX, *ONNX, *TORCH)
PARTS = ("integer", "litert", "micro", "c", "cortex", "onnx", "pytorch")
FAMILIES = {"qlab": "muted", "LiteRT": "linear", "tflite-micro": "linear", "C": "kmeans", "ONNX Runtime": "log", "PyTorch": "accent"}


def rows(record: dict, net: str) -> dict[str, dict]:
    """What the record says of a network in each runtime, in the order of RUNTIMES. Raises ValueError for an unknown network."""
    if net not in record["integer"]:
        raise ValueError(f"net is {net!r}, and must be one of {', '.join(record['integer'])}.")
    found = {name: row for part in PARTS for name, row in record[part][net].items()}
    return {name: found[name] for name in RUNTIMES}


def computed(row: dict) -> str:
    """How many of its layers a runtime multiplied in integers.

    >>> computed({"in_integers": 2, "in_floats": 3}), computed({"in_integers": 5, "in_floats": 0})
    ('2 of 5', 'all')
    """
    done, rest = row["in_integers"], row["in_floats"]
    return "all" if not rest else "none" if not done else f"{done} of {done + rest}"


def microseconds(record: dict, net: str, runtime: str, threads: int = 1, batch: int = 1) -> float | None:
    """The time of an image; None where there is none: a Cortex-M4 in an emulator, or a number of threads that was not measured.

    What takes one image after the other, on one thread, needs as long for each whatever the batch and the threads.
    """
    times = record["timing"][net]["us"].get(runtime)
    if times is None:
        return None
    if runtime in ONE_BY_ONE:
        threads, batch = 1, 1
    return times.get(str(threads), {}).get(str(batch))


def memory(record: dict, net: str, runtime: str) -> str:
    """What a runtime needs beside the file: an arena or all RAM, in bytes; else what it adds to a Python process, in megabytes."""
    row = rows(record, net)[runtime]
    if "measured" in row:
        return f"{row['measured']['ram_bytes']:,} RAM"
    if "arena" in row or "arena_bytes" in row:
        return f"{row['arena']['total'] if 'arena' in row else row['arena_bytes']:,} arena"
    kb = record["memory"][net]
    held = next((kb[name] - kb["Python with NumPy"] for name in kb if runtime.startswith(name)), kb["PyTorch"] - kb["Python with NumPy"])
    return f"{held / 1000:.0f} MB"


def table(record: dict, net: str) -> str:
    """One network in every runtime, as a table in Markdown."""
    lines = ["| runtime | right | same bits | apart | in integers | bytes | \u00b5s an image | memory |",
             "| :--- " + "| ---: " * 7 + "|"]
    for name, row in rows(record, net).items():
        right = f"{row['correct']:,}" if row["images"] == 10_000 else f"{row['correct']} of {row['images']}"
        same, us = "" if row["same_bits"] is None else f"{row['same_bits']:,}", microseconds(record, net, name)
        lines.append(f"| {name} | {right} | {same} | {row['most_codes_apart']:.0f} | {computed(row)} | {row['nbytes']:,} | "
                     f"{f'{us:,.0f}' if us else ''} | {memory(record, net, name)} |")
    return "\n".join(lines)


SAME = ("tflite-micro", "C", "LiteRT, reference", "LiteRT, built-in", "LiteRT, XNNPACK")
SIGNAL = ("ONNX Runtime, static", "PyTorch, static")


def others(record: dict) -> str:
    """Other people's networks in every runtime (experiments.other_networks), as a table in Markdown."""
    names = [name.removeprefix("LiteRT, ") for name in SAME]
    floats = [f"{name.removesuffix(', static')}, dB" for name in SIGNAL]
    lines = [f"| network | image | parameters | qlab, dB | {' | '.join(names + floats)} |",
             "| :--- | :--- " + "| ---: " * (2 + len(SAME) + len(SIGNAL)) + "|"]
    for name, row in record["networks"].items():
        image, codes = " x ".join(str(n) for n in row["image"]), [_share(row[runtime]) for runtime in SAME]
        signal = ["refused" if "refused" in row[runtime] else f"{row[runtime]['dB']:.1f}" for runtime in SIGNAL]
        lines.append(f"| {name} | {image} | {row['parameters']:,} | {row['integer']:.1f} | {' | '.join(codes + signal)} |")
    return "\n".join(lines)


def _share(row: dict) -> str:
    """The share of codes that are qlab's; and where they are not, how far apart the others are."""
    if "refused" in row:
        return "refused"
    share = "over 99.9 %" if row["same"] >= 0.9995 else f"{100 * row['same']:.1f} %"
    return "all" if not row["largest"] else f"{share}, {row['largest']} apart"


def refused(record: dict) -> list[tuple[str, str, str]]:
    """(network, runtime, what it says) for whatever a runtime does not take."""
    return [(name, runtime, row[runtime]["refused"]) for name, row in record["networks"].items() for runtime in row
            if isinstance(row[runtime], dict) and "refused" in row[runtime]]


def threads_of(record: dict, net: str) -> list[int]:
    """The numbers of threads that were timed."""
    return sorted({int(threads) for times in record["timing"][net]["us"].values() for threads in times})


def batches_of(record: dict, net: str) -> list[int]:
    return sorted({int(batch) for times in record["timing"][net]["us"].values() for of in times.values() for batch in of})


def cost_of_a_million(us: float, threads: int, price: float) -> float:
    """For a million images of so many microseconds each, at a price for a core and an hour.

    >>> round(cost_of_a_million(360, 1, 0.05), 6)
    0.005
    """
    return us * threads / 3600 * price


def pick(record: dict, net: str = "cnn", runtime: str = "ONNX Runtime, static") -> widgets.Live:
    """Every runtime's time and bytes for one network; the chosen one in full colour, with all that is known of it below.

    record: of qlab.lab.experiments.deployment. Raises ValueError for a network or a runtime that is not in it.
    """
    tables = {name: rows(record, name) for name in record["integer"]}
    if net not in tables or runtime not in RUNTIMES:
        known, value = (tables, net) if net not in tables else (RUNTIMES, runtime)
        raise ValueError(f"{value!r} is not in the record, which has {', '.join(known)}.")
    toggle = ipywidgets.ToggleButtons
    controls = {
        "net": toggle(options=list(tables), value=net, description="network"),
        "runtime": ipywidgets.Dropdown(options=RUNTIMES, value=runtime, layout={"width": "320px"}),
        "batch": toggle(options=batches_of(record, net), description="batch"),
        "threads": toggle(options=threads_of(record, net), description="threads"),
        "price": ipywidgets.FloatText(0.05, step=0.01, description="price of a core-hour", layout={"width": "220px"}),
    }
    fig, (ax, right) = widgets.figure(9.2, 5.2, ncols=2, sharey=True, width_ratios=(1.5, 1))
    at = np.arange(len(RUNTIMES))
    colors = [plot.COLORS[next(color for family, color in FAMILIES.items() if name.startswith(family))] for name in RUNTIMES]
    dots = {axis: axis.scatter(np.ones(len(at)), at, color=colors, zorder=3) for axis in (ax, right)}  # a log axis has no zero for bars
    notes = {axis: [axis.text(1, i, "", va="center", fontsize=9) for i in at] for axis in (ax, right)}
    us = [u for name in tables for r in RUNTIMES for b in batches_of(record, name) for t in threads_of(record, name)
          if (u := microseconds(record, name, r, t, b))]
    ax.set(xscale="log", xlim=(0.5 * min(us), 12 * max(us)), yticks=at, ylim=(len(at) - 0.4, -0.6), xlabel="microseconds an image")
    ax.set_yticks(at, RUNTIMES, fontsize=9.5)
    right.set(xscale="log", xlim=(30, 3000), xlabel="size (KB, 1 KB = 1000 bytes)", xticks=(30, 100, 300, 1000))
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    right.xaxis.set_major_formatter("{x:,.0f}")
    for axis in (ax, right):
        axis.minorticks_off()
    right.tick_params(axis="y", length=0)

    def update(net: str, runtime: str, batch: int, threads: int, price: float) -> str:
        table, chosen = tables[net], RUNTIMES.index(runtime)
        times = [microseconds(record, net, name, threads, batch) for name in RUNTIMES]
        shown = {ax: [(time, f"{time:,.0f}" if time else "in an emulator") for time in times],
                 right: [(row["nbytes"] / plot.KB, f"{row['nbytes'] / plot.KB:,.1f}") for row in table.values()]}
        alpha, area = np.full(len(RUNTIMES), 0.45), np.full(len(RUNTIMES), 40)
        alpha[chosen], area[chosen] = 1, 90
        for axis, values in shown.items():
            low = axis.get_xlim()[0]
            dots[axis].set(offsets=[(value or np.nan, i) for i, (value, _) in enumerate(values)], alpha=alpha, sizes=area)
            for i, (value, text) in enumerate(values):
                notes[axis][i].set(x=1.35 * value if value else 1.15 * low, text=text, fontweight="bold" if i == chosen else "normal")
        used = 1 if runtime in ONE_BY_ONE else threads
        return f"<b>{runtime}</b>, {net}: {_told(table[runtime])} {_time(times[chosen], table[runtime], used, price)}"

    return widgets.Live(fig, update, **controls)


def _told(row: dict) -> str:
    if row["same_bits"] is None:
        bits = f"logits up to {row['most_codes_apart']:g} of qlab's steps apart"
    else:
        bits = f"qlab's codes on {row['same_bits']:,} of {row['images']:,}, at most {row['most_codes_apart']:g} apart"
    return f"{row['result']} of {row['images']:,} images right, {bits}, layers in integers: {computed(row)}."


def _time(us: float | None, row: dict, threads: int, price: float) -> str:
    if us is None:
        return f"{row['measured']['instructions']:,} instructions an image; an emulator's time says nothing."
    if not price > 0:
        return f"{1e6 / us:,.0f} images a second."
    return f"{1e6 / us:,.0f} images a second, <b>{cost_of_a_million(us, threads, price):.3g}</b> for a million images."
