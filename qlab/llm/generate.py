"""Text from a model, one token after the other; the key-value cache makes each cost one row of every matrix.

    p  =  softmax(logits / temperature)         temperature 0: the most likely token, always
"""

from numbers import Real

import torch

from qlab.llm.kv_cache import Cache, QuantizedCache
from qlab.llm.model import GPT
from qlab.llm.tokenizer import whole
from qlab.quant.layout import check_whole, generator


@torch.inference_mode()
def generate(model: GPT, tokens: list[int], count: int, temperature: float = 0.0, top_k: int | None = None, seed: int = 0,
             cache: Cache | QuantizedCache | None = None, stop: int | None = None) -> list[int]:
    """The tokens that follow `tokens`: `count` of them, or fewer where `stop` comes, which is not among them.

    temperature: 0 takes the most likely token, 1 draws by the model's probabilities; top_k: draws among so many alone. The same seed gives
    the same text. cache: an empty one of another kind (a `QuantizedCache`), by default a plain `Cache`.

    Raises TypeError for what is no GPT, no tokens or no cache; ValueError for an empty prompt, tokens outside the vocabulary, prompt and
    count longer together than the context, a temperature below 0, a top_k below 1, no seed, logits that are not finite.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> len(generate(model, [1, 2, 3], 5, temperature=1.0))
    5
    """
    if not isinstance(model, GPT):
        raise TypeError(f"model is a {type(model).__name__}, and must be a GPT of qlab.llm.model.")
    tokens, top = whole(tokens), model.config.vocabulary - 1
    if not tokens:
        raise ValueError("the prompt has no token, and must have one at least.")
    if not all(0 <= token <= top for token in tokens):
        raise ValueError(f"tokens go from {min(tokens)} to {max(tokens)}, and must be from 0 to {top}.")
    for name, given, least in (("count", count, 0), ("top_k", top_k, 1), ("stop", stop, 0)):
        if given is not None or name == "count":
            check_whole(name, given, least)
    if len(tokens) + count > model.config.context:
        raise ValueError(f"the prompt has {len(tokens)} tokens and {count} more are wanted; the model reads at most "
                         f"{model.config.context}: shorten one of them.")
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not temperature >= 0:
        raise ValueError(f"temperature is {temperature!r}, and must be a number of at least 0.")
    cache = Cache(model.config) if cache is None else cache
    if not isinstance(cache, (Cache, QuantizedCache)):
        raise TypeError(f"cache is a {type(cache).__name__}, and must be a Cache or QuantizedCache of qlab.llm.kv_cache.")
    if cache.length:
        raise ValueError(f"the cache holds {cache.length} tokens already, and must be empty.")
    random, made, new, device = generator(seed), [], tokens, model.embedding.weight.device
    while len(made) < count:
        logits = model(torch.tensor([new], device=device), cache)[0, -1].float().cpu()
        if not bool(logits.isfinite().all()):
            raise ValueError("the model's logits are not finite numbers: its weights or activations have overflowed.")
        token = _pick(logits, temperature, top_k, random)
        if token == stop:
            break
        made.append(token)
        new = [token]
    return made


def _pick(logits: torch.Tensor, temperature: float, top_k: int | None, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        best = logits.topk(top_k)                                                           # so many, also where more are equal
        logits = torch.full_like(logits, -torch.inf).scatter(0, best.indices, best.values)
    cold = ((logits - logits.max()).double() / temperature).float()                         # 0 for the most likely, however cold
    return int(torch.multinomial(torch.softmax(cold, 0), 1, generator=random))
