"""Notebook 12's widgets, driven without a browser: what they draw and count is what a product that counts its fetches counts."""

import json

import numpy as np
import pytest

from qlab.lab import runs
from qlab.lab.demos.matmul import GRID, SIZE, TILES, bytes_moved, milliseconds, order, tiled_product, tiles_loaded, waves


def counted(m, k, n, block_m, block_n, block_k):
    """The same bytes, one element at a time; and how often each element of a and of b was fetched."""
    a, b = np.zeros((m, k), int), np.zeros((k, n), int)
    moved = 0
    for top in range(0, m, block_m):
        for left in range(0, n, block_n):
            for start in range(0, k, block_k):
                for i in range(top, min(top + block_m, m)):
                    for x in range(start, min(start + block_k, k)):
                        a[i, x] += 1
                for x in range(start, min(start + block_k, k)):
                    for j in range(left, min(left + block_n, n)):
                        b[x, j] += 1
            moved += 4 * (min(top + block_m, m) - top) * (min(left + block_n, n) - left)
    return moved + a.sum() + b.sum(), a, b


@pytest.mark.parametrize("shape, blocks", [((4, 6, 8), (2, 4, 3)), ((5, 7, 3), (2, 2, 2)), ((1, 9, 4), (8, 8, 8)), ((6, 1, 6), (1, 1, 1))])
def test_bytes_are_those_of_counting_each_fetch(shape, blocks):
    assert bytes_moved(*shape, *blocks[:2]) == counted(*shape, *blocks)[0]


def test_order_is_that_of_the_kernel_and_visits_each_tile_once():
    for tiles_m, tiles_n, group in ((4, 3, 2), (5, 4, 3), (2, 7, 5), (1, 1, 4), (9, 9, 9)):
        expected = []  # the definition: groups of rows; in a group column by column
        for first in range(0, tiles_m, group):
            expected += [(m, n) for n in range(tiles_n) for m in range(first, min(first + group, tiles_m))]
        assert [tuple(tile) for tile in order(tiles_m, tiles_n, group)] == expected
        assert len(set(expected)) == tiles_m * tiles_n


def test_numbers_of_tritons_tutorial():
    assert tiles_loaded(order(9, 9, 1)[:9], 9) == 90 and tiles_loaded(order(9, 9, 3)[:9], 9) == 54


@pytest.fixture(scope="module")
def product():
    return tiled_product()


def pictures(demo):
    return [image.get_array() for image in demo.fig.axes[0].images]  # a, b, c


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
        assert demo.error is None
        assert demo.controls[name].value == value


@pytest.mark.parametrize("tile", TILES)
def test_at_the_end_the_picture_and_the_curve_are_the_counts(product, tile):
    put(product, tile=tile)
    put(product, step=(SIZE // tile) ** 3)
    moved, fetched_a, fetched_b = counted(SIZE, SIZE, SIZE, tile, tile, tile)
    a, b, c = pictures(product)
    np.testing.assert_allclose(a / 0.9 * SIZE, fetched_a)
    np.testing.assert_allclose(b / 0.9 * SIZE, fetched_b)
    np.testing.assert_allclose(c, 0.9)
    here = product.fig.axes[1].lines[-1]
    assert here.get_xdata() == [100] and here.get_ydata() == [moved / 1000]
    assert f"{moved:,} bytes" in product.text and f"{2 * SIZE**3 / moved:.1f} operations a byte" in product.text
    curve = product.fig.axes[1].lines[TILES.index(tile)]
    assert curve.get_xdata()[-1] == 100 and curve.get_ydata()[-1] == moved / 1000


def test_a_step_reads_one_tile_of_each_and_writes_when_the_sum_is_done(product):
    put(product, tile=4, step=3)
    before = [picture.copy() for picture in pictures(product)]
    at = product.fig.axes[1].lines[-1].get_ydata()[0]
    put(product, step=4)  # the fourth tile along k, and the end of this sum
    for picture, old in zip(pictures(product), before):
        assert (picture != old).sum() == 16
    assert product.fig.axes[1].lines[-1].get_ydata()[0] == pytest.approx(at + (16 + 16 + 4 * 16) / 1000)
    assert "c[0:4, 0:4] += a[0:4, 12:16] @ b[12:16, 0:4]" in product.text


def test_step_slider_follows_the_tile(product):
    put(product, tile=1, step=4096)
    product.controls["tile"].value = 8
    assert product.controls["step"].value == product.controls["step"].max == 8 and "Step 8 of 8" in product.text
    put(product, step=0)
    assert "nothing has moved" in product.text


@pytest.fixture(scope="module")
def grid():
    return waves()


@pytest.mark.parametrize("at_once, group, wave", [(9, 3, 1), (9, 1, 4), (16, 4, 2), (27, 9, 3), (20, 2, 5), (1, 5, 81)])
def test_a_wave_is_drawn_and_counted(grid, at_once, group, wave):
    put(grid, wave=1, at_once=at_once, group=group)
    put(grid, wave=wave)
    tiles = order(GRID, GRID, group)
    now = {tuple(tile) for tile in tiles[(wave - 1) * at_once:wave * at_once]}
    a, b, c = pictures(grid)
    assert {tuple(at) for at in np.argwhere(c == 1)} == now
    assert (c == 0.5).sum() == (wave - 1) * at_once
    needed_a, needed_b = ({(m, k) for m, _ in now for k in range(GRID)}, {(k, n) for _, n in now for k in range(GRID)})
    assert {tuple(at) for at in np.argwhere(a == 1)} == needed_a and {tuple(at) for at in np.argwhere(b == 1)} == needed_b
    curve, here = grid.fig.axes[1].lines[:2]
    assert here.get_ydata()[0] == curve.get_ydata()[group - 1] == len(needed_a) + len(needed_b)
    assert f"{len(needed_a) + len(needed_b)} tiles" in grid.text


def test_wave_slider_follows_the_number_of_waves(grid):
    put(grid, at_once=3, wave=27)
    grid.controls["at_once"].value = 27
    assert grid.controls["wave"].value == 3 and "Wave 3 of 3" in grid.text


def test_bad_arguments():
    with pytest.raises(ValueError, match="tile is 3, and must be one of 1, 2, 4, 8, 16"):
        tiled_product(tile=3)
    with pytest.raises(ValueError, match="from 0 to 64"):
        tiled_product(tile=4, step=65)
    with pytest.raises(ValueError, match="at_once is 28, and must be from 1 to 27"):
        waves(at_once=28)
    with pytest.raises(ValueError, match="group is 0, and must be from 1 to 9"):
        waves(group=0)
    with pytest.raises(ValueError, match="wave is 10, and must be from 1 to 9"):
        waves(wave=10)
    with pytest.raises(ValueError, match="block_n is 0"):
        bytes_moved(1, 1, 1, 1, 0)
    with pytest.raises(ValueError, match="group is 0"):
        order(1, 1, 0)


MADE_UP = [{"what": what, "shape": shape, "threads": 1} | result for what, shape, result in (
    ("float32", [512] * 3, {"ms": 3.0}), ("codes", [512] * 3, {"ms": 1.5}), ("codes", [1024] * 3, {"ms": 1234.5}),
    ("codes", [1, 4096, 4096], {"ms": 0.25}), ("float32", [1, 4096, 4096], {"ms": 0.1}), ("codes", [7, 512, 512], {"ms": 9.0}),
    ("float32", [1024] * 3, {"left_out": "it would take too long"}), ("codes", [2048] * 3, {"left_out": "it would take too long"}))]
NO_GPU = {"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True, "amx_int8": False, "arm_dot": False, "cuda": None}


@pytest.mark.parametrize("name, environment, said", [
    ("matmul_cpu", NO_GPU | {"cpu": "Some CPU"}, "Some CPU, VNNI, no AMX, 1 thread"),
    ("matmul_cpu_x", NO_GPU | {"cpu": "Other", "avx_vnni": None, "amx_int8": True, "onednn_limit": "AVX2"},
     "Other, no VNNI, AMX, oneDNN limited to AVX2, 1 thread"),
    ("matmul_cpu_arm", {"cpu": "A", "architecture": "aarch64", "arm_dot": True, "arm_i8mm": False}, "A, dot product, no I8MM, 1 thread"),
    ("matmul_cuda", NO_GPU | {"cpu": "Some CPU", "cuda": "Some GPU"}, "Some GPU")])
def test_a_record_s_times_stand_beside_its_machine_and_float32_s(tmp_path, name, environment, said):
    path, more = tmp_path / f"{name}.json", [{"what": "float32", "shape": [512] * 3, "threads": 2, "ms": 0.75}]
    rows = [row | {"threads": 16} for row in MADE_UP] if "cuda" in name else MADE_UP + more
    path.write_text(json.dumps({"environment": environment | {"date": "2026-11-23"}, "rows": rows}))
    first, sizes, *table = milliseconds(path).splitlines()
    assert first == f"{said}, 2026-11-23" and sizes.split() == ["milliseconds", "512^3", "1,024^3", "1x4,096x4,096"]
    assert [line.split() for line in table] == [["float32", "3", "(1.00)", "0.1", "(1.00)"],
                                                ["codes", "1.5", "(2.00)", "1234", "0.25", "(0.40)"]]
    assert len({len(line) for line in (sizes, *table)}) == 1
    for quiet, more in ((True, ""), (None, ""), (False, ", while others kept it busy")):
        path.write_text(json.dumps({"environment": environment | {"date": "2026-11-23"}, "rows": rows, "load": {"quiet": quiet}}))
        assert milliseconds(path).splitlines()[0] == f"{said}, 2026-11-23{more}"


@pytest.mark.parametrize("path", sorted(runs.FOLDER.glob("matmul_*.json")), ids=lambda path: path.stem)
def test_every_record_of_products_has_a_table(path):
    first, sizes, *table = milliseconds(path).splitlines()
    assert table and table[0].startswith("float32") and all("(" in line for line in table)
