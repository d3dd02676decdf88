"""A small language model with random weights and gains, whose heads share keys and values; and tokens for it."""

import torch

from qlab.llm.model import GPT, Config


def gpt(seed: int = 0, dtype=torch.float64, **sizes) -> GPT:
    generator = torch.Generator().manual_seed(seed)
    given = {"vocabulary": 40, "width": 48, "blocks": 2, "heads": 4, "kv_heads": 2, "hidden": 96, "context": 32} | sizes
    model = GPT(Config(**given)).to(dtype).eval()
    for name, p in model.named_parameters():
        drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data.copy_(1 + 0.5 * drawn if name.endswith("norm.weight") else drawn / p.shape[-1] ** 0.5 * (5 if "embedding" in name else 1.5))
    return model


def tokens(count: int = 4, length: int = 20, vocabulary: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))
