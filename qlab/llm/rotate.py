"""Rotation (QuaRot, Ashkboos et al. 2024; SpinQuant, Liu et al. 2024): no channel is loud if each is a mixture of all.

    y  =  (x Q) (W Q).T  =  x W.T                   Q orthogonal: Q @ Q.T = 1

A Hadamard matrix has entries 1 and -1 alone, divided by sqrt(n): one value of size a in x becomes n values of size a / sqrt(n) in x Q. Its
rows' signs are drawn at random, so that no channel is treated by a known pattern. Where the rotations go in a model:

    stream     embedding Q, readers W Q, writers Q.T W: the whole stream of the model is turned, and nothing is computed more. A norm
               divides by the length of x, which Q leaves; its gain, which it would not, first goes into the readers. The last norm's goes
               into a head of the model's own, for the embedding, which was the head, is also the input.
    values     the values of each head Q in their rows, attention's output in its columns: the softmax weighs tokens, not channels
    down       down reads silu(gate) * up, which no rotation passes: x Q is computed when the model runs (`Hadamard`), n log n sums
"""

from numbers import Integral

import torch
from torch import nn

from qlab.llm import scaling
from qlab.llm.activations import check_plain
from qlab.llm.model import GPT
from qlab.nets.plain import plain_copy
from qlab.quant.layout import generator

PLACES = ("stream", "values", "down")
PALEY = (12, 20)                                                                            # orders that are no power of two


def hadamard(n: int) -> torch.Tensor:
    """The Hadamard matrix of an order 2**k * 12**m * 20**l over sqrt(n), orthogonal: float64 (n, n).

    The Kronecker product of Sylvester's (1867) for the power of two and Paley's (1933) for 12 and 20. Raises ValueError for another order.

    >>> hadamard(4) * 2
    tensor([[ 1.,  1.,  1.,  1.],
            [ 1., -1.,  1., -1.],
            [ 1.,  1., -1., -1.],
            [ 1., -1., -1.,  1.]], dtype=torch.float64)
    >>> h = hadamard(576)
    >>> torch.allclose(h @ h.T, torch.eye(576).double()), (h.abs() * 24).unique()
    (True, tensor([1.], dtype=torch.float64))
    """
    made = torch.ones(1, 1, dtype=torch.float64)
    for order in orders(n):
        made = torch.kron(made, _signs(order))
    return made / n**0.5


def orders(n: int) -> list[int]:
    """The orders whose product is n: twelves, twenties, and powers of two of at most 64.

    >>> orders(576), orders(1536), orders(320)
    ([12, 12, 4], [12, 64, 2], [20, 16])
    """
    left, found = int(n) if isinstance(n, Integral) and not isinstance(n, bool) else 0, []
    if left > 0:
        for order, odd in ((12, 3), (20, 5)):
            while left % odd == 0 and left % order == 0:
                left, found = left // order, [*found, order]
        while left % 2 == 0:
            order = min(64, left & -left)
            left, found = left // order, [*found, order]
    if left != 1:
        raise ValueError(f"there is no Hadamard matrix of order {n!r} here: it must be a power of two times powers of 12 and 20, as 64, "
                         "576, 1536 or 320 are.")
    return found


def _signs(order: int) -> torch.Tensor:
    return _paley(order) if order in PALEY else _sylvester(order)


def _sylvester(n: int) -> torch.Tensor:
    """From 1 to 2, 4, 8, ..: each the one before, twice beside itself, and once negated."""
    made = torch.ones(1, 1, dtype=torch.float64)
    while len(made) < n:
        made = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), made)
    return made


def _paley(n: int) -> torch.Tensor:
    """Of a prime n - 1 that is 3 modulo 4: entry (i, j) says whether i - j is a square modulo n - 1."""
    q = n - 1
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0, *(1.0 if i in squares else -1.0 for i in range(1, q))], dtype=torch.float64)
    made, i = torch.eye(n, dtype=torch.float64), torch.arange(q)
    made[0, 1:], made[1:, 0] = 1, -1
    made[1:, 1:] += character[(i[:, None] - i) % q]
    return made


def random_hadamard(n: int, seed: int = 0) -> torch.Tensor:
    """A Hadamard matrix the signs of whose rows are drawn: orthogonal, float64 (n, n). Raises ValueError as `hadamard`, or for no seed."""
    h = hadamard(n)
    return (torch.randint(2, (n, 1), generator=generator(seed)).double() * 2 - 1) * h


class Hadamard(nn.Module):
    """x (..., n) to x @ hadamard(n), in n times the sum of `orders(n)` products instead of n * n; no parameters.

    >>> x = torch.eye(24)
    >>> torch.allclose(Hadamard(24)(x), hadamard(24).float())
    True
    """

    def __init__(self, n: int):
        super().__init__()
        self.n, self.orders = n, orders(n)
        for order in self.orders:
            # 1 and -1 stay exact, whatever the model is converted to.
            self.register_buffer(f"signs{order}", _signs(order).float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.n:
            raise ValueError(f"x has {x.shape[-1]} channels, and must have {self.n}.")
        x = x * self.n**-0.5
        # The product of Kronecker factors, one after the other: each is multiplied to its axis, which then is put last.
        for order in self.orders:
            signs = getattr(self, f"signs{order}").to(x.dtype)
            x = (x.unflatten(-1, (order, -1)).transpose(-1, -2) @ signs).flatten(-2)
        return x

    def extra_repr(self) -> str:
        return f"{self.n}"


@torch.no_grad()
def fold_gains(model: GPT) -> GPT:
    """A copy of the same function whose norms have gains of 1: each is in the columns of what reads the norm, the last in the model's head.

    The embedding is no longer read twice then: `head` is a weight of its own. Raises ValueError for another model.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> fold_gains(model).head.shape
    torch.Size([10, 8])
    """
    folded = _wide(model)
    _fold(folded)
    return _rounded(folded, model)


def _fold(wide: GPT) -> None:
    for source, readers, _ in scaling.pairs(wide, "norm"):
        norm = wide.get_submodule(source)
        for name in readers:
            wide.get_submodule(name).weight.mul_(norm.weight)
        norm.weight.fill_(1)
    wide.head = nn.Parameter((wide.embedding.weight if wide.head is None else wide.head) * wide.norm.weight)
    wide.norm.weight.fill_(1)


@torch.no_grad()
def rotate(model: GPT, seed: int = 0, places: tuple[str, ...] = PLACES) -> GPT:
    """A copy that computes the same, up to rounding, on rotated activations and with rotated weights.

    places: of stream, values and down, see above; seed: of the stream's and the values' signs. The stream unties the embedding: the copy
    has a `head`. All is computed in float64, and each weight is rounded once, at the end. Raises ValueError for another model, a place that
    there is not, a width, head or MLP of a size that has no Hadamard matrix, a model whose down projections are rotated already, one with
    other norms than RMSNorm or with biases, and weights that are not finite.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32)).double()
    >>> rotated, tokens = rotate(model), torch.tensor([[1, 2, 3]])
    >>> torch.allclose(rotated(tokens), model(tokens), atol=1e-10), rotated.blocks[0].mlp.rotation
    (True, Hadamard(16))
    """
    wide = _wide(model)
    if isinstance(places, str) or any(place not in PLACES for place in places):
        raise ValueError(f"places is {places!r}, and may hold {', '.join(PLACES)}.")
    if "down" in places and any(not isinstance(block.mlp.rotation, nn.Identity) for block in model.blocks):
        raise ValueError("the down projections of the model are rotated already: leave down out of places.")
    c, device = model.config, model.embedding.weight.device
    if "stream" in places:
        _fold(wide)
        q = random_hadamard(c.width, seed).to(device)
        for weight in (wide.embedding.weight, wide.head):
            weight.copy_(weight @ q)
        for block in wide.blocks:
            for reader in (block.attention.query, block.attention.key, block.attention.value, block.mlp.gate, block.mlp.up):
                reader.weight.copy_(reader.weight @ q)
            for writer in (block.attention.output, block.mlp.down):
                writer.weight.copy_(q.T @ writer.weight)
    if "values" in places:
        q = random_hadamard(c.head_width, seed + 1).to(device)
        for block in wide.blocks:
            value, output = block.attention.value.weight, block.attention.output.weight
            value.copy_((q.T @ value.unflatten(0, (-1, len(q)))).flatten(0, 1))             # (kv_heads, head_width, width)
            output.copy_((output.unflatten(1, (-1, len(q))) @ q).flatten(1))                # (width, heads, head_width)
    if "down" in places:
        for block in wide.blocks:
            block.mlp.rotation = Hadamard(c.hidden).to(device)
            block.mlp.down.weight.copy_(block.mlp.down.weight @ hadamard(c.hidden).to(device))
    return _rounded(wide, model)


def _wide(model: GPT) -> GPT:
    """A copy with parameters in float64. Raises ValueError for another model, or one that reads quantized activations or has other layers:
    a LayerNorm's mean and a bias would have to be turned, too, and codes cannot be."""
    scaling.check_gpt(model)
    check_plain(model)
    for name in ["norm", *(name for pair in scaling.pairs(model, *scaling.PLACES) for name in (pair.source, *pair.readers))]:
        layer, kind = model.get_submodule(name), nn.RMSNorm if name.endswith("norm") else nn.Linear
        if type(layer) is not kind or getattr(layer, "bias", None) is not None:
            raise ValueError(f"{name} is a {type(layer).__name__} {'with a bias ' if type(layer) is kind else ''}and must be an "
                             f"nn.{kind.__name__} without bias, to be turned.")
    wide = plain_copy(model)
    for p in wide.parameters():
        p.data = p.data.double()
    return wide


def _rounded(wide: GPT, model: GPT) -> GPT:
    """The parameters in the model's dtypes; a head that it has not, in its embedding's. Raises ValueError where one is not finite there."""
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    for name, p in wide.named_parameters():
        p.data = p.data.to(dtypes.get(name, model.embedding.weight.dtype))
        if not bool(p.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity, or numbers beyond the largest {p.dtype} when it is turned: rotate in float32.")
    return wide
