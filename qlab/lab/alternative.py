"""Alternative text: what a figure of matplotlib shows, in one or two sentences, for a screen reader or where no picture can be.

`qlab.lab.plot.use_style` puts it beside every picture of a notebook.
"""

import re

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedFormatter


def describe(fig: Figure, text: str) -> None:
    """Say in one or two sentences what a figure shows, in place of what `alt_text` finds out by itself.

    >>> fig = Figure()
    >>> describe(fig, "A tree of seven nodes.")
    >>> alt_text(fig)
    'A tree of seven nodes.'
    """
    fig.set_label(" ".join(text.split()))


def alt_text(fig: Figure) -> str:
    """What a figure shows, for those who do not see it: of each panel its title, kind, names, axes with units and their range.

    >>> fig = Figure()
    >>> ax = fig.add_subplot(title="Errors", xlabel="bits", ylabel="SQNR (dB)", xlim=(2, 8), ylim=(0, 50))
    >>> _ = ax.plot([2, 8], [10, 46], label="linear")
    >>> alt_text(fig)
    'Errors. Lines: linear. Across: bits, from 2 to 8. Up: SQNR (dB), from 0 to 50.'
    """
    if fig.get_label():
        return fig.get_label()
    panels = [ax for ax in fig.axes if ax.get_visible()]
    said = [_panel_text(ax) for ax in panels]
    over = [] if fig.get_suptitle() == "" else [_words(fig.get_suptitle())]
    if len(panels) > 1 and all(ax.images and not ax.lines for ax in panels):  # a row of pictures: their titles say it all
        titles = ", ".join(filter(None, (_title(ax) for ax in panels)))
        return ". ".join([*over, f"{len(panels)} pictures" + (f": {titles}" if titles else "")]) + "."
    if len(panels) > 1:
        said = [f"Panel {number} of {len(panels)}: {text}" for number, text in enumerate(said, 1)]
    return " ".join(f"{text}." for text in [*over, *said]) or "An empty figure."


def _panel_text(ax: Axes) -> str:
    names = [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else ax.get_legend_handles_labels()[1]
    if ax.images:
        kind = "Picture"
    elif any(isinstance(part, BarContainer) for part in ax.containers):
        kind = "Bars"
    elif any(isinstance(patch, StepPatch) for patch in ax.patches):
        kind = "Histogram"
    elif ax.lines or ax.collections:
        kind = "Points" if all(line.get_linestyle() in ("None", "") for line in ax.lines) else "Lines"
    else:
        kind = "Drawing"
        names = names or [text.get_text() for text in ax.texts]
    names = [name for name in map(_words, dict.fromkeys(names)) if name]
    said = [_title(ax), kind + (f": {', '.join(names)}" if names else "")]
    if ax.axison:
        said += [_axis_text("Across", ax.xaxis), _axis_text("Up", ax.yaxis)]
    return ". ".join(filter(None, said))


def _title(ax: Axes) -> str:
    return ", ".join(filter(None, (_words(ax.get_title(loc)) for loc in ("left", "center", "right"))))


def _axis_text(direction: str, axis: Axis) -> str:
    """Label, and range or names of the ticks; "" for an axis with neither label nor ticks."""
    ticks = axis.get_majorticklocs()
    named = axis.get_major_formatter()
    words = [_words(word) for word in named.format_ticks(ticks)] if isinstance(named, FixedFormatter | StrCategoryFormatter) else []
    label = _words(axis.get_label_text())
    if not label and not len(ticks):
        return ""
    low, high = (f"{end:.3g}" for end in axis.get_view_interval())
    scale = "" if axis.get_scale() == "linear" else f" ({axis.get_scale()} scale)"
    about = f"from {low} to {high}{scale}" if not any(words) else ", ".join(filter(None, words))
    return f"{direction}: {label}, {about}" if label else f"{direction}: {about}"


def _words(text: str) -> str:
    r"""Text without the signs of TeX.

    >>> _words(r"decoded value $\hat{x}$, $2^{-3}$")
    'decoded value x hat, 2^-3'
    """
    text = re.sub(r"\\hat\s*\{?\s*(\w+)\}?", r"\1 hat", text.replace("$", ""))
    return " ".join(re.sub(r"\\[,;! ]", " ", re.sub(r"\\(\w+)", r"\1", text)).replace("{", "").replace("}", "").split())
