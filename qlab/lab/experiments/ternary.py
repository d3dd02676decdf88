"""The runs behind notebook 15's last part: ternary weights, rounded and trained, beside what the same training and bytes buy in floats.

    python -m qlab.lab.experiments.ternary                  about an hour on one core; writes records/language_ternary.json

    float                  the course's model as it is, float16
    ternary, rounded       its matrices rounded, one gamma each, five weights in a byte
    ternary, trained       from there trained straight through for STEPS steps
    float, trained on      the control: the float model trained for the same steps, on the same runs of the text
    smaller float          of as many bytes in float16 as the ternary model has, trained from nothing for as many steps as both together

The rate of each is the better of RATES on the validation part; the result is of Persuasion. Bytes: matrices as coded, all else float16.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from qlab.lab import language, runs, text
from qlab.lab.experiments.language import Subject, gpt, kept, measured
from qlab.llm import evaluate, ternary, training
from qlab.llm.generate import generate

STEPS = 500
RATES = (1e-3, 3e-4)
SMALL = replace(language.CONFIG, width=128, blocks=2, hidden=256)
PROMPT = "Captain Wentworth was"


def nbytes(model: nn.Module, tensors: dict | None = None) -> int:
    """Bytes of a file: coded matrices as they are, everything else in float16.

    >>> nbytes(nn.Linear(3, 2))
    16
    """
    tensors = tensors or {}
    kept = [p for name, p in model.named_parameters() if name.removesuffix(".weight") not in tensors]
    return sum(q.nbytes for q in tensors.values()) + 2 * sum(p.numel() for p in kept)


def trained(model: nn.Module, steps: int, rate: float, name: str) -> nn.Module:
    """A copy, trained for so many steps from the same seed."""
    copied = copy.deepcopy(model).requires_grad_(True)
    training.fit(copied, torch.tensor(text.tokens("train")), steps=steps, max_lr=rate, name=f"{name}, {rate:g}")
    return copied


def best(model: nn.Module, steps: int, rates: tuple[float, ...], name: str) -> tuple[nn.Module, dict]:
    """The model trained at each rate, of which the best on the validation part is kept; and what each reached there."""
    seen, made = text.sample("validation", count=64), {}
    for rate in rates:
        one = trained(model, steps, rate, name)
        made[rate] = evaluate.bits_per_byte(evaluate.score(one, seen)).value, one
    rate = min(made, key=lambda rate: made[rate][0])
    reached = {f"{rate:g}": round(found, 4) for rate, (found, _) in made.items()}
    return made[rate][1], {"steps": steps, "max_lr": rate, "validation": reached}


def row(subject: Subject, model: nn.Module, size: int, **more) -> dict:
    """A row of the record, with a text that the model writes."""
    tokens = text.bpe().encode(PROMPT)
    words = text.bpe().decode(generate(model, tokens, 40, temperature=0.7, seed=1))
    return measured(subject, model, nbytes=size, text=PROMPT + words, **more)


def run(steps: int = STEPS, rates: tuple[float, ...] = RATES, subject: Subject | None = None, **where) -> dict:
    """All five rows; where: folder, of the record."""
    subject = gpt() if subject is None else subject
    model, before = subject.model, language.RECIPE["steps"]
    rows = {"float": row(subject, model, nbytes(model))}
    prepared = ternary.prepare(model)
    q = ternary.pack(prepared)
    rows["ternary, rounded"] = row(subject, q.model, nbytes(q.model, q.tensors))
    found, how = best(prepared, steps, rates, "ternary")
    q = ternary.pack(found)
    rows["ternary, trained"] = row(subject, q.model, nbytes(q.model, q.tensors), **how)
    found, how = best(model, steps, rates, "float")
    rows["float, trained on"] = row(subject, found, nbytes(found), **how)
    found, how = best(language.initial(SMALL, 0), before + steps, (language.RECIPE["max_lr"],), "smaller float")
    rows["smaller float"] = row(subject, found, nbytes(found), **how)
    return runs.write("language_ternary", "python -m qlab.lab.experiments.ternary", **where, rows=rows,
                      nbytes_of_blocks=kept(subject.test.nbytes, "<i4"), tokens_of_a_block=subject.test.tokens.shape[1] - 1)


if __name__ == "__main__":
    run()
