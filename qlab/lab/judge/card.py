"""A model card: everything that this folder measures, of one network beside the one that it was made of, on one page for a reader.

    quality    accuracy, log loss, agreement, divergence, calibration, the classes that change, images that are a little different
    cost       bytes, memory at the peak, time of one image alone and of the whole pipeline, energy

Each number comes with its interval, the number that it was taken from, and its source; a difference is paired. What was not measured is
said, and why: a card that is silent about speed reads as if there were nothing to say. After Mitchell et al. 2019.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qlab import saving
from qlab.errors import first_line
from qlab.lab import data, machine, measure
from qlab.lab.data import Split
from qlab.lab.judge import agreement, classes, confidence, energy, memory, shifts, timing
from qlab.lab.significance import holm, mcnemar
from qlab.nets.fake import FakeQuantize
from qlab.nets.integer import IntegerNetwork
from qlab.nets.ptq import Quantized
from qlab.quant.layout import as_tensor, check_name, check_whole, generator

COLUMNS = ("", "this network", "reference", "change", "of", "source")
ROUNDS = 6                                                                                  # the fewest with an interval
SIMULATED = "its arithmetic is simulated in float32, which shows accuracy and no speed: give what really runs as runtime"


@dataclass(frozen=True)
class Row:
    """One thing measured: of the network, of its reference, and what changed between them; of: how many images or samples; its source."""

    what: str
    network: str
    reference: str
    change: str
    of: str
    source: str


@dataclass(frozen=True)
class Card:
    """rows: what was measured; missing: what was not, and why. str() is text, _repr_html_ a notebook's, markdown() a file's.

    >>> card = Card("a net", (Row("bytes", "100", "400", "a quarter", "one file", "counted"),), {"energy": "no counter"})
    >>> print(card)
    a net
    <BLANKLINE>
    bytes                        100   (reference: 400)
                                 a quarter
                                 one file; counted
    <BLANKLINE>
    not measured
    energy                       no counter
    """

    title: str
    rows: tuple[Row, ...]
    missing: dict[str, str]

    def __str__(self) -> str:
        lines = [self.title, ""]
        for row in self.rows:
            lines.append(f"{row.what:28} {row.network}" + (f"   (reference: {row.reference})" if row.reference else ""))
            lines += [f"{'':28} {text}" for text in (row.change, f"{row.of}; {row.source}") if text]
        if self.missing:
            lines += ["", "not measured", *(f"{what:28} {why}" for what, why in self.missing.items())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cells(values: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f'<{tag} style="text-align: left">{html.escape(value)}</{tag}>' for value in values) + "</tr>"
        body = "".join(cells(_cells(row), "td") for row in self.rows)
        missing = "".join(f"<li>{html.escape(what)}: {html.escape(why)}</li>" for what, why in self.missing.items())
        return (f"<table><caption>{html.escape(self.title)}</caption><thead>{cells(COLUMNS, 'th')}</thead><tbody>{body}</tbody></table>"
                + (f"<p>Not measured:</p><ul>{missing}</ul>" if missing else ""))

    def markdown(self) -> str:
        """The card as Markdown: a table, and a list of what was not measured."""
        lines = [f"# {_plain(self.title)}", "", f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        lines += [f"| {' | '.join(map(_plain, _cells(row)))} |" for row in self.rows]
        if self.missing:
            lines += ["", "Not measured:", "", *(f"- {_plain(what)}: {_plain(why)}" for what, why in self.missing.items())]
        return "\n".join(lines) + "\n"

    def write(self, path) -> None:
        """Write markdown() to a file, whole or not at all. Raises OSError where the place cannot be written."""
        saving.write({path: self.markdown().encode()})


def _cells(row: Row) -> tuple[str, ...]:
    return row.what, row.network, row.reference, row.change, row.of, row.source


def _plain(text: str) -> str:
    """Words that Markdown takes for words: what would be a sign to it is escaped, and a line break is a space."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(text.split()))


def card(model: Callable | Quantized, reference: nn.Module, test: Split, *, title: str, source: str, nbytes: int | None = None,
         runtime: Callable | None = None, arithmetic: str | None = None, names: Sequence[str] | None = None, severity: int = 3,
         turns: int = 30, seconds: float = 1.0, seed: int = 0) -> Card:
    """Measure a network beside the float network that it was made of.

    model: a Quantized, an IntegerNetwork, a module, or a function of images to logits. reference: a module.
    test: images that neither has seen, and that nothing was chosen by; source: what they are, in words.
    nbytes: of the network's file; a Quantized and an IntegerNetwork know it, a module is counted as it lies in memory.
    runtime: images to logits, what runs in few bits, for time and memory: simulated quantization has neither.
    arithmetic: "int8", ... for the model of energy, where no counter can be read; seconds: how long a counter is watched at a time.
    names: of the classes. severity: 1 to 5, of the changed images. turns: samples of each time, at least six.
    Raises ValueError, in one sentence, for a split or another argument that cannot be judged, and for a module in training mode; TypeError
    for an argument of another kind: a reference that is no module, a title that is no text.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    >>> _ = nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    >>> test = data.load("test")
    >>> made = card(net, net, Split(test.images[:50], test.labels[:50]), title="itself", source="50 test images", turns=6)
    >>> print(*str(made).splitlines()[:5], sep=chr(10))
    itself
    <BLANKLINE>
    accuracy                     6.0 % [2.1, 16.2]   (reference: 6.0 % [2.1, 16.2])
                                 +0.00 points [-5.33, +5.33], p = 1.000: inside the noise
                                 50 images; 50 test images; McNemar, exact
    """
    test = _judgeable(test)
    shifts.check_severity(severity)
    check_whole("turns", turns, ROUNDS)                                                     # fewer samples have no interval
    energy.check_seconds(seconds)
    generator(seed)
    classes.check_names(names, test.labels)
    check_whole("nbytes", 0 if nbytes is None else nbytes, 0)
    check_name("arithmetic", "float32" if arithmetic is None else arithmetic, energy.MAC_PJ)
    for what, text in {"title": title, "source": source}.items():
        if not isinstance(text, str):
            raise TypeError(f"{what} is {text!r}, and must be words.")
    if not isinstance(reference, nn.Module):
        raise TypeError(f"reference is a {type(reference).__name__}, and must be a torch.nn.Module.")
    network, known, simulated = _network(model)
    for what, part in {"model": network, "reference": reference, "runtime": runtime}.items():
        if not callable(part) and (what, part) != ("runtime", None):
            raise TypeError(f"{what} is a {type(part).__name__}, and must be a function of images to logits.")
        if isinstance(part, nn.Module) and part.training:
            raise ValueError(f"the {what} is in training mode, and must be judged as it will be used: call eval() before.")
    if runtime is not None:
        _logits("runtime", runtime, test.images[:1])
    runs = runtime if runtime is not None or simulated else network
    nbytes = known if nbytes is None else nbytes
    rows, missing = [], {}

    def take(what: str, measured: Callable[[], list[Row]]) -> None:
        try:
            rows.extend(measured())
        except (ValueError, TypeError) as error:
            missing[what] = first_line(error)

    a, b = _logits("reference", reference, test.images), _logits("model", network, test.images)
    of = f"{len(test.labels):,} images"
    rows.append(_accuracy("accuracy", measure.right(a, test.labels), measure.right(b, test.labels), None, of, source))
    take("agreement", lambda: _agreement(a, b, test.labels, of, source))
    take("log loss", lambda: _distances(a, b, test.labels, of, source))
    take("calibration", lambda: _calibration(a, b, test.labels, of, source, seed))
    rows += _classes(measure.right(a, test.labels), measure.right(b, test.labels), test.labels, names, source)
    take("changed images", lambda: _shifts(network, reference, test, severity, seed, of, source))
    if nbytes is None:
        missing["bytes"] = "a function has no bytes to be counted: give nbytes"
    else:
        before = measure.size_bytes(reference)
        rows.append(Row("bytes", f"{nbytes:,}", f"{before:,}", f"{nbytes / before:.3f} of the reference" if before else "", "all tensors",
                        "counted, scales and zero-points included"))
    if runs is None:
        missing["memory"] = missing["time"] = SIMULATED
    else:
        take("memory", lambda: _memory(runs, reference, test.images[:1]))
        take("time", lambda: _times(runs, reference, test.images[:1], turns))
    take("energy", lambda: _energy(runs, reference, test.images[:1], nbytes, arithmetic, seconds))
    return Card(title, tuple(rows), missing)


def _judgeable(test) -> Split:
    if not isinstance(test, (tuple, list)) or len(test) != 2:
        raise TypeError(f"test is a {type(test).__name__}, and must be a Split of images and labels.")
    images = as_tensor(test[0], "images")
    if images.ndim == 0 or images.numel() == 0:
        raise ValueError(f"images have the shape {tuple(images.shape)}, and must be (images, ...), at least one.")
    return Split(images, agreement.checked_labels(test[1], len(images)))


def _logits(who: str, network: Callable, images: torch.Tensor) -> torch.Tensor:
    try:
        return measure.logits(network, images)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"the {who} cannot judge images, {images.dtype} {tuple(images.shape)} ({first_line(error)}).") from None


def _network(model) -> tuple[Callable, int | None, bool]:
    """The function of images to logits, the bytes that it knows of, and whether it only simulates its bits."""
    if isinstance(model, Quantized):
        return model.model, model.nbytes, True
    if isinstance(model, IntegerNetwork):
        return lambda images: model.decode(model(images)), model.nbytes, False
    if isinstance(model, nn.Module):
        fake = any(isinstance(part, FakeQuantize) for part in model.modules())
        return model, None if fake else measure.size_bytes(model), fake                     # fake-quantized weights lie there in float32
    return model, None, False


def _accuracy(what: str, a, b, p: float | None, of: str, source: str) -> Row:
    pair = mcnemar(a, b)
    points = f"{100 * pair.difference:+.2f} points [{100 * pair.low:+.2f}, {100 * pair.high:+.2f}]"
    p, asked = (pair.p, "") if p is None else (p, " (Holm)")
    told = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return Row(what, str(b), str(a), f"{points}, {told}{asked}{'' if p < 0.05 else ': inside the noise'}", of, f"{source}; McNemar, exact")


def _agreement(a, b, labels, of, source) -> list[Row]:
    found = agreement.agreement(a, b, labels)
    share = f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    change = (f"right: {found.both_right:,} both, {found.b_only:,} this alone, {found.a_only:,} the reference alone; "
              f"wrong: {found.wrong_alike:,} alike, {found.wrong_apart:,} apart")
    return [Row("same class", share, "", change, of, f"{source}; Wilson")]


def _estimate(found: agreement.Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.4f} bits [{found.interval[0]:{sign}.4f}, {found.interval[1]:{sign}.4f}]"


def _distances(a, b, labels, of, source) -> list[Row]:
    before, after = agreement.log_losses(a, labels), agreement.log_losses(b, labels)
    loss, apart = agreement.mean(after - before), agreement.mean(agreement.divergences(b, a))
    return [Row("log loss an image", _estimate(agreement.mean(after)), _estimate(agreement.mean(before)), _estimate(loss, "+"), of,
                f"{source}; paired by image"),
            Row("divergence an image", _estimate(apart), "", "", of, f"{source}; from the reference's probabilities")]


def _calibration(a, b, labels, of, source, seed) -> list[Row]:
    rows = []
    for by in ("width", "mass"):
        found = [confidence.ece(x, labels, by=by, seed=seed) for x in (b, a)]
        told = [f"{100 * x.value:.1f} points [{100 * x.low:.1f}, {100 * x.high:.1f}]" for x in found]
        raw = " and ".join(f"{100 * x.found:.1f} (chance {100 * x.chance:.1f})" for x in found)
        rows.append(Row(f"ECE, equal {by}", *told, f"found {raw}", of, f"{source}; estimates, chance taken into account"))
    return rows


def _classes(a, b, labels, names, source) -> list[Row]:
    """The class that loses most, and every other that changed by more than chance."""
    changes, rows = classes.by_class(a, b, labels, names), []
    for i, change in enumerate(changes):
        if i == 0 or change.significant:
            mine = labels == change.label
            what = f"class {change.name}" + (f", worst of {len(changes)}" if i == 0 else "")
            rows.append(_accuracy(what, measure.Accuracy(a.correct[mine]), measure.Accuracy(b.correct[mine]), change.p,
                                  f"{change.pair.n:,} images", source))
    return rows


def _shifts(network, reference, test, severity, seed, of, source) -> list[Row]:
    pairs = shifts.each(test, lambda split: (measure.accuracy(reference, split), measure.accuracy(network, split)),
                        severities=(severity,), seed=seed)
    ps = holm([mcnemar(*pair).p for pair in pairs.values()])
    return [_accuracy(f"{name}, {level} of 5", *pair, p, of, f"{source}, changed") for ((name, level), pair), p in zip(pairs.items(), ps)]


def _memory(runs, reference, image) -> list[Row]:
    b, a = (memory.peak(lambda network=network: network(image)) for network in (runs, reference))
    share = f"{b.nbytes / a.nbytes:.2f} of the reference" if a.nbytes else ""
    return [Row("memory at the peak", f"{b.nbytes:,} bytes", f"{a.nbytes:,} bytes", share, "one image",
                 "tensors alive at once, without weights, input and the kernels' own; exact")]


def _times(runs, reference, image, turns) -> list[Row]:
    pixels = ((image * data.STD + data.MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
    calls = {(who, stage): call for who, network in (("this", runs), ("reference", reference))
             for stage, call in timing.stages(network, pixels).items() if stage in ("network", "whole")}
    taken = timing.in_turns(calls, turns)
    rows = []
    for stage, what in {"network": "time of the network", "whole": "time of the pipeline"}.items():
        b, a = taken["this", stage], taken["reference", stage]
        told = [f"{m.value:.3g} ms [{m.low:.3g}, {m.high:.3g}]" for m in (timing.median(b.samples_ms), timing.median(a.samples_ms))]
        share = timing.ratio(b, a)
        rows.append(Row(what, *told, f"{share.value:.2f} of the reference [{share.low:.2f}, {share.high:.2f}]", f"{turns} turns, one image",
                        f"medians; {machine.describe()}"))
    return rows


def _energy(runs, reference, image, nbytes, arithmetic, seconds) -> list[Row]:
    if energy.counters() and runs is not None:
        b, a = (timing.median([1e6 * energy.measured(lambda network=network: network(image), seconds) for _ in range(ROUNDS)])
                for network in (runs, reference))
        return [Row("energy", *(f"{m.value:.3g} uJ [{m.low:.3g}, {m.high:.3g}]" for m in (b, a)), "", f"{ROUNDS} rounds of {seconds:g} s",
                    f"RAPL, above idling, medians; {machine.describe()}")]
    if arithmetic is None or nbytes is None:
        raise ValueError("no counter can be read for it on this machine, and for the model arithmetic and nbytes have to be given")
    count = energy.macs(reference, image)
    b, a = energy.modelled(count, nbytes, arithmetic), energy.modelled(count, measure.size_bytes(reference), "float32")
    return [Row("energy, by a model", *(f"{m.low:.3g} to {m.high:.3g} uJ" for m in (b, a)), f"{b.low / a.low:.3f} of the reference",
                f"{count:,} MACs, one image", f"not measured: Horowitz 2014, 45 nm, {arithmetic} against float32, weights from DRAM")]
