"""Training a language model on a text: one loop for the float model, for low-rank adapters on frozen codes, and for ternary weights.

What is trained is what requires a gradient. A method is compared with a control that went through the same steps with the same seed: it
has read the same runs of the text, at the same rates.
"""

import math
from dataclasses import replace
from numbers import Real

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from qlab.llm.model import GPT, check_tokens
from qlab.quant.layout import check_whole, generator


@torch.enable_grad()
def fit(model: GPT, tokens: torch.Tensor, steps: int, max_lr: float, *, batch_size: int = 16, warmup: int = 100, weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95), seed: int = 0, name: str = "training") -> list[float]:
    """Train in place on random runs of a text; return the loss of each step, nats a token. AdamW (Loshchilov and Hutter 2019); the rate
    rises for `warmup` steps, then falls to a tenth along a cosine; gradients are clipped to length 1; in the end in evaluation mode.

    tokens: int64, one dimension. Only what requires a gradient is trained; of that, vectors do not decay. Raises TypeError for what is no
    GPT; before the first step ValueError for a text that is not longer than the context or not of the vocabulary, no steps, a rate that is
    not above 0, numbers out of their range, or nothing to train; later, where the loss is no longer finite.

    >>> from qlab.llm.model import Config
    >>> small = GPT(Config(vocabulary=8, width=8, blocks=1, heads=2, kv_heads=1, hidden=8, context=4))
    >>> len(fit(small, torch.arange(64) % 8, steps=3, max_lr=1e-3))
    3
    """
    if not isinstance(model, GPT):
        raise TypeError(f"model is a {type(model).__name__}, and must be a GPT of qlab.llm.model.")
    length, trained = model.config.context, [p for p in model.parameters() if p.requires_grad]
    if not isinstance(tokens, torch.Tensor):
        raise TypeError(f"tokens is a {type(tokens).__name__}, and must be a tensor, int64 of one dimension.")
    if tokens.ndim != 1 or len(tokens) <= length:
        raise ValueError(f"the text has shape {tuple(tokens.shape)}, and must have one dimension, and more tokens than the model's context "
                         f"of {length}.")
    check_tokens(tokens[None], replace(model.config, context=len(tokens)))
    for what, given, least in (("steps", steps, 1), ("batch_size", batch_size, 1), ("warmup", warmup, 0)):
        check_whole(what, given, least)
    if isinstance(max_lr, bool) or not isinstance(max_lr, Real) or not 0 < max_lr < math.inf:
        raise ValueError(f"max_lr is {max_lr!r}, and must be a number above 0.")
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, Real) or not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay!r}, and must be a number of at least 0.")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(isinstance(b, Real) and 0 <= b < 1 for b in betas):
        raise ValueError(f"betas is {betas!r}, and must be two numbers of at least 0 and below 1.")
    if torch.is_inference_mode_enabled():
        raise ValueError("inference mode keeps no gradients: train outside of it.")
    if not trained:
        raise ValueError("nothing in the model requires a gradient: call model.requires_grad_(True), or put in what is to be trained.")
    random, losses = generator(seed), []
    optimizer = torch.optim.AdamW([{"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
                                   {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}], max_lr, betas)
    warmup = min(warmup, steps // 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / (warmup + 1) if step < warmup else
                                                 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    model.train()
    for _ in tqdm(range(steps), desc=name, unit="step"):
        starts = torch.randint(len(tokens) - length, (batch_size,), generator=random)
        rows = tokens[starts[:, None] + torch.arange(length + 1)]
        loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        if not loss.requires_grad:
            raise ValueError("the loss depends on nothing that requires a gradient: a model of merged adapters is unmerged first.")
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss of step {len(losses) + 1} is {loss.item()}, and the model is lost: take a max_lr below {max_lr:g}.")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses
