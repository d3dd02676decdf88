"""The model card: its numbers are those of the pages that it asks, what it is given stays words, and what it leaves out it says."""

import html.parser

import pytest
import torch
from torch import nn

from qlab.lab import data, measure, zoo
from qlab.lab.data import Split
from qlab.lab.judge import card as cards
from qlab.lab.judge import energy
from qlab.nets import integer, ptq
from qlab.quant import linear

TEST = Split(*(part[:200] for part in data.load("test")))
OPTIONS = {"title": "a net", "source": "200 test images", "turns": 6}


@pytest.fixture(scope="module")
def net():
    return zoo.load("lenet300")


@pytest.fixture(scope="module")
def quantized(net):
    return ptq.quantize(net, data.calibration(128).images, weights=lambda w: linear.quantize(w, 2, "symmetric", axis=0))


@pytest.fixture(scope="module")
def simulated(net, quantized):
    return cards.card(quantized, net, TEST, arithmetic="int8", names=data.CLASSES, **OPTIONS)


def row(card, what):
    return next(row for row in card.rows if row.what.startswith(what))


def test_the_numbers_are_those_of_the_pages(net, quantized, simulated):
    a, b = measure.accuracy(net, TEST), measure.accuracy(quantized.model, TEST)
    pair = measure.mcnemar(a, b)
    assert (row(simulated, "accuracy").network, row(simulated, "accuracy").reference) == (str(b), str(a))
    assert row(simulated, "accuracy").change.startswith(f"{100 * pair.difference:+.2f} points")
    same = (net(TEST.images).argmax(1) == quantized.model(TEST.images).argmax(1)).double().mean()
    assert row(simulated, "same class").network.startswith(f"{100 * same:.1f} %")
    assert row(simulated, "bytes").network == f"{quantized.nbytes:,}"
    assert len([one for one in simulated.rows if one.what.endswith("3 of 5")]) == 5


def test_simulated_quantization_has_no_time_and_the_card_says_so(simulated):
    assert {"memory", "time"} <= simulated.missing.keys() and "simulated" in simulated.missing["time"]
    assert not any(one.what.startswith(("time", "memory")) for one in simulated.rows)
    assert "not measured" in str(simulated) and "Not measured" in simulated.markdown() and "Not measured" in simulated._repr_html_()


def test_every_number_has_a_source_and_says_of_how_many(simulated):
    assert all(one.source and one.of for one in simulated.rows)
    assert all("[" in one.network for one in simulated.rows if "image" in one.of and "energy" not in one.what)


def test_integers_that_run_are_timed_and_weighed(net):
    made = cards.card(integer.convert(ptq.quantize(net, data.calibration(64).images)), net, TEST, **OPTIONS)
    assert row(made, "time of the pipeline").network.endswith("]") and row(made, "memory").network.endswith("bytes")
    assert made.missing.keys() <= {"energy"}


def test_a_runtime_is_what_is_timed(net, quantized):
    made = cards.card(quantized, net, TEST, runtime=lambda images: torch.zeros(len(images), 10), **OPTIONS)
    assert row(made, "memory").network == "40 bytes" and "time" not in made.missing


def test_a_counter_is_read_where_there_is_one(net, monkeypatch):
    monkeypatch.setattr(energy, "counters", lambda: {"package-0": None})
    monkeypatch.setattr(energy, "measured", lambda fn, seconds: 2e-6)
    assert row(cards.card(net, net, TEST, **OPTIONS), "energy").network == "2 uJ [2, 2]"


def test_a_broken_network_gets_a_card(net):
    made = cards.card(lambda images: torch.full((len(images), 10), torch.nan), net, TEST, **OPTIONS)
    assert row(made, "accuracy").network.startswith("0.0 %") and "NaN" in made.missing["log loss"]
    assert "give nbytes" in made.missing["bytes"]


class Words(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, words):
        self.words += words


def test_what_is_given_stays_words(tmp_path):
    evil = "<script>a</script> | *b* `c`\n# d [e](f) &amp;"
    made = cards.Card(evil, (cards.Row(evil, "1", "2", evil, "3", evil),), {evil: evil})
    read = Words(made._repr_html_())
    assert read.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "ul", "li"} and read.words.count(evil) == 6
    made.write(tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert text == made.markdown()
    lines = text.splitlines()
    assert [line.replace(r"\|", "").count("|") for line in lines[2:5]] == [7, 7, 7]
    assert "<" not in text.replace(r"\<", "") and "`" not in text.replace(r"\`", "") and len(lines) == 9


def test_markdown_is_read_as_a_table(simulated):
    mistune = pytest.importorskip("mistune")  # nbconvert's
    read = Words(mistune.create_markdown(plugins=["table"])(simulated.markdown()))
    assert {"table", "ul", "h1"} <= read.tags
    for one in simulated.rows:
        assert one.network in read.words and one.change in read.words


@pytest.mark.parametrize(("options", "told"), [({"severity": 6}, "severity is 6"), ({"turns": 5}, "turns is 5"),
    ({"names": ["a"]}, "names has 1 entries"), ({"severity": 1.0}, "severity is 1.0"), ({"turns": 6.5}, "turns is 6.5"),
    ({"seed": -1}, "seed is -1"), ({"seed": 1.5}, "seed is 1.5"), ({"nbytes": -1}, "nbytes is -1"), ({"nbytes": "x"}, "nbytes is 'x'"),
    ({"seconds": "x"}, "seconds is 'x'"), ({"arithmetic": "int3"}, "arithmetic is 'int3'"),
    ({"runtime": lambda images: 3}, "the runtime cannot judge images")])
def test_card_refuses(net, monkeypatch, options, told):
    monkeypatch.setattr(cards, "_accuracy", None)                                           # nothing has been measured when it is refused
    with pytest.raises(ValueError, match=told) as caught:
        cards.card(net, net, TEST, **OPTIONS | options)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("options", [{"title": None}, {"source": 3}, {"runtime": 3}, {"names": "ab"}, {"reference": 3}, {"model": None},
                                     {"test": None}, {"test": TEST.images}, {"test": (None, TEST.labels)}])
def test_card_refuses_other_kinds(net, options):
    with pytest.raises(TypeError, match="(is a?|and must)"):
        cards.card(**{"model": net, "reference": net, "test": TEST} | OPTIONS | options)


@pytest.mark.parametrize(("test", "told"), [
    (Split(TEST.images, TEST.labels[:5]), "one for each of the 200 images"), (Split(TEST.images[:0], TEST.labels[:0]), "at least one"),
    (Split(TEST.images, TEST.labels.float()), "must be integers"), (Split(TEST.images, TEST.labels + 9), "must be from 0 to 9"),
    (Split(TEST.images, TEST.labels - 9), "must be 0 or more"), (Split(TEST.images[..., 1:], TEST.labels),
     "the reference cannot judge images")])
def test_a_split_that_cannot_be_judged_is_one_sentence(net, test, told):
    with pytest.raises(ValueError, match=told):
        cards.card(net, net, test, **OPTIONS)


def test_a_tuple_of_arrays_is_a_split(net):
    few = cards.card(net, net, Split(*(part[:20] for part in TEST)), **OPTIONS)
    again = cards.card(net, net, tuple(part[:20].numpy() for part in TEST), **OPTIONS)
    assert [one for one in again.rows if one.what[:4] != "time"] == [one for one in few.rows if one.what[:4] != "time"]


def test_a_reference_that_is_no_module_is_refused(net):
    with pytest.raises(TypeError, match="reference is a function"):
        cards.card(net, lambda images: images, TEST, **OPTIONS)


def test_a_network_in_training_is_refused(net):
    with pytest.raises(ValueError, match="the model is in training mode"):
        cards.card(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), net, TEST, **OPTIONS)
