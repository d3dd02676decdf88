"""The course's pictures and widgets: drawn data against the data given, widgets driven without a browser."""

import io
import itertools
import sys
import types

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from qlab.lab import plot, widgets
from qlab.lab.questions import plain
from qlab.lab.redraw import Agg, Canvas, png

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def lightness(color: str) -> float:
    """CIE 1976 L*, 0 to 100, of an sRGB colour."""
    channels = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 116 * y ** (1 / 3) - 16 if y > (6 / 29) ** 3 else y * (29 / 3) ** 3


def pixels_of(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.load()  # raises on a broken file
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


# The palette


def test_methods_stay_apart_in_grey_print():
    assert lightness("#ffffff") == pytest.approx(100, abs=0.01) and lightness("#777777") == pytest.approx(50, abs=0.1)  # the formula itself
    shades = [lightness(plot.COLORS[method]) for method in ("float", "minmax", "linear", "symmetric", "kmeans", "log")]
    assert all(b - a >= 11 for a, b in itertools.pairwise(shades)), shades
    assert plot.COLORS["affine"] == plot.COLORS["linear"]
    assert max(shades) < 75  # and from the white page
    assert all(abs(lightness(plot.COLORS["formats"]) - shade) >= 8 for shade in shades)


def test_every_method_has_its_own_marker_and_line():
    assert set(plot.MARKERS) == set(plot.LINESTYLES) == {"float", "linear", "log", "kmeans", "minmax", "affine", "symmetric", "formats"}
    assert set(plot.MARKERS) <= set(plot.COLORS) and {"error", "accent", "muted"} <= set(plot.COLORS)
    assert len(set(plot.MARKERS.values())) == len(plot.MARKERS) and len(set(plot.LINESTYLES.values())) == len(plot.LINESTYLES)


def test_labels_of_one_method_share_its_colour_and_differ_in_fill():
    styles = plot.line_styles(["kmeans", "K-means, per channel", "kmeans random", "log"])
    assert [s["color"] for s in styles] == [plot.COLORS["kmeans"]] * 3 + [plot.COLORS["log"]]
    assert len({str(s["markerfacecolor"]) for s in styles[:3]}) == 3
    for label in ("fancy", ""):
        with pytest.raises(ValueError, match="label is"):
            plot.line_styles([label])


def test_use_style_sets_a_white_page_and_no_box():
    with plt.rc_context():
        plot.use_style()
        ax = plot.staircase([0, 1], [0, 1])
        assert ax.figure.get_facecolor() == (1, 1, 1, 1) and not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
        assert plt.rcParams["font.size"] >= 11


# The pictures


def labelled(ax) -> bool:
    return bool(ax.get_xlabel()) and bool(ax.get_ylabel())


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_histogram_counts_every_value_and_marks_every_level(kind):
    values, levels = [0.0, 0.1, 0.1, 0.9, 1.0, 0.5], [0.0, 0.5, 1.0]
    ax = plot.histogram_with_levels(kind(values), kind(levels), bins=2)
    assert labelled(ax)
    assert ax.patches[0].get_data().values.tolist() == [3, 3]
    assert [segment[0, 0] for segment in ax.collections[0].get_segments()] == levels
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["6 values", "3 levels"]


def test_histogram_takes_an_object_with_levels():
    class Quantized:
        def levels(self):
            return torch.tensor([-1.0, 1.0])

    ax = plot.histogram_with_levels(torch.zeros(4, 5), Quantized(), method="log")
    assert [segment[0, 0] for segment in ax.collections[0].get_segments()] == [-1, 1]
    assert plt.matplotlib.colors.to_hex(ax.collections[0].get_color()[0]) == plot.COLORS["log"].lower()


def test_staircase_draws_the_pairs_in_order_of_x():
    x = torch.tensor([[0.5, -1.0], [1.0, 0.0]])
    ax = plot.staircase(x, x.round(), method="affine")
    identity, curve = ax.lines
    assert labelled(ax)
    assert list(identity.get_xdata()) == list(identity.get_ydata()) == [-1, 1]
    assert curve.get_xdata().tolist() == [-1, 0, 0.5, 1] and curve.get_ydata().tolist() == [-1, 0, 0, 1]


def test_error_curve_draws_each_method():
    curves = {"linear": [10.0, 16.0, 22.0], "log": torch.tensor([12.0, 13.0, 14.0])}
    ax = plot.error_curve([2, 3, 4], curves)
    assert labelled(ax) and "dB" in ax.get_ylabel()
    for line, (label, values) in zip(ax.lines, curves.items(), strict=True):
        assert line.get_label() == label and line.get_marker() == plot.MARKERS[label] and line.get_color() == plot.COLORS[label]
        assert line.get_xdata().tolist() == [2, 3, 4] and line.get_ydata().tolist() == list(values)


def test_pareto_draws_kilobytes_percent_and_intervals():
    rows = [(40_000, 0.90, 0.89, 0.92), (20_000, 0.80, 0.78, 0.81)]
    ax = plot.pareto({"kmeans": rows}, reference=(400_000, 0.93, 0.92, 0.94), notes={"kmeans": ["4 bits", "2 bits"]})
    line, reference = ax.lines[0], ax.lines[-1]
    assert labelled(ax) and "KB" in ax.get_xlabel() and "%" in ax.get_ylabel() and ax.get_xscale() == "log"
    assert line.get_xdata().tolist() == [20, 40] and line.get_ydata().tolist() == pytest.approx([80, 90])
    bars = ax.containers[0].lines[2][0].get_segments()
    assert np.array(bars) == pytest.approx(np.array([[[20, 78], [20, 81]], [[40, 89], [40, 92]]]))
    assert reference.get_ydata() == [93, 93] and reference.get_label() == "float, 400 KB"
    band = ax.patches[0].get_bbox()
    assert (band.y0, band.y1) == pytest.approx((92, 94))
    assert [(note.get_text(), float(note.xy[0])) for note in ax.texts] == [("4 bits", 40), ("2 bits", 20)]


def test_images_share_one_scale_and_carry_their_titles():
    pictures = torch.stack([torch.zeros(1, 28, 28), torch.full((1, 28, 28), 2.0)])
    axes = plot.images(pictures, ["dark", "light"])
    assert [ax.get_title() for ax in axes] == ["dark", "light"]
    assert [ax.images[0].get_clim() for ax in axes] == [(0, 2), (0, 2)]
    assert (axes[1].images[0].get_array() == 2).all() and axes[1].images[0].get_array().shape == (28, 28)


def test_pictures_draw_into_the_axes_given():
    _, axes = widgets.figure(8, 3, 1, 5)
    assert plot.histogram_with_levels([1.0], [1.0], axes[0]) is axes[0]
    assert plot.staircase([1.0, 2.0], [1.0, 2.0], axes[1]) is axes[1]
    assert plot.error_curve([2, 3], {"log": [1, 2]}, axes[2]) is axes[2]
    assert plot.pareto({"log": [(1, 0.5, 0.4, 0.6)]}, ax=axes[3]) is axes[3]
    assert plot.images(np.zeros((1, 28, 28)), axes=[axes[4]])[0] is axes[4]
    assert not plt.get_fignums()


@pytest.mark.parametrize("draw, says", [
    (lambda: plot.histogram_with_levels([], [1.0]), "x has 0 values"),
    (lambda: plot.histogram_with_levels([1.0], []), "levels has 0 values"),
    (lambda: plot.histogram_with_levels([float("nan")], [1.0]), "all of them finite"),
    (lambda: plot.staircase([1.0, 2.0], [1.0]), "as many"),
    (lambda: plot.error_curve([2, 3], {"log": [1.0]}), "'log' has 1 values for 2 bits"),
    (lambda: plot.pareto({"log": [(100, 92.0, 91.0, 93.0)]}), "log must be rows"),
    (lambda: plot.pareto({"log": [(0, 0.92, 0.91, 0.93)]}), "log must be rows"),
    (lambda: plot.pareto({"log": [(100, 0.92, 0.93, 0.94)]}), "log must be rows"),
    (lambda: plot.pareto({"log": []}), "log must be rows"),
    (lambda: plot.images(np.zeros((28, 28))), "pictures has the shape"),
    (lambda: plot.images(np.zeros((2, 28, 28)), ["one"]), "as many"),
])
def test_pictures_refuse_what_they_cannot_draw(draw, says):
    with pytest.raises(ValueError, match=says):
        draw()


# Redrawing


def full_drawing(fig) -> np.ndarray:
    Agg(fig).draw()
    return np.asarray(fig.canvas.buffer_rgba())[:, :, :3]


def test_redrawing_gives_the_pixels_of_a_full_drawing():
    with plt.rc_context():
        plot.use_style()
        fig, (left, right) = widgets.figure(6, 2.5, 1, 2)
        line, = left.plot([0, 1, 2], [0, 1, 0], label="a line")
        left.legend(loc="upper left")
        image = right.imshow(np.eye(4), extent=(0, 1, 0, 1))
        right.grid(False)
        left.set(xlim=(0, 2), ylim=(0, 4), xlabel="a label")
        canvas = Canvas(fig, 100)
        changes = [lambda: line.set_ydata([3, 1, 2]), lambda: image.set_data(1 - np.eye(4)), lambda: left.set_ylim(0, 9),
                   lambda: left.set_title("title"), lambda: right.set_title("title", loc="left"), lambda: left.set_xlabel("another"),
                   lambda: left.text(1, 1, "text"), lambda: fig.suptitle("over all"), lambda: right.set_axis_off(),
                   lambda: left.set_yscale("symlog"), lambda: line.set_visible(False), lambda: right.set_visible(False),
                   lambda: fig.add_axes([0.4, 0.4, 0.2, 0.2]), lambda: left.clear()]
        before = canvas.pixels().copy()
        for step, change in enumerate(changes):
            change()
            now = canvas.pixels().copy()
            assert (now != before).any(), step
            assert (now == full_drawing(fig)).all(), step
            before = now


def test_limits_that_follow_the_data_are_followed():
    fig, ax = widgets.figure(4, 2)
    line, = ax.plot([0, 1], [0, 1])
    canvas = Canvas(fig, 80)
    canvas.pixels()
    line.set_ydata([0, 50])
    ax.relim()
    ax.autoscale_view()
    assert (canvas.pixels().copy() == full_drawing(fig)).all() and ax.get_ylim()[1] > 50


def test_png_holds_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    assert (pixels_of(png(pixels)) == pixels).all()


# Live


def live(**controls):
    fig, ax = widgets.figure(5, 2.5)
    x = np.linspace(-1, 1, 101)
    line, = ax.plot(x, x)

    def update(bits=4, scheme="symmetric"):
        if bits > 6:
            raise ValueError("bits is 7,\nand <must> be at most 6.")
        line.set_ydata(np.round(x * 2 ** bits) / 2 ** bits)
        return f"<b>{2 ** bits}</b> levels"

    return widgets.Live(fig, update, **controls or {"bits": ipywidgets.IntSlider(4, 1, 8)}), line


def test_setting_a_control_redraws_at_once():
    demo, line = live()
    before = demo._image.value
    demo.controls["bits"].value = 1
    assert set(line.get_ydata()) == {-1.0, -0.5, 0.0, 0.5, 1.0} and demo.value("bits") == 1 and demo.values == {"bits": 1}
    assert (pixels_of(demo._image.value) != pixels_of(before)).any()
    assert "2</b> levels" in demo._caption.value
    assert not plt.get_fignums()


def test_a_step_draws_no_frame_and_renders_no_letter_again(monkeypatch):
    demo, _ = live()
    ax, canvas = demo.fig.axes[0], demo._canvas
    for artist in (ax.xaxis, ax.yaxis):
        monkeypatch.setattr(artist, "draw", lambda renderer: pytest.fail("a frame that is as it was"))
    monkeypatch.setattr(canvas._agg.get_renderer(), "_recorded", lambda *args: pytest.fail("a text that was drawn before"))
    monkeypatch.setattr(canvas, "_draw_frames", lambda: pytest.fail("all frames"))
    for bits in (1, 2, 3):
        demo.controls["bits"].value = bits
        assert demo.error is None and pixels_of(demo._image.value).any()


def test_a_step_computes_on_one_thread_and_gives_the_others_back():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        fig, _ = widgets.figure(3, 2)
        demo = widgets.Live(fig, lambda a: seen.append(torch.get_num_threads()), a=ipywidgets.IntSlider(1, 0, 3))
        demo.controls["a"].value = 2
        assert seen == [1, 1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_message_is_dealt_with_before_it_is_answered_so_that_steps_do_not_queue():
    """The page sends a control's next value, the newest, once the kernel is done with the last: at most one waits."""
    demo, _ = live()
    slider, pictures = demo.controls["bits"], []
    demo._image.observe(lambda change: pictures.append(change["new"]), "value")
    assert slider.continuous_update
    for bits in (1, 2, 3):
        slider._handle_msg({"content": {"data": {"method": "update", "state": {"value": bits}, "buffer_paths": []}}, "buffers": []})
        assert len(pictures) == bits and demo.text == f"<b>{2 ** bits}</b> levels"  # drawn when the call returns: nothing is left for later


def test_controls_that_move_together_are_drawn_once():
    fig, _ = widgets.figure(3, 2)
    left, right, seen = ipywidgets.IntSlider(1), ipywidgets.IntSlider(1), []
    left.observe(lambda change: right.set_trait("value", change["new"]), "value")  # before Live listens
    widgets.Live(fig, lambda **values: seen.append(tuple(values.values())), left=left, right=right)
    left.value = 7
    assert seen == [(1, 1), (7, 7)]


def test_a_track_is_as_long_as_it_has_steps_and_grows_with_them():
    fig, _ = widgets.figure(7, 2)  # 672 pixels
    few, many, most = (ipywidgets.IntSlider(1, 0, steps, description="") for steps in (5, 150, 400))
    pick = ipywidgets.SelectionSlider(options=range(90), description="of many")
    widgets.Live(fig, lambda **values: None, a=few, b=many, c=most, d=pick)

    def track(slider):
        return int(slider.layout.width.removesuffix("px")) - widgets.BESIDE - widgets.LETTER * len(slider.description)

    assert [round(track(slider)) for slider in (few, many, most, pick)] == [160, 450, 800, 268]
    few.max = 100
    assert round(track(few)) == 300
    few.max = 5
    assert round(track(few)) == 300  # a row that changes under the hand is hard to use
    assert few.layout.max_width == "100%"


def test_still_shows_figure_text_and_settings_in_the_bundle():
    demo, _ = live(bits=ipywidgets.IntSlider(4, 1, 8), scheme=ipywidgets.Dropdown(options=[("Symmetric", "symmetric")]))
    data, metadata = demo._repr_mimebundle_()
    assert data["text/plain"] == "Live figure: bits = 4, scheme = Symmetric. 16 levels"
    assert data[WIDGET_VIEW]["model_id"] == demo.model_id
    still, shown = pixels_of(data["image/png"]), pixels_of(demo._image.value)
    assert (still[:len(shown)] == shown).all()
    assert (still[len(shown):] < 128).any()  # and text below
    size = metadata["image/png"]
    assert size["alt"] == data["text/plain"]
    assert "qlab-live" in demo._dom_classes and "qlab-picture" in demo._image._dom_classes
    assert demo._caption.value.startswith('<div role="status" class="qlab-text"')
    assert size["width"] == 5 * widgets.CSS_DPI and size["height"] / size["width"] == pytest.approx(len(still) / still.shape[1], abs=0.01)


@pytest.mark.parametrize("width", [3.0, 4.37, 6.13, 7.0, 11.9])
def test_still_of_any_width(width):
    fig, ax = widgets.figure(width, 2)
    demo = widgets.Live(fig, lambda a: "a < b and $5 " * 30, a=ipywidgets.FloatSlider(0.5, min=0, max=1))
    assert pixels_of(demo.still()).shape[1] == pixels_of(demo._image.value).shape[1]


def test_settings_are_worded_as_the_reader_sees_them():
    demo, _ = live(bits=ipywidgets.FloatSlider(0.5, max=1, description="Bits:"), scheme=ipywidgets.ToggleButton(False, description="log"))
    assert demo.settings() == "Bits = 0.5   log = off"
    fig, _ = widgets.figure()
    demo = widgets.Live(fig, lambda **values: None, group_size=ipywidgets.IntSlider(32), clip=ipywidgets.Checkbox(True))
    assert demo.settings() == "group size = 32   clip = on"
    assert demo.controls["group_size"].description == "group size"


def test_an_exception_is_shown_and_kept_and_gone_after_a_good_step():
    demo, line = live()
    picture, data = demo._image.value, line.get_ydata()
    demo.controls["bits"].value = 7
    assert "ValueError: bits is 7, and &lt;must&gt; be at most 6." in demo._caption.value
    assert isinstance(demo.error, ValueError) and demo._image.value == picture and line.get_ydata() is data
    demo.controls["bits"].value = 3
    assert demo.error is None and "8</b> levels" in demo._caption.value and demo._image.value != picture


def test_an_exception_in_the_first_update_is_raised():
    with pytest.raises(ValueError, match="at most 6"):
        live(bits=ipywidgets.IntSlider(7, 1, 8))


def test_an_update_may_set_a_control():
    fig, ax = widgets.figure(3, 2)
    low, high, seen = ipywidgets.IntSlider(0), ipywidgets.IntSlider(5), []

    def update(low, high):
        seen.append((low, high))
        demo_high.value = max(high, low)

    demo_high = high
    widgets.Live(fig, update, low=low, high=high)
    low.value = 9
    assert high.value == 9 and seen[-1] == (9, 9) and len(seen) == 3


def test_a_control_must_have_a_value():
    with pytest.raises(ValueError, match="control 'run'"):
        live(run=ipywidgets.Button())


def test_the_benchmark_drives_every_control_and_puts_it_back():
    from qlab.lab import page_bench

    seen = []
    fig, _ = widgets.figure(3, 2)
    demo = widgets.Live(fig, lambda **values: seen.append(tuple(values.values())), bits=ipywidgets.IntSlider(4, 1, 8),
                        scheme=ipywidgets.Dropdown(options=[("A", "a"), ("B", "b")]), on=ipywidgets.Checkbox(True))
    (row,) = page_bench.live_steps(lives=[demo])
    assert row["controls"] == ["bits", "scheme", "on"]
    assert {bits for bits, _, _ in seen} == set(range(1, 9)) and {scheme for _, scheme, _ in seen} == {"a", "b"}
    assert {on for _, _, on in seen} == {True, False} and demo.values == {"bits": 4, "scheme": "a", "on": True}
    assert row["steps"] == len(seen) - 1 and row["median_ms"] <= row["worst_ms"] and " = " in row["at"]


# Alternative text


def test_alt_text_names_kind_title_axes_and_lines():
    ax = plot.error_curve([2, 4, 8], {"linear": [10, 22, 46], "log": [12, 14, 14]})
    ax.set(title="A title", xlim=(2, 8), ylim=(0, 50))
    assert plot.alt_text(ax.figure) == ("A title. Lines: linear, log. Across: bits per code, from 2 to 8. Up: SQNR (dB), from 0 to 50.")
    fig, (left, right) = plt.subplots(1, 2)
    left.bar(["a", "b"], [1, 2])
    left.set(ylabel="bytes", yscale="log", ylim=(1, 100))
    right.plot([0, 1], [0, 1], "o", label=r"$\hat{x}$")
    right.set(xlim=(0, 1), ylim=(0, 1), yticks=[])
    fig.suptitle("Two")
    assert plot.alt_text(fig) == ("Two. Panel 1 of 2: Bars. Across: a, b. Up: bytes, from 1 to 100 (log scale). "
                                  "Panel 2 of 2: Points: x hat. Across: from 0 to 1.")
    assert plot.alt_text(plot.images(np.zeros((2, 4, 4)), ["Bag", "Coat"])[0].figure) == "2 pictures: Bag, Coat."
    assert plot.alt_text(plt.figure()) == "An empty figure."
    plot.describe(fig, "What the author\n  says.")
    assert plot.alt_text(fig) == "What the author says."


def test_a_notebooks_pictures_carry_their_text_and_stay_the_same(monkeypatch):
    from IPython.core.formatters import DisplayFormatter

    shell = types.SimpleNamespace(kernel=None, display_formatter=DisplayFormatter())
    shell.display_formatter.formatters["image/png"].for_type(plt.Figure, lambda fig: b"the picture")
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    fig = plot.staircase([0.0, 1.0], [0.0, 1.0]).figure
    monkeypatch.setattr(plt, "switch_backend", lambda name: None)
    with plt.rc_context():
        plot.use_style()
        plot.use_style()  # twice is once
        data, metadata = shell.display_formatter.format(fig, include={"image/png"})
    assert data == {"image/png": b"the picture"} and metadata["image/png"] == {"alt": plot.alt_text(fig)}


# Questions


def test_a_question_stands_directly_before_its_options():
    p, q = widgets.predict("Which?", ["a", "b"], 0, "w"), widgets.quiz([("One?", ["a", "b"], 0, "w"), ("Two?", ["a", "b"], 0, "w")])
    for question, choices in ((p, [p.guess]), (q, q.choices)):
        assert "qlab-question" in question._dom_classes
        for choice in choices:
            before = question.children[question.children.index(choice) - 1]
            assert "qlab-ask" in before._dom_classes and "?" in before.value


def everything_shown(widget) -> str:
    """All that a front end or a stored notebook can see of a widget: its MIME bundle and the state of it and its descendants."""
    bundle, states, todo = widget._repr_mimebundle_(), [], [widget]
    while todo:
        one = todo.pop()
        states.append(str(one.get_state()))
        todo += getattr(one, "children", ())
    return "\n".join([str(bundle), repr(widget), *states])


@pytest.mark.parametrize("answer", [2, "octal"])
def test_predict_hides_the_answer_until_the_guess_is_locked_in(answer):
    p = widgets.predict("How many <b>levels</b> have 3 bits?", ["three", "six", "octal"], answer, "Each bit doubles them.")
    for _ in range(2):
        text = everything_shown(p)
        assert "doubles" not in text and "The answer" not in text and "six" in text
        assert text.count("octal") == text.count("six")  # as an option among options
        p.guess.value = "six"
        p.guess.value = None
    assert p.lock.disabled
    p.lock.click()
    assert not p.outcome.value
    p.guess.value = "six"
    assert not p.lock.disabled and "doubles" not in everything_shown(p)
    p.lock.click()
    assert plain(p.outcome.value) == "You said: six (not this time). The answer: octal. Each bit doubles them."
    assert p.guess.disabled and p.lock.disabled


def test_predict_says_when_the_guess_was_right():
    p = widgets.predict("Q", ["yes", "no"], "no", "So it is.")
    p.guess.value = "no"
    p.lock.click()
    assert "no (right)" in plain(p.outcome.value)


@pytest.mark.parametrize("guess, verdict", [(40, "off by 33.25"), (75, "as near as the slider goes")])
def test_predict_a_number(guess, verdict):
    p = widgets.predict("How many percent?", (0, 100, 5), 73.25, "Measured.")
    assert "73.25" not in everything_shown(p) and "Measured" not in everything_shown(p)
    p.guess.value = guess
    p.lock.click()
    assert plain(p.outcome.value) == f"You said: {guess} ({verdict}). The answer: 73.25. Measured."


def test_stills_are_plain_html_with_the_options_and_no_script():
    p = widgets.predict("Which?", ["a < b", "b"], 0, "w").still
    q = widgets.quiz([("One?", ["a", "b"], 0, "w")]).still
    assert "<li>a &lt; b</li><li>b</li>" in p and "One?<ul><li>a</li>" in q
    assert "<script" not in p + q and "style" not in p + q


def test_quiz_gives_feedback_and_counts_first_answers():
    q = widgets.quiz([("One?", ["a", "b"], 1, "because one"), ("Two?", ["c", "d", "e"], 0, "because two"),
                      ("Three?", ["f", "g"], 0, "because three")])
    assert "because" not in everything_shown(q)
    q.choices[0].value = "b"
    assert q.feedback[0].value == "<b>Right.</b> because one" and q.score.value.startswith("Right at the first try: 1 of 1 answered")
    q.choices[1].value = "d"
    assert "No." in q.feedback[1].value and "because two" not in everything_shown(q)
    q.choices[1].value = "c"  # explained now, but not a first answer
    assert q.feedback[1].value == "<b>Right.</b> because two" and q.score.value == "Right at the first try: 1 of 2 answered, 3 asked."


@pytest.mark.parametrize("ask", [
    lambda: widgets.predict("Q", ["a"], 0, "w"),
    lambda: widgets.predict("Q", ["a", "a"], 0, "w"),
    lambda: widgets.predict("Q", ["a", "b"], 2, "w"),
    lambda: widgets.predict("Q", ["a", "b"], "c", "w"),
    lambda: widgets.predict("Q", ["a", "b"], True, "w"),
    lambda: widgets.predict("Q", (0, 10, 20), 5, "w"),
    lambda: widgets.predict("Q", (10, 0, 1), 5, "w"),
    lambda: widgets.predict("Q", (0, 10, 1), "5", "w"),
    lambda: widgets.quiz([]),
    lambda: widgets.quiz([("Q", ["a", "b"], 0)]),
    lambda: widgets.quiz([("Q", ["a", "b"], -1, "w")]),
])
def test_questions_that_do_not_fit_together_are_refused(ask):
    with pytest.raises(ValueError, match="must be"):
        ask()
