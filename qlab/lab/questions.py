"""Questions in a notebook: `predict` asks for a guess before the answer is shown, `quiz` checks oneself at the end.

Both are live with a kernel. Without one the reader sees the question and its options as plain HTML. No answer is in the widget's state or
in what a notebook stores until the question has been answered: the answer stays in the kernel (and in the cell that asks).
"""

import html
import re
from collections.abc import Sequence

import ipywidgets

from qlab.translate import tr

WIDE = {"width": "auto", "max_width": "48em"}
# ipywidgets gives each option one line's height: a long one would run into the next
STYLE = """<style>.qlab-question .widget-radio-box label {height: auto; line-height: 1.5; padding: 2px 0 2px 24px; position: relative}
.qlab-question .widget-radio-box input {position: absolute; left: 4px; top: 0.25em; margin: 0}
.qlab-question .widget-radio, .qlab-question .widget-radio-box {height: auto; max-height: none}</style>"""


def plain(text: str) -> str:
    """HTML without its tags, on one line.

    >>> plain("error <b>0.5</b><br>4 &times; smaller")
    'error 0.5 4 × smaller'
    """
    text = re.sub(r"</?(br|p|div|li|tr|td)\b[^>]*>", " ", text)
    return " ".join(html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", "", text)).split())


class _Question(ipywidgets.VBox):
    """A box with a still: `still` is its HTML, `summary` its plain text."""

    still = summary = ""

    def __init__(self, children: Sequence[ipywidgets.Widget]):
        super().__init__([ipywidgets.HTML(STYLE, layout=ipywidgets.Layout(display="none")), *children])
        self.add_class("qlab-question")

    def _repr_mimebundle_(self, **kwargs):
        data = super()._repr_mimebundle_(**kwargs)
        return data and data | {"text/plain": self.summary, "text/html": self.still}


def _html(text: str, **layout) -> ipywidgets.HTMLMath:
    return ipywidgets.HTMLMath(text, layout=ipywidgets.Layout(**WIDE | layout))


def _ask(text: str, **layout) -> ipywidgets.HTMLMath:
    """The question's text, directly before its options: the page's script names the group of options after it."""
    asked = _html(text, **layout)
    asked.add_class("qlab-ask")
    return asked


def _radio(options: Sequence[str]) -> ipywidgets.RadioButtons:
    return ipywidgets.RadioButtons(options=list(options), value=None, layout=ipywidgets.Layout(**WIDE))


def _list(options: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(option)}</li>" for option in options) + "</ul>"


def _options(options: Sequence[str], right) -> list[str]:
    """The options as a list, once they and the right one have been checked."""
    options = list(options)
    if len(options) < 2 or len(set(options)) < len(options) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"options is {options!r}, and must be at least two different strings.")
    if type(right) is not int or not 0 <= right < len(options):
        raise ValueError(f"the right option is {right!r}, and must be an index from 0 to {len(options) - 1}.")
    return options


class Predict(_Question):
    """What `predict` shows. `guess` is the control, `lock` the button, `outcome` the HTML that is empty until the guess is locked in."""

    def __init__(self, question: str, options, answer, explain: str):
        numeric = isinstance(options, tuple) and len(options) == 3 and all(isinstance(number, (int, float)) for number in options)
        if numeric:
            low, high, step = options
            if not (low < high and 0 < step <= high - low):
                raise ValueError(f"options is {options}, and must be (low, high, step) with low < high and 0 < step <= high - low.")
            if isinstance(answer, bool) or not isinstance(answer, (int, float)):
                raise ValueError(f"answer is {answer!r}, and must be a number when options is (low, high, step).")
            kind = ipywidgets.IntSlider if all(isinstance(number, int) for number in options) else ipywidgets.FloatSlider
            self.guess = kind(value=low, min=low, max=high, step=step, description=tr("Your guess"), style={"description_width": "initial"},
                              layout=ipywidgets.Layout(width="32em", max_width="100%"))
            choices = "<p>" + tr("A number from {low:g} to {high:g}.", low=low, high=high) + "</p>"
        else:
            answer = list(options).index(answer) if isinstance(answer, str) and answer in list(options) else answer
            options = _options(options, answer)
            self.guess = _radio(options)
            choices = _list(options)
        self._options, self._answer, self._explain, self._numeric = options, answer, explain, numeric
        self.lock = ipywidgets.Button(description=tr("Lock in my guess"), disabled=not numeric, layout=ipywidgets.Layout(width="12em"))
        self.outcome = _html("")
        super().__init__([_ask(f"{tr('<b>Predict.</b>')} {question}"), self.guess, self.lock, self.outcome])
        self.still = f"<p>{tr('<b>Predict.</b>')} {question} <em>{tr('Choose before you read on.')}</em></p>{choices}"
        self.summary = f"Predict. {plain(question)}"  # in every language: a saved page's widgets are known by it
        self.guess.observe(self._chosen, "value")
        self.lock.on_click(self._lock)

    def _chosen(self, _change) -> None:
        if not self._numeric:
            self.lock.disabled = self.guess.value is None

    @property
    def answers(self) -> list[str]:
        """The answer with its reason, as HTML; nothing that is shown or stored holds it before a guess."""
        answer = f"{self._answer:g}" if self._numeric else html.escape(self._options[self._answer])
        return [f"<b>{answer}</b>. {self._explain}"]

    def _lock(self, _button) -> None:
        if self.guess.disabled or self.guess.value is None:
            return
        self.guess.disabled = self.lock.disabled = True
        if self._numeric:
            guess = f"{self.guess.value:g}"
            off = abs(self.guess.value - self._answer)
            verdict = tr("as near as the slider goes") if off <= self._options[2] / 2 else tr("off by {off:g}", off=off)
        else:
            guess = html.escape(self.guess.value)
            verdict = tr("right") if self._options.index(self.guess.value) == self._answer else tr("not this time")
        self.outcome.value = tr("You said: <b>{guess}</b> ({verdict}). The answer: {answer}", guess=guess, verdict=verdict,
                                answer=self.answers[0])


def predict(question: str, options, answer, explain: str) -> Predict:
    """A question to answer before the page does. The answer appears, with one sentence why, once a guess is locked in.

    question, explain: text, HTML or LaTeX between dollar signs; options: strings, or (low, high, step) for a number;
    answer: an option or its index, or the number. Raises ValueError when they do not fit each other.

    >>> p = predict("How many levels have 3 bits?", ["3", "6", "8"], "8", "Each bit doubles them.")
    >>> p.guess.value = "6"
    >>> p.lock.click()
    >>> plain(p.outcome.value)
    'You said: 6 (not this time). The answer: 8. Each bit doubles them.'
    """
    return Predict(question, options, answer, explain)


class Quiz(_Question):
    """What `quiz` shows. `choices` are the controls, `feedback` one HTML each, `score` the line below."""

    def __init__(self, questions: Sequence[tuple]):
        if not questions or not all(len(question) == 4 for question in questions):
            raise ValueError("questions must be at least one tuple (question, options, index of the right option, why).")
        self._questions = [(text, _options(options, right), right, why) for text, options, right, why in questions]
        self.choices = [_radio(options) for _, options, _, _ in self._questions]
        self.feedback = [_html("") for _ in self._questions]
        self.score = _html("")
        self._first: dict[int, bool] = {}  # question -> was its first answer right
        rows = [_html(tr("<b>Check yourself.</b>"))]
        for number, (text, _, _, _) in enumerate(self._questions):
            rows += [_ask(f"{number + 1}. {text}", margin="0.8em 2px 0"), self.choices[number], self.feedback[number]]
            self.choices[number].observe(lambda change, number=number: self._answered(number, change["new"]), "value")
        super().__init__([*rows, self.score])
        self.still = f"<p>{tr('<b>Check yourself.</b>')}</p><ol>" + "".join(
            f"<li>{text}{_list(options)}</li>" for text, options, _, _ in self._questions) + "</ol>"
        self.summary = " ".join(["Check yourself.", *(f"{i + 1}. {plain(text)}" for i, (text, *_) in enumerate(self._questions))])
        self._tell()

    @property
    def answers(self) -> list[str]:
        """Each question's answer with its reason, as HTML; nothing that is shown or stored holds it before a guess."""
        return [f"<b>{html.escape(options[right])}</b>. {why}" for _, options, right, why in self._questions]

    def _answered(self, number: int, chosen: str | None) -> None:
        if chosen is None:
            return
        _, options, right, why = self._questions[number]
        correct = options.index(chosen) == right
        self._first.setdefault(number, correct)
        self.feedback[number].value = f"{tr('<b>Right.</b>')} {why}" if correct else tr("<b>No.</b> Think again, and choose another.")
        self._tell()

    def _tell(self) -> None:
        right, answered = sum(self._first.values()), len(self._first)
        self.score.value = tr("Right at the first try: {right} of {answered} answered, {asked} asked.",
                              right=right, answered=answered, asked=len(self._questions))


def quiz(questions: Sequence[tuple]) -> Quiz:
    """Quick questions with an answer at once: [(question, options, index of the right one, why), ...].

    The first answer to a question counts; a wrong one may be changed, and the reason appears with the right one.

    >>> q = quiz([("Is 0.0 exact in scheme affine?", ["Yes", "No"], 0, "Its zero-point is an integer.")])
    >>> q.choices[0].value = "Yes"
    >>> plain(q.score.value)
    'Right at the first try: 1 of 1 answered, 1 asked.'
    """
    return Quiz(questions)
