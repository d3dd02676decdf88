"""When to prune how much: a little at a time while the network trains, or in rounds, with training between them (source document, 2.3).

    gradual      s_t = s_f + (s_i - s_f) (1 - t / n)^3, new masks as training goes on       Zhu and Gupta 2017, eq. 1
    iterative    prune, train, prune more, train                                            Han et al. 2015
    with rewind  before each training the weights that are left go back                     Frankle and Carbin 2019

Masks and what holds them: qlab.nets.prune.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from qlab.nets import prune


def cubic(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """The sparsity after `step` of `steps` steps: fast at first, while there is much to spare, and slow at the end.

    s_t = s_f + (s_i - s_f) (1 - t / n)^3, Zhu and Gupta 2017, eq. 1; from step n on it is s_f.

    >>> [round(cubic(step, 4, 0.9), 3) for step in range(5)]
    [0.0, 0.52, 0.787, 0.886, 0.9]
    """
    if steps < 1 or step < 0:
        raise ValueError(f"step is {step} and steps is {steps}, and they must be 0 or more, and 1 or more.")
    return final + (initial - final) * (1 - min(step / steps, 1)) ** 3


def gradual(model: nn.Module, final: float, steps: int, every: int = 50, scope: str = "layer",
            skip: Sequence[str] = ()) -> tuple[prune.Masks, Callable[[], None]]:
    """(masks, after_step): training and pruning at once; the sparsity follows `cubic`, and new masks are made every `every` steps.

    Pass after_step to fit. The masks dictionary changes as the training goes on; after `steps` steps it removes the share `final`, for
    good. Raises ValueError for steps or every below 1, and whatever prune.magnitude does.
    """
    if every < 1:
        raise ValueError(f"every is {every}, and must be 1 or more.")
    cubic(0, steps, final)
    masks, taken = prune.magnitude(model, 0.0, scope, skip), 0
    prune.magnitude(model, final, scope, skip)                                              # refuses now what would fail later
    put_back = prune.hold(model, masks)

    def after_step() -> None:
        nonlocal taken
        taken += 1
        put_back()
        if taken == steps or taken < steps and taken % every == 0:
            masks.update(prune.magnitude(model, cubic(taken, steps, final), scope, skip, within=masks))
            put_back()

    return masks, after_step


def iterative(model: nn.Module, sparsities: Iterable[float | Mapping[str, float]],
              train: Callable[[nn.Module, Callable[[], None], int], object], scope: str = "layer", skip: Sequence[str] = (),
              rewind_to: Mapping[str, torch.Tensor] | None = None) -> prune.Masks:
    """Prune a little, train, prune more, train (Han et al. 2015), in place; the masks of the last round.

    sparsities: the share removed in all, round by round. train(model, after_step, round), round counted from 0, trains in place and calls
    after_step after each step of its optimiser. rewind_to: a state_dict; before each training the weights that are left go back to it.
    With the values the network had before it was first trained, that is the search for a lottery ticket (Frankle and Carbin 2019).
    Raises ValueError for a sparsity below that of the round before, and whatever prune.magnitude does.
    """
    masks = None
    for number, share in enumerate(sparsities):
        masks = prune.magnitude(model, share, scope, skip, within=masks)
        if rewind_to is not None:
            rewind(model, rewind_to, masks)
        train(model, prune.hold(model, masks), number)
    if masks is None:
        raise ValueError("sparsities is empty, and must name the share to remove in at least one round.")
    return masks


def rewind(model: nn.Module, state: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> None:
    """Give the network the parameters and buffers of state (a state_dict), with the removed weights zero; in place."""
    model.load_state_dict(state)
    prune.apply(model, masks)
