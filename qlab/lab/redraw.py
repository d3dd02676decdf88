"""Drawing the same figure again and again: what rarely changes is drawn once and kept, the data are drawn each time.

Most of the time that matplotlib takes for a small figure goes into ticks, labels and legends, not into the data. `Canvas.pixels` keeps a
picture of every axes' frame (background, grid, ticks, labels, title, legend) and draws the other artists, the data, on a copy of it.
Limits, labels or titles that have changed are noticed by matplotlib's own `stale` flags, and then the frame of that axes is drawn again,
and no other. The result differs from Figure.draw in two things: grid and legend are always below the data, and a text stands on whole
pixels, so that its letters are rendered once and then only placed (`Renderer`).
"""

import contextlib
import struct
import types
import zlib

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.transforms import Affine2D


class Renderer(RendererAgg):
    """Agg, with a memory for text: laying out and rendering the letters takes most of a text's time, and most texts come again."""

    def __init__(self, width, height, dpi):
        super().__init__(width, height, dpi)
        self._texts, self._heights = {}, {}

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        key = s, hash(prop), angle, ismath
        if key not in self._texts:
            self._texts[key] = self._recorded(gc, s, prop, angle, ismath, mtext)
        pictures, boxes = self._texts[key]
        x, y = round(x), round(y)
        for picture, left, top in pictures:
            self._renderer.draw_text_image(picture, left + x, top + y, 0, gc)
        for box_gc, path, transform in boxes:  # the bars of fractions and roots
            rgba = gc.get_rgb()
            self._renderer.draw_path(box_gc, path, transform + Affine2D().translate(x, -y), rgba)

    def _recorded(self, gc, s, prop, angle, ismath, mtext) -> tuple[list, list]:
        """What RendererAgg would draw for a text at (0, 0): grey pictures with their places, and boxes."""
        pictures, boxes, agg = [], [], self._renderer
        self._renderer = types.SimpleNamespace(
            draw_text_image=lambda picture, x, y, angle, gc: pictures.append((np.array(picture), x, y)),
            draw_path=lambda gc, path, transform, rgba: boxes.append((gc, path, transform)))
        try:
            super().draw_text(gc, 0, 0, s, prop, angle, ismath, mtext)
        finally:
            self._renderer = agg
        return pictures, boxes

    def _get_font_height_metrics(self, prop):
        """Ascent, descent and line gap in dots: Text asks for them each time that it is laid out."""
        key = hash(prop)
        if key not in self._heights:
            font = get_font(fontManager._find_fonts_by_props(prop))
            scale = prop.get_size_in_points() * self.dpi / 72 / font.get_sfnt_table("head")["unitsPerEm"]
            table = font.get_sfnt_table("OS/2")
            self._heights[key] = [scale * table[key] for key in ("sTypoAscender", "sTypoDescender", "sTypoLineGap")]
        ascent, descent, gap = self._heights[key]
        return ascent, -descent, gap


class Agg(FigureCanvasAgg):
    """Agg's canvas with that renderer."""

    def get_renderer(self):
        if not hasattr(self, "renderer"):
            self.renderer = Renderer(*self.figure.bbox.size, self.figure.dpi)
        return self.renderer


class Canvas:
    """The pixels of one figure, which keeps its size, and its layout from the first drawing on."""

    def __init__(self, fig: Figure, dpi: float):
        self.fig = fig
        fig.set_dpi(dpi)
        self._agg = Agg(fig)
        self._agg.draw()                # the layout is found once, and then stays: it costs more than the drawing,
        fig.set_layout_engine("none")   # and a frame that moves with its tick labels would be hard to watch
        self._kept = None               # the pixels of all frames, uint32 (height, width): four bytes, RGBA, at once
        self._inked: dict[Axes | None, np.ndarray] = {}  # bool (height, width): where each axes' frame has drawn; None: the figure itself
        self._known: list[Artist] = []

    def pixels(self) -> np.ndarray:
        """uint8 (height, width, 3): the figure as it is now."""
        renderer = self._agg.get_renderer()
        axes = self.fig.axes
        for ax in axes:
            ax.get_xlim(), ax.get_ylim()  # limits that follow the data are computed when they are asked for
        frames, surroundings = {ax: _frame(ax) for ax in axes}, _surroundings(self.fig)
        known = [artist for frame in frames.values() for artist in frame] + surroundings
        stale = [ax for ax in axes if any(artist.stale for artist in frames[ax])]
        if known != self._known or any(artist.stale for artist in surroundings) or not self._mended(stale):
            self._draw_frames()
        self._known = known
        for artist in known:
            artist.stale = False  # one that is hidden or empty is not drawn, and would stay stale
        self._page()[:] = self._kept
        for ax in sorted((ax for ax in axes if ax.get_visible()), key=Artist.get_zorder):
            for artist in sorted(_data(ax), key=Artist.get_zorder):
                artist.draw(renderer)
        return np.asarray(self._agg.buffer_rgba())[:, :, :3]

    def _page(self) -> np.ndarray:
        return np.asarray(self._agg.buffer_rgba()).view(np.uint32)[..., 0]

    def _mended(self, stale: list[Axes]) -> bool:
        """Put the frames of these axes anew into the picture; False where they touch others, so that all have to be drawn."""
        for ax in stale:
            if ax not in self._inked or not ax.get_visible():
                return False
            page, inked = self._alone(ax)
            either = inked | self._inked[ax]
            if any((either & other).any() for one, other in self._inked.items() if one is not ax):
                return False
            np.copyto(self._kept, page, where=either)
            self._inked[ax] = inked
        return True

    def _alone(self, ax: Axes | None) -> tuple[np.ndarray, np.ndarray]:
        """One axes' frame on an empty page, and where it has drawn something; for None, what belongs to no axes."""
        renderer = self._agg.get_renderer()
        renderer.clear()
        self.fig.patch.draw(renderer)
        page = self._page()
        blank = page[0, 0]
        with _hidden(_data(ax) if ax else []):
            for artist in [ax] if ax else _surroundings(self.fig)[1:]:  # without the patch
                artist.draw(renderer)
        return page, page != blank

    def _draw_frames(self) -> None:
        """All frames, and what belongs to the figure alone; and where each of them is."""
        with _hidden([artist for ax in self.fig.axes for artist in _data(ax)]):
            self._agg.draw()
        self._kept = self._page().copy()
        self._inked = {ax: self._alone(ax)[1] for ax in [*self.fig.axes, None] if ax is None or ax.get_visible()}


@contextlib.contextmanager
def _hidden(artists: list[Artist]):
    shown = [artist for artist in artists if artist.get_visible()]
    for artist in shown:
        artist.set_visible(False)
    try:
        yield
    finally:
        for artist in shown:
            artist.set_visible(True)


def _frame(ax: Axes) -> list[Artist]:
    return [ax.patch, ax.xaxis, ax.yaxis, ax.title, ax._left_title, ax._right_title, *([ax.legend_] if ax.legend_ else [])]


def _surroundings(fig: Figure) -> list[Artist]:
    """What belongs to the figure and to no axes: titles, texts, legends of its own."""
    return [artist for artist in fig.get_children() if not isinstance(artist, Axes)]


def _data(ax: Axes) -> list[Artist]:
    frame = {id(artist) for artist in _frame(ax)} | ({id(spine) for spine in ax.spines.values()} if not ax.axison else set())
    return [artist for artist in ax.get_children() if id(artist) not in frame]


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 (height, width, 3) pixels, as fast as may be: rows without a prediction filter, light compression.

    Trying five filters on each row, as image libraries do, takes three times as long and saves a third of the bytes.

    >>> png(np.zeros((2, 3, 3), np.uint8))[1:4]
    b'PNG'
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row opens with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, colour type 2 (RGB)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
