"""A live figure: a matplotlib picture, the controls that change it, and a line of text with the numbers.

    fig, ax = widgets.figure(7, 3)
    line, = ax.plot(x, x)

    def update(bits):
        line.set_ydata(linear.quantize(x, bits).dequantize())
        return f"{2 ** bits} levels"

    Live(fig, update, bits=ipywidgets.IntSlider(4, 1, 8))

With a kernel the controls are live. Without one (a stored notebook, a code-hosting page, paper) the reader gets a still: the picture, the
line of text, and the value of each control. The still is made when the widget is shown.
"""

import contextlib
import html
import io
import math
import re
import textwrap

import ipywidgets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from traitlets import TraitError

from qlab.lab.questions import plain, predict, quiz
from qlab.lab.redraw import Canvas, png
from qlab.translate import tr

__all__ = ["Live", "figure", "one_thread", "predict", "quiz"]
DPI = 144           # dots per inch drawn
CSS_DPI = 96        # and shown: 1.5 dots per CSS pixel, sharp on a dense screen or a projector without drawing four times the dots
TRACK, BESIDE, LETTER = 160, 108, 7.5   # CSS pixels: a slider's shortest track, its number and margins, a letter of its label
SLIDERS = (ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.FloatLogSlider, ipywidgets.SelectionSlider,
           ipywidgets.IntRangeSlider, ipywidgets.FloatRangeSlider, ipywidgets.SelectionRangeSlider)


def figure(width: float = 7.0, height: float = 3.2, nrows: int = 1, ncols: int = 1, **subplots):
    """A figure of width x height inches, and its Axes as Figure.subplots gives them; pyplot does not know it, so it is not shown twice.

    >>> fig, ax = figure(7, 3)
    >>> fig.get_size_inches().tolist()
    [7.0, 3.0]
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(nrows, ncols, **subplots)


@contextlib.contextmanager
def one_thread():
    """torch on one thread, then on as many as before. Where work comes in small pieces, threads that wait for the next one keep
    processors busy: a slider's step then takes several times the CPU.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Live(ipywidgets.VBox):
    """A figure that follows its controls.

    fig: a Figure of `figure`; update(**values) changes the data of its artists in place and may return one line of text, plain or HTML;
    controls: name -> any ipywidget with a value. Setting a control's value, by hand or in code, redraws before it returns.

    An exception in the first update is raised. A later one is shown under the figure, in one sentence, and kept in `error`.

    >>> fig, ax = figure()
    >>> line, = ax.plot([0, 1], [0, 0])
    >>> demo = Live(fig, lambda slope: line.set_ydata([0, slope]), slope=ipywidgets.IntSlider(1, 0, 3))
    >>> demo.controls["slope"].value = 3
    >>> line.get_ydata(), demo.value("slope")
    ([0, 3], 3)
    """

    def __init__(self, fig: Figure, update, **controls: ipywidgets.Widget):
        for name, control in controls.items():
            if not (isinstance(control, ipywidgets.Widget) and control.has_trait("value")):
                raise ValueError(f"control {name!r} is {control!r}, and must be an ipywidget with a value, such as an IntSlider.")
        self.fig, self.update, self.controls = fig, update, controls
        self.error: Exception | None = None
        self.text = ""  # what update said last
        self._drawing = self._again = False
        self._drawn = self.values  # the values that the picture shows
        self._width = round(CSS_DPI * fig.get_size_inches()[0])
        self._image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width=f"{self._width}px", max_width="100%", height="auto"))
        self._caption = ipywidgets.HTML()
        for name, control in controls.items():
            label(control, name)
            if isinstance(control, SLIDERS):
                _widen(control, self._width)
                if control.has_trait("max"):
                    control.observe(lambda change: _widen(change["owner"], self._width), ["min", "max", "step"])
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="2px 16px")
        super().__init__([ipywidgets.Box(list(controls.values()), layout=row), self._image, self._caption])
        self.add_class("qlab-live")  # by these names the page's script finds the picture, and the text that describes it
        self._image.add_class("qlab-picture")
        self._say(self._updated())
        self._canvas = Canvas(fig, DPI)
        self._image.value = png(self._canvas.pixels())
        for control in controls.values():
            control.observe(self._changed, "value")

    @property
    def values(self) -> dict:
        """Each control's value, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def value(self, name: str):
        """One control's value."""
        return self.controls[name].value

    def _changed(self, _change) -> None:
        # A browser sends a control's next value only after the kernel has dealt with the last, and then only the newest: a slider's steps
        # do not queue up. What is left to guard is an update that sets controls itself: it gets one more round, not a nested one.
        # Where one control sets another, both report, and the picture is drawn for the first of them.
        self._again = self.values != self._drawn
        if self._drawing:
            return
        self._drawing = True
        try:
            rounds = 0
            while self._again and rounds < 10:
                self._again, rounds, self._drawn = False, rounds + 1, self.values
                self._redraw()
        finally:
            self._drawing = self._again = False

    def _redraw(self) -> None:
        try:
            text = self._updated()
            picture = png(self._canvas.pixels())
        except Exception as error:  # shown rather than raised: in a browser nobody would see it
            self.error = error
            message = html.escape(f"{type(error).__name__}: {' '.join(str(error).split())}")
            self._say(tr("<b>This setting does not work</b>, and the picture is the last that did. {message}", message=message))
            return
        self.error = None
        self._image.value = picture
        self._say(text)

    def _updated(self):
        with one_thread():
            return self.update(**self.values)

    def _say(self, text) -> None:
        self.text = text if isinstance(text, str) else ""
        self._caption.value = f'<div role="status" class="qlab-text" style="line-height: 1.5">{self.text}</div>'

    def sharpen(self, dpi: float) -> None:
        """Draws dpi dots an inch from now on, for a picture that is shown larger than on a page.

        >>> demo = Live(figure(2, 1)[0], lambda: None)
        >>> demo.sharpen(200)
        >>> Image.open(io.BytesIO(demo.still())).size
        (400, 216)
        """
        self._canvas = Canvas(self.fig, dpi)
        self._image.value = png(self._canvas.pixels())

    def frames(self, states):
        """For each state, values of some controls by name, what the figure then shows: (all values, pixels, text). None where the figure
        cannot be in a state, say for an option that another control has taken away. pixels: uint8 (height, width, 3).

        >>> fig, ax = figure()
        >>> demo = Live(fig, lambda bits: f"{2 ** bits} levels", bits=ipywidgets.IntSlider(4, 1, 8))
        >>> [text for _, _, text in demo.frames([{"bits": 2}, {"bits": 3}])]
        ['4 levels', '8 levels']
        """
        for state in states:
            self._drawing = True  # the picture is drawn once, after the last control
            try:
                for name, value in 2 * list(state.items()):  # twice: one control may set another
                    self.controls[name].value = value
            except TraitError:
                yield None
                continue
            finally:
                self._drawing = False
            self._changed(None)
            if self.error:
                raise self.error
            yield self.values, self._canvas.pixels(), self.text

    def settings(self) -> str:
        """Each control's label and value on one line, as in the still.

        >>> fig, ax = figure()
        >>> Live(fig, lambda bits: None, bits=ipywidgets.IntSlider(4, 1, 8)).settings()
        'bits = 4'
        """
        return "   ".join(f"{label(control, name)} = {_shown(control)}" for name, control in self.controls.items())

    def still(self) -> bytes:
        """PNG: the figure as it is, and under it update's text and the controls' values."""
        note = f"{self.settings()}   (live in JupyterLab)" if self.controls else ""
        picture, stream = self._canvas.pixels(), io.BytesIO()
        page = np.concatenate([picture, _text_pixels(picture.shape[1], plain(self.text), note, self.fig.dpi)])
        Image.fromarray(page).save(stream, "png", optimize=True)
        return stream.getvalue()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = ". ".join(filter(None, [f"Live figure: {re.sub(' {3}', ', ', self.settings())}", plain(self.text)]))
        data["image/png"] = self.still()
        width, height = Image.open(io.BytesIO(data["image/png"])).size
        size = {"width": self._width, "height": round(height * self._width / width)}
        return data, {"image/png": size | {"alt": data["text/plain"]}}


def label(control: ipywidgets.Widget, name: str) -> str:
    """The control's own description, or its name, which then becomes the description: a screen reader reads it, and nothing is cut off."""
    if not control.has_trait("description"):
        return name.replace("_", " ")
    if not control.description:
        control.description = name.replace("_", " ")
    if control.has_trait("style") and hasattr(control.style, "description_width") and not control.style.description_width:
        control.style.description_width = "initial"
    if isinstance(control, ipywidgets.ToggleButtons):  # the label beside the buttons, not above them; buttons as wide as their words
        control.layout.display, control.layout.align_items, control.layout.width = "flex", "center", control.layout.width or "auto"
        control.style.button_width = control.style.button_width or "auto"
    if isinstance(control, ipywidgets.Checkbox):
        control.indent, control.layout.width = False, control.layout.width or "auto"
    return control.description.rstrip(":")


def _widen(slider: ipywidgets.Widget, page: float) -> None:
    """A track of at least TRACK pixels and two a step, so that the hand can stop at each; three where page, the row's width, has room.

    It only grows: a row that is laid out anew while a slider moves would be hard to use.
    """
    steps = round((slider.max - slider.min) / slider.step) if slider.has_trait("max") else len(slider.options) - 1
    beside = BESIDE + LETTER * len(slider.description)
    track = max(TRACK, 2 * steps, min(3 * steps, page - beside))
    if track > getattr(slider, "track", 0):
        slider.track = track
        slider.layout.width, slider.layout.max_width = f"{math.ceil(track + beside)}px", "100%"


def _shown(control: ipywidgets.Widget) -> str:
    value = getattr(control, "label", None) or control.value  # a dropdown's label is what the reader sees, not the object behind it
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text_pixels(width: int, text: str, note: str, dpi: float) -> np.ndarray:
    """uint8 (height, width, 3): text in black and note in grey below it, wrapped. width is in dots, dpi of them an inch."""
    size = 10.5                                             # points; a letter of DejaVu Sans is about 0.56 of that wide
    letters = int(width / dpi * 72 / (0.56 * size)) - 3
    lines = [(line, "#222222") for line in textwrap.wrap(text, letters)]
    lines += [(line, "#666666") for line in textwrap.wrap(note, letters, replace_whitespace=False)]
    line_height = 1.5 * size / 72                           # inches
    page = Figure(figsize=((width + 0.5) / dpi, len(lines) * line_height + 0.08), dpi=dpi, layout="none")
    agg = FigureCanvasAgg(page)
    for i, (line, color) in enumerate(lines):
        y = 1 - (i + 0.5) * line_height / page.get_figheight()
        page.text(0.12 * dpi / width, y, line, size=size, color=color, va="center", parse_math=False)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[:, :width, :3]
