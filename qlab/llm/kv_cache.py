"""The key-value cache: what attention keeps of the tokens before, so that a new token costs one row and not the whole text again.

    bytes  =  2 * blocks * kv_heads * head_width * tokens * bytes of a number
"""

import torch

from qlab.llm.model import Config


class Cache:
    """Keys and values of each block as they come, for `GPT.forward`; length: the tokens in it. Made for one batch of texts.

    >>> cache = Cache(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> key = torch.zeros(1, 1, 3, 4)                                       # (batch, kv_heads, new tokens, head_width)
    >>> cache.append(0, key, key)[0].shape, cache.append(0, key, key)[0].shape, cache.length
    (torch.Size([1, 1, 3, 4]), torch.Size([1, 1, 6, 4]), 6)
    """

    def __init__(self, config: Config):
        self._held: list[tuple | None] = [None] * config.blocks

    @property
    def length(self) -> int:
        return 0 if self._held[-1] is None else self._held[-1][0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for held in self._held if held is not None for x in held)

    def append(self, block: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the block, with the new ones at the end; (batch, kv_heads, tokens, head_width) each."""
        if self._held[block] is not None:
            key, value = (torch.cat([old, new], 2) for old, new in zip(self._held[block], (key, value)))
        self._held[block] = key, value
        return key, value
