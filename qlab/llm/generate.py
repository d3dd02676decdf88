"""Text from a model, one token after the other; the key-value cache makes each cost one row of every matrix.

    p  =  softmax(logits / temperature)         temperature 0: the most likely token, always
"""

import torch

from qlab.llm.kv_cache import Cache, QuantizedCache
from qlab.llm.model import GPT


@torch.inference_mode()
def generate(model: GPT, tokens: list[int], count: int, temperature: float = 0.0, top_k: int | None = None, seed: int = 0,
             cache: Cache | QuantizedCache | None = None, stop: int | None = None) -> list[int]:
    """The tokens that follow `tokens`: `count` of them, or fewer where `stop` comes, which is not among them.

    temperature: 0 takes the most likely token, 1 draws by the model's probabilities; top_k: draws among so many alone. The same seed gives
    the same text. cache: an empty one of another kind (a `QuantizedCache`), by default a plain `Cache`. Raises ValueError for an empty
    prompt, tokens outside the vocabulary, prompt and count longer together than the context, a temperature below 0 or a top_k below 1.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> len(generate(model, [1, 2, 3], 5, temperature=1.0))
    5
    """
    if not tokens:
        raise ValueError("the prompt has no token, and must have one at least.")
    if count < 0:
        raise ValueError(f"count is {count}, and must be at least 0.")
    if len(tokens) + count > model.config.context:
        raise ValueError(f"the prompt has {len(tokens)} tokens and {count} more are wanted; the model reads at most "
                         f"{model.config.context}: shorten one of them.")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, and must be at least 0.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, and must be at least 1.")
    cache = Cache(model.config) if cache is None else cache
    if cache.length:
        raise ValueError(f"the cache holds {cache.length} tokens already, and must be empty.")
    generator, made, new = torch.Generator().manual_seed(seed), [], list(tokens)
    while len(made) < count:
        logits = model(torch.tensor([new]), cache)[0, -1].float()
        token = _pick(logits, temperature, top_k, generator)
        if token == stop:
            break
        made.append(token)
        new = [token]
    return made


def _pick(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    return int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator))
