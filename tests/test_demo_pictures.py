"""Every live figure to the eye, at all its settings: nothing cut off, nothing pale, no halves of what is counted, no legend on data."""

import itertools

import pytest
import torch
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from qlab.lab import data, plot, runs, sweep, widgets, zoo
from qlab.lab import language as models
from qlab.lab import text as novels
from qlab.lab.demos import (
    choosing,
    compare,
    compression,
    deployment,
    distillation,
    formats,
    hardware,
    kmeans,
    language,
    linear,
    log,
    matmul,
    mixed_precision,
    numbers,
    pruning,
    ptq,
    qat,
    search,
    welcome,
)
from qlab.matmul.roofline import Roof
from qlab.nets.ptq import fold_batch_norm

COUNTED = ("iteration", "cycle", "bits", "height of a group", "count")  # an axis whose label begins so has whole numbers on it


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def images(n):
    test = data.load("test")
    return test.images[:n], test.labels[:n]


def clipped():
    cal = data.calibration(40)
    return ptq.clipping(zoo.load("cnn"), cal.images[:20], cal.images[20:], cal.labels[20:])


MADE = {
    "00": lambda: welcome.fewer_bits(fold_batch_norm(zoo.load("cnn")), data.Split(*images(400))),
    "01, roof": lambda: numbers.under_the_roof(Roof(8e10, 1.6e10), 8192, 4096, {1: 8.8e9, 256: 7.5e10}),
    "01, bits": lambda: numbers.flip_bits(-6.5, "float16"),
    "02": lambda: linear.play({"weights": 0.05 * random(300_000), "after a ReLU": random(400_000).relu()}),
    "03": lambda: log.log_against_linear({"weights": 0.05 * random(3000)} | log.samples(20_000), start="weights"),
    "04": lambda: kmeans.lloyd_steps({"few": 0.3 * random(288), "many": 0.03 * random(36_864), "far": 3 * random(288) ** 3}),
    "05": lambda: compare.pareto(sweep.load()),
    "06": clipped,
    "07": lambda: qat.drag_step({"many": 0.1 * random(4096), "few": random(9)}),
    "08": lambda: mixed_precision.drag_loss_scale({"outputs": 1e-6 * random(5000).exp(), "weights": 1e-3 * random(9000)}),
    "09": lambda: pruning.cut(zoo.load("cnn"), data.calibration(40)),
    "10": lambda: distillation.temperature(*images(10), 4 * random(10, 10), 3 * random(10, 10), start=4),
    "11": lambda: compression.dial({"float": zoo.load("lenet300")}, *images(50)),
    "12, tiles": lambda: matmul.tiled_product(4, 23),
    "12, waves": lambda: matmul.waves(9, 3),
    "13, array": hardware.array_steps,
    "13, rooflines": hardware.rooflines,
    "14": lambda: deployment.pick(runs.load("deployment")),
    "16": lambda: language.smoothing(models.load("gpt-planted"), novels.sample("calibration", count=3).tokens[:, :-1]),
    "17": lambda: search.spend(runs.load("search")["budgets"]["depthwise"]),
    "18": choosing.adviser,
    "15": lambda: formats.levels_of_a_matrix({"one": 0.05 * random(512, 256), "two": random(64, 512)}),
}


@pytest.fixture(scope="module", params=MADE)
def live(request):
    with plot.plt.rc_context():
        plot.use_style()
        yield MADE[request.param]()


def settings(control) -> list:
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return values if not isinstance(control, widgets.SLIDERS) else [values[0], values[len(values) // 2], values[-1]]
    return [control.min, control.max] if hasattr(control, "min") and control.max < 1e6 else []


def tour(live):
    """The figure, drawn, at every option and at both ends of every slider, the others as they were; then at the ends of all at once."""
    for control in live.controls.values():
        before = control.value
        for value in settings(control):
            control.value = value
            assert live.error is None
            yield live.fig
        control.value = before
    for end in (0, -1):
        for control in live.controls.values():
            if settings(control):
                control.value = settings(control)[end]
        yield live.fig


def luminance(color) -> float:
    """Relative luminance of WCAG 2."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def texts(fig) -> list[Text]:
    """Every text that is drawn; of the ticks, those within their axis."""
    shown = []
    ticks = set()
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            all_ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            ticks |= {label for tick in all_ticks for label in (tick.label1, tick.label2)}
            if ax.axison and ax.get_visible():
                shown += [tick.label1 for tick in axis._update_ticks() if low <= tick.get_loc() <= high]
        if not ax.axison:
            ticks |= {ax.xaxis.label, ax.yaxis.label}
    shown += [text for text in fig.findobj(Text) if text not in ticks]
    return [text for text in dict.fromkeys(shown) if text.get_visible() and text.get_text().strip()]


def face_below(text: Text, fig) -> tuple:
    """The colour on which a text stands: its own box, a filled rectangle around its middle, or the page."""
    box = text.get_bbox_patch()
    if box:
        return box.get_facecolor()
    bounds = text.get_window_extent()
    middle = (bounds.x0 + bounds.x1) / 2, (bounds.y0 + bounds.y1) / 2
    faces = [patch for patch in fig.findobj(Rectangle) if patch.get_visible() and patch.get_fill() and patch.axes
             and patch is not patch.axes.patch and patch.get_alpha() is None and patch.get_window_extent().contains(*middle)]
    return faces[-1].get_facecolor() if faces else (1, 1, 1, 1)


def test_contrast_is_that_of_wcag():
    assert contrast("white", "black") == pytest.approx(21) and contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)


def test_words_have_colours_that_can_be_read():
    assert plot.INK.keys() == plot.COLORS.keys()
    for name, ink in plot.INK.items():
        assert contrast(ink, "white") >= 4.5, name


def text_faults(fig):
    """Texts that are cut off by the figure's edge, or have less contrast than 4.5 to 1 with what they stand on."""
    page = fig.bbox
    for text in texts(fig):
        bounds, face = text.get_window_extent(), face_below(text, fig)
        if bounds.x0 < -0.5 or bounds.y0 < -0.5 or bounds.x1 > page.x1 + 0.5 or bounds.y1 > page.y1 + 0.5:
            yield f"cut off: {text.get_text()}"
        *ink, alpha = to_rgba(text.get_color())
        alpha *= 1 if text.get_alpha() is None else text.get_alpha()
        if contrast([alpha * c + (1 - alpha) * f for c, f in zip(ink, face)], face) < 4.5:
            yield f"pale: {text.get_text()}"


def tick_faults(fig):
    """Labels of ticks that overlap, or halves of what is counted."""
    for axis in [axis for ax in fig.axes if ax.axison and ax.get_visible() for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis._update_ticks() if low <= tick.get_loc() <= high]
        ticks = [tick for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
        name = axis.get_label_text()
        if name.startswith(COUNTED) and "/" not in name and any(tick.get_loc() != round(tick.get_loc()) for tick in ticks):
            yield f"not whole: {name}"
        for one, other in itertools.pairwise(sorted(ticks, key=lambda tick: tick.get_loc())):
            if one.label1.get_window_extent().overlaps(other.label1.get_window_extent()):
                yield f"overlap on {name}: {one.label1.get_text()}, {other.label1.get_text()}"


def legend_faults(fig):
    """Legends that a line or a marker runs through."""
    for legend in fig.findobj(Legend):
        bounds = legend.get_window_extent()
        for line in [line for ax in fig.axes for line in ax.lines if line.get_visible() and len(line.get_xdata())]:
            path = line.get_path().transformed(line.get_transform())
            if line.get_linestyle() in ("None", ""):
                through = any(bounds.contains(*point) for point in path.vertices)
            else:
                through = path.clip_to_bbox(line.axes.bbox).intersects_bbox(bounds, filled=False)
            if through:
                yield f"a legend lies on {line.get_label()}"


def test_pictures_are_right_to_the_eye_and_a_step_makes_no_artist(live, monkeypatch):
    artists, faults = {id(artist) for ax in live.fig.axes for artist in ax.get_children()}, {}
    monkeypatch.setattr(live._canvas, "_draw_frames", lambda: faults.setdefault("all frames are drawn again", live.settings()))
    for fig in tour(live):
        for fault in [*text_faults(fig), *tick_faults(fig), *legend_faults(fig)]:
            faults.setdefault(fault, live.settings())
    assert not faults
    assert {id(artist) for ax in live.fig.axes for artist in ax.get_children()} == artists


def test_every_slider_has_two_pixels_a_step(live):
    for control in live.controls.values():
        if isinstance(control, widgets.SLIDERS):
            steps = (control.max - control.min) / control.step if control.has_trait("max") else len(control.options) - 1
            track = int(control.layout.width.removesuffix("px")) - widgets.BESIDE - widgets.LETTER * len(control.description)
            assert track >= max(160, 2 * steps), control.description
    assert live.children[0].layout.flex_flow == "row wrap"
