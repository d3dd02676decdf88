"""Which classes suffer? A network can keep its accuracy and lose a class.

    each class     the exact test of McNemar on the images of that class alone                      qlab.lab.significance
    all of them    p raised by Holm's rule: ten questions are asked, and one answer in twenty is wrong by chance

A class that loses what another gains is invisible in the accuracy of all images; here both show.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qlab.lab.judge.agreement import checked_labels
from qlab.lab.significance import McNemar, holm, mcnemar
from qlab.quant.layout import as_tensor


@dataclass(frozen=True)
class ClassChange:
    """One class: pair, A against B on its images, with the interval of this class alone; p: raised by Holm for all classes asked.

    label: its number; before: the share of its images that A has right, 0 to 1.
    """

    label: int
    name: str
    before: float
    pair: McNemar
    p: float

    @property
    def significant(self) -> bool:
        """Whether the change is more than chance, with all classes in mind: p < 0.05."""
        return self.p < 0.05


def by_class(a, b, labels: torch.Tensor, names: Sequence[str] | None = None) -> list[ClassChange]:
    """What network B does to each class that network A knew, the greatest loss first; classes without images are left out.

    a, b: the Accuracy, or bool (n,), on the same images in the same order; labels: integers (n,), 0 or more; names: of the classes.
    Raises ValueError for different lengths, labels that are no such integers, or fewer names than classes, TypeError for what is no tensor.

    >>> labels = torch.tensor([0] * 50 + [1] * 50)
    >>> a, b = torch.ones(100, dtype=torch.bool), torch.arange(100) >= 10                              # B has lost ten of class 0
    >>> print(table(by_class(a, b, labels, ["coat", "bag"])))
    class              images   A right   B: points [95 %]       p, of 2 questions
    coat                   50   100.0 %   -20.0 [-31.2, -7.3]    0.004
    bag                    50   100.0 %    +0.0 [-5.3, 5.3]      1.000 noise
    """
    a, b = (as_tensor(getattr(given, "correct", given), name) for name, given in (("a", a), ("b", b)))
    labels = checked_labels(labels, mcnemar(a, b).n)
    check_names(names, labels)
    found = []
    for label in labels.unique().tolist():
        mine = labels == label
        found.append((label, names[label] if names else str(label), a[mine].double().mean().item(), mcnemar(a[mine], b[mine])))
    changes = [ClassChange(*one, p) for one, p in zip(found, holm([pair.p for *_, pair in found]))]
    return sorted(changes, key=lambda change: change.pair.difference)


def check_names(names: Sequence[str] | None, labels: torch.Tensor) -> None:
    """Raises ValueError where a class has no name, TypeError where names are no list or tuple of words."""
    if names is None:
        return
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names is {names!r}, and must be a list or tuple of words, one for each class.")
    if len(names) <= int(labels.max()):
        raise ValueError(f"names has {len(names)} entries, and must have one for each of {int(labels.max()) + 1} classes.")


def table(changes: Sequence[ClassChange]) -> str:
    """A line a class: how many images, how many points B is above A with the interval, and p."""
    lines = [f"{'class':19}images   A right   B: points [95 %]       p, of {len(changes)} questions"]
    for change in changes:
        pair = change.pair
        points = f"{100 * pair.difference:+5.1f} [{100 * pair.low:.1f}, {100 * pair.high:.1f}]"
        p = "< 0.001" if change.p < 0.001 else f"{change.p:.3f}"
        lines.append(f"{change.name:17}{pair.n:8,}{100 * change.before:8.1f} %   {points:22} {p}{'' if change.significant else ' noise'}")
    return "\n".join(lines)
