"""How much memory does a network need at its peak? The tensors that are alive at once while it runs.

    peak    the largest sum of the bytes of all memory that tensors made during the call hold

Every operation of torch is watched: what it allocates counts from then on, until nothing refers to it any more; views of one memory count
once. The same call gives the same number on every machine, so it can be compared. It is not the memory of a process: torch itself takes
some hundred megabytes, an operation may need room of its own while it runs (a convolution may unfold its images), and allocators round up.
The weights and the input are there before the call, and are not in it: measure.size_bytes counts the weights.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Peak:
    """nbytes: of the tensors alive at the peak; after: the operation that reached it, as torch names it.

    >>> print(Peak(25_088, "aten.convolution.default"))
    25,088 bytes (after convolution)
    """

    nbytes: int
    after: str

    def __str__(self) -> str:
        return f"{self.nbytes:,} bytes (after {(self.after.split('.') + ['nothing'])[1]})"


class _Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.now, self.peak, self.after, self.alive = 0, 0, "", {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                                                                        # torch would import its compiler, for seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _address(tensor) not in before:
                self._count(tensor.untyped_storage())
        if self.now > self.peak:
            self.peak, self.after = self.now, str(func)
        return out

    def _count(self, storage) -> None:
        key = storage._cdata                                                                # one memory, whichever tensor asks
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key) -> None:
        self.now -= self.alive.pop(key, 0)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@torch.no_grad()
def peak(fn: Callable[[], object]) -> Peak:
    """The peak of the call fn(), without gradients. Raises TypeError if fn cannot be called.

    A buffer or a cache that the call fills and keeps counts, too. Where fn runs another library, its memory is not seen.

    >>> x = torch.ones(1000)
    >>> peak(lambda: ((x + 1) * 2).sum()).nbytes                                # x + 1 and its double; the sum's four bytes come after
    8000
    """
    if not callable(fn):
        raise TypeError(f"fn is a {type(fn).__name__}, and must be a function without arguments, for example lambda: model(x).")
    with _Watch() as watch:
        fn()
    return Peak(watch.peak, watch.after)
