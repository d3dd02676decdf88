"""Notebook 12's two widgets and a table: a tiled INT8 product, step by step, and the order of the tiles of the result.

    bytes moved = M K ceil(N / BLOCK_N) + K N ceil(M / BLOCK_M) + 4 M N          int8 operands, int32 result

A tile of the result needs BLOCK_M rows of a and BLOCK_N columns of b, and each tile fetches its own: so a is fetched once for each column
of tiles, b once for each row of tiles. Tiles that are computed at the same time can share what they fetch: that is what the order is for.
"""

import json
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib.patches import Rectangle

from qlab.lab import plot, widgets

SIZE = 16                     # rows and columns of the matrices that are drawn
TILES = (1, 2, 4, 8, 16)
GRID = 9                      # tiles on an edge of a, b and the result in the second widget
GAP = 2                       # between two matrices, in elements


def bytes_moved(m: int, k: int, n: int, block_m: int, block_n: int) -> int:
    """Bytes between memory and tiles, for an int8 (m, k) by (k, n) product with an int32 result, in tiles of block_m x block_n.

    Nothing but the tile is kept from one tile to the next: no cache. Raises ValueError for a size below 1.

    >>> bytes_moved(16, 16, 16, 1, 1), bytes_moved(16, 16, 16, 16, 16)
    (9216, 1536)
    """
    for name, size in {"m": m, "k": k, "n": n, "block_m": block_m, "block_n": block_n}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, and must be 1 or more.")
    return m * k * -(-n // block_n) + k * n * -(-m // block_m) + 4 * m * n


def order(tiles_m: int, tiles_n: int, group: int) -> np.ndarray:
    """Which tile the first, second, ... program computes, (tiles_m * tiles_n, 2): down a group of rows, then to the right.

    group = 1 goes row by row. As in Triton's tutorial 03 and `qlab.matmul.triton`. Raises ValueError for a size below 1.

    >>> order(2, 2, 1).tolist(), order(2, 2, 2).tolist()
    ([[0, 0], [0, 1], [1, 0], [1, 1]], [[0, 0], [1, 0], [0, 1], [1, 1]])
    """
    for name, size in {"tiles_m": tiles_m, "tiles_n": tiles_n, "group": group}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, and must be 1 or more.")
    program = np.arange(tiles_m * tiles_n)
    first, within = program // (group * tiles_n) * group, program % (group * tiles_n)
    height = np.minimum(tiles_m - first, group)  # the last group may be lower
    return np.column_stack([first + within % height, within // height])


def tiles_loaded(programs: np.ndarray, tiles_k: int) -> int:
    """Different tiles of a and b that programs (p, 2) need: tiles_k for each row of tiles of a, and for each column of b.

    >>> tiles_loaded(order(9, 9, 1)[:9], 9), tiles_loaded(order(9, 9, 3)[:9], 9)
    (90, 54)
    """
    return tiles_k * sum(len(np.unique(index)) for index in np.asarray(programs).T)


def milliseconds(path: Path) -> str:
    """The times in a record of qlab.lab.matmul_bench, and in brackets how many times as fast as float32 in the same run.

    A line for the record's machine, what its CPU has for INT8, and the date; then a row for what was timed, a column for each square
    product and for a row by 4,096 x 4,096, as far as the record has them. Of a CPU the times on one thread.
    """
    record, gpu = json.loads(Path(path).read_text()), "cuda" in Path(path).stem
    times = {}
    for row in record["rows"]:
        shape = tuple(row["shape"])
        if "ms" in row and (len(set(shape)) == 1 or shape == (1, 4096, 4096)) and (gpu or row["threads"] == 1):
            times.setdefault(row["what"], {})[shape] = row["ms"]
    shapes = sorted({shape for row in times.values() for shape in row}, key=lambda shape: (shape[0] == 1, shape))
    at = record["environment"]
    busy = ", while others kept it busy" if record.get("load", {}).get("quiet") is False else ""
    lines = [f"{at['cuda'] if gpu else _cpu(at)}, {at['date']}{busy}", f"{'milliseconds':24}" + "".join(f"{_size(s):>16}" for s in shapes)]
    for name, row in times.items():
        cells = [_time(row.get(shape), times.get("float32", {}).get(shape)) for shape in shapes]
        lines.append((f"{name:24}" + "".join(f"{cell:>16}" for cell in cells)).rstrip())
    return "\n".join(lines)


def _cpu(at: dict) -> str:
    """A record's CPU, and what it has for products of int8."""
    if at["architecture"] in ("aarch64", "arm64"):
        known = {"dot product": at["arm_dot"], "I8MM": at["arm_i8mm"]}
    else:
        known = {"VNNI": at["avx512_vnni"] or at["avx_vnni"], "AMX": at["amx_int8"]}
    limit = [f"oneDNN limited to {at['onednn_limit']}"] if at.get("onednn_limit") else []
    return ", ".join([at["cpu"], *(name if has else f"no {name}" for name, has in known.items()), *limit, "1 thread"])


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]:,}^3" if len(set(shape)) == 1 else "{:,}x{:,}x{:,}".format(*shape)


def _time(ms: float | None, float32: float | None) -> str:
    return "" if ms is None else f"{ms:.4g} ({float32 / ms:.2f})" if float32 else f"{ms:.4g}"


def _three_matrices(ax, size: int):
    """a below left, b above right, the result where they meet: three images, each of size x size, and their common scale of grey."""
    corners = {"a": (0, size + GAP), "b": (size + GAP, 0), "c": (size + GAP, size + GAP)}
    images = {name: ax.imshow(np.zeros((size, size)), vmin=0, vmax=1, cmap="gray_r", interpolation="nearest",
                              extent=(x, x + size, y + size, y)) for name, (x, y) in corners.items()}
    for x, y in corners.values():
        ax.add_patch(Rectangle((x, y), size, size, facecolor="none", edgecolor="#555555", linewidth=1))
    ax.set(xlim=(-0.4, 2 * size + GAP + 0.4), ylim=(2 * size + GAP + 0.4, -0.4), aspect="equal")
    ax.axis("off")
    return images, corners


def tiled_product(tile: int = 4, step: int = 23) -> widgets.Live:
    """A 16 x 16 by 16 x 16 product in square tiles: which tiles the step reads and adds to, and what has crossed memory so far.

    Left: an element of a or b is darker the more often it has been fetched, an element of c the more of its sum is done. Right: the bytes.
    Raises ValueError for a tile that is not in TILES, or a step that is not from 0 to (16 / tile)**3.
    """
    if tile not in TILES:
        raise ValueError(f"tile is {tile}, and must be one of {', '.join(map(str, TILES))}.")
    steps = (SIZE // tile) ** 3
    if not 0 <= step <= steps:
        raise ValueError(f"step is {step}, and must be from 0 to {steps:,} for tiles of {tile} x {tile}.")
    controls = {
        "tile": ipywidgets.SelectionSlider(options=[(f"{t} x {t}", t) for t in TILES], value=tile),
        "step": ipywidgets.IntSlider(step, 0, steps, _stride(tile)),
    }
    fig, (ax, right) = widgets.figure(9.0, 4.1, ncols=2, width_ratios=(1, 1.05))
    images, corners = _three_matrices(ax, SIZE)
    edge = {"facecolor": "none", "edgecolor": plot.COLORS["error"], "linewidth": 2.2}
    boxes = {name: ax.add_patch(Rectangle((0, 0), 1, 1, **edge)) for name in images}
    ax.text(0, SIZE - 3, "a, b: darker =\nfetched more often\n\nc: darker = more of\nits sums done", fontsize=9.5, va="bottom")
    for name, (x, y) in corners.items():
        at = {"a": (SIZE / 2, y + SIZE + 0.5), "b": (x - 0.6, SIZE / 2), "c": (x + SIZE / 2, y + SIZE + 0.5)}[name]
        ax.text(*at, name, ha="right" if name == "b" else "center", va="center" if name == "b" else "top", fontsize=12, weight="bold")
    lines = {}
    for t in TILES:
        count = (SIZE // t) ** 3
        at = range(0, count + 1, max(1, count // 512))
        lines[t], = right.plot([100 * s / count for s in at], [_so_far(t, s) / plot.KB for s in at])
        right.annotate(f"{t}", (100, _so_far(t, count) / plot.KB), xytext=(8, 0), textcoords="offset points", va="center", fontsize=10.5)
    here, = right.plot([], [], "o", color=plot.COLORS["error"], markersize=9)
    right.set(xlabel="share of the product done (%)", ylabel="moved so far (KB)", xlim=(-2, 110), ylim=(0, None), xticks=range(0, 101, 25))
    right.set_title("beside each line: the edge of a tile", fontsize=11)

    def update(tile: int, step: int) -> str:
        edge = SIZE // tile
        steps = edge**3
        controls["step"].max = player.max = steps
        controls["step"].step = player.step = _stride(tile)
        step = min(step, steps)
        m, n, k = np.unravel_index(np.arange(step), (edge, edge, edge))  # the loop over k is the innermost
        for name, index in {"a": (m, k), "b": (k, n), "c": (m, n)}.items():
            counts = np.zeros((edge, edge))
            np.add.at(counts, index, 1)
            images[name].set_data(np.kron(0.9 * counts / (edge if name == "c" else SIZE), np.ones((tile, tile))))
            boxes[name].set_visible(step > 0)
            if step:
                x, y = corners[name]
                boxes[name].set_bounds(x + tile * index[1][-1], y + tile * index[0][-1], tile, tile)
        for t, line in lines.items():
            line.set(color=plot.COLORS["error" if t == tile else "muted"], linewidth=2.6 if t == tile else 1.3)
        moved = _so_far(tile, step)
        here.set_data([100 * step / steps], [moved / plot.KB])
        if not step:
            return f"Step 0 of {steps:,}: nothing has moved. The last step will have moved <b>{_so_far(tile, steps):,} bytes</b>."
        spans = {name: f"[{tile * i[-1]}:{tile * (i[-1] + 1)}, {tile * j[-1]}:{tile * (j[-1] + 1)}]"
                 for name, (i, j) in {"a": (m, k), "b": (k, n), "c": (m, n)}.items()}
        operations, end = 2 * tile**3 * step, _so_far(tile, steps)
        return (f"Step {step:,} of {steps:,}: c{spans['c']} += a{spans['a']} @ b{spans['b']}. So far {operations:,} operations and "
                f"<b>{moved:,} bytes</b> moved, {operations / moved:.1f} operations a byte; at the end {end:,} bytes, "
                f"<b>{2 * SIZE**3 / end:.1f} operations a byte</b>.")

    player = ipywidgets.Play(value=step, min=0, max=steps, step=_stride(tile), interval=400)
    live = widgets.Live(fig, update, **controls)
    live.link = ipywidgets.jslink((controls["step"], "value"), (player, "value"))  # in the browser: one update a step, not two
    live.children[0].children += (player,)
    return live


def _stride(tile: int) -> int:
    """By how many steps the slider goes on: its track has room for 256 places, and a tile of 1 x 1 takes 4,096 steps."""
    return max(1, (SIZE // tile) ** 3 // 256)


def _so_far(tile: int, step: int) -> int:
    """Bytes after this many steps: two int8 tiles a step, an int32 tile for each tile of the result that is finished."""
    return tile**2 * (2 * step + 4 * (step // (SIZE // tile)))


def waves(at_once: int = 9, group: int = 3, wave: int = 1) -> widgets.Live:
    """9 x 9 tiles of the result, computed at_once at a time: which tiles of a and b one such wave needs, by the order of the tiles.

    Left: pink is this wave, grey is done, the line is the order within the wave. Right: the tiles that the wave must fetch, for each height
    of the groups. Each wave is taken to start with an empty cache and to fetch a tile once. Raises ValueError for at_once that is not from
    1 to 27, group not from 1 to 9, a wave that there is not.
    """
    waves_of = {count: -(-GRID**2 // count) for count in range(1, 28)}
    if at_once not in waves_of:
        raise ValueError(f"at_once is {at_once}, and must be from 1 to 27.")
    for name, value, most in (("group", group, GRID), ("wave", wave, waves_of[at_once])):
        if not 1 <= value <= most:
            raise ValueError(f"{name} is {value}, and must be from 1 to {most}.")
    controls = {
        "group": ipywidgets.IntSlider(group, 1, GRID, description="group, rows of tiles"),
        "at_once": ipywidgets.IntSlider(at_once, 1, 27, description="tiles at a time"),
        "wave": ipywidgets.IntSlider(wave, 1, waves_of[at_once]),
    }
    fig, (ax, right) = widgets.figure(9.0, 4.1, ncols=2, width_ratios=(1, 1.05))
    images, corners = _three_matrices(ax, GRID)
    x, y = corners["c"]
    cuts = [np.array([(left + edge, top), (left + edge, top + GRID), (np.nan, np.nan), (left, top + edge), (left + GRID, top + edge),
                      (np.nan, np.nan)]) for edge in range(1, GRID) for left, top in corners.values()]
    ax.plot(*np.concatenate(cuts).T, color="#BBBBBB", linewidth=0.6)
    pink = plot.plt.matplotlib.colors.LinearSegmentedColormap.from_list("wave", ["white", "#D9D9D9", plot.COLORS["accent"]])
    for image in images.values():
        image.set_cmap(pink)
    path, = ax.plot([], [], color="#555555", linewidth=1.0)
    start, = ax.plot([], [], "o", color="#555555", markersize=4.5)
    for name, at in {"a": (GRID / 2, y + GRID + 0.4), "b": (x - 0.4, GRID / 2), "c": (x + GRID / 2, y + GRID + 0.4)}.items():
        ax.text(*at, name, ha="right" if name == "b" else "center", va="center" if name == "b" else "top", fontsize=12, weight="bold")
    ax.text(0, GRID - 2.2, "pink: this wave\ngrey: done", fontsize=9.5, va="bottom")
    curve, = right.plot([], [], "o-", color=plot.COLORS["muted"], linewidth=1.4)
    here, = right.plot([], [], "o", color=plot.COLORS["accent"], markersize=11)
    least = right.axhline(0, color=plot.COLORS["float"], linewidth=1.2, linestyle=plot.LINESTYLES["float"], label="a square of tiles")
    right.set(xlabel="height of a group (rows of tiles)", ylabel="tiles of a and b fetched by this wave", xticks=range(1, GRID + 1),
              xlim=(0.5, GRID + 0.5), ylim=(0, 200))
    right.legend(loc="upper right")

    def update(group: int, at_once: int, wave: int) -> str:
        controls["wave"].max = player.max = waves_of[at_once]
        wave = min(wave, waves_of[at_once])
        part = slice((wave - 1) * at_once, wave * at_once)
        tiles = order(GRID, GRID, group)
        now = tiles[part]
        state = np.zeros((GRID, GRID))
        state[tuple(tiles[:part.start].T)], state[tuple(now.T)] = 0.5, 1
        images["c"].set_data(state)
        rows, columns = (np.isin(np.arange(GRID), index) for index in now.T)
        images["a"].set_data(np.repeat(rows[:, None], GRID, 1).astype(float))
        images["b"].set_data(np.repeat(columns[None], GRID, 0).astype(float))
        path.set_data(x + now[:, 1] + 0.5, y + now[:, 0] + 0.5)
        start.set_data(x + now[:1, 1] + 0.5, y + now[:1, 0] + 0.5)
        by_group = [tiles_loaded(order(GRID, GRID, height)[part], GRID) for height in range(1, GRID + 1)]
        curve.set_data(range(1, GRID + 1), by_group)
        here.set_data([group], [by_group[group - 1]])
        least.set_ydata([2 * GRID * len(now) ** 0.5] * 2)
        whole = [sum(tiles_loaded(order(GRID, GRID, height)[start:start + at_once], GRID) for start in range(0, GRID**2, at_once))
                 for height in (1, group)]
        return (f"Wave {wave} of {waves_of[at_once]}: {len(now)} of c's tiles, in {rows.sum()} of its rows and {columns.sum()} of its "
                f"columns. It fetches <b>{by_group[group - 1]} tiles</b> of a and b (group 1: {by_group[0]}), all waves together "
                f"<b>{whole[1]:,}</b> (group 1: {whole[0]:,}).")

    player = ipywidgets.Play(value=wave, min=1, max=waves_of[at_once], interval=700)
    live = widgets.Live(fig, update, **controls)
    live.link = ipywidgets.jslink((controls["wave"], "value"), (player, "value"))
    live.children[0].children += (player,)
    return live
