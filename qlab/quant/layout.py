"""Which elements share a scale: every quantizer sees its input as rows, and one row shares one scale (or one codebook).

    per tensor          1 row: all elements
    axis=0              a row for each index along axis 0 (each output channel of a weight)
    axis=0, group_size  each channel's row cut into groups of group_size elements, in memory order

Also the checks at the door that all quantizers share.
"""

import math
from numbers import Integral

import numpy as np
import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_tensor(x, name: str = "x", dtype: torch.dtype | None = None) -> torch.Tensor:
    """x (tensor, array, list or number) as a detached tensor, of a real dtype if one is given; TypeError where it is no such thing.

    An array that torch cannot share is copied: one that runs backwards, is read-only or has the other byte order.

    >>> as_tensor(np.arange(3.0)[::-1]).tolist()
    [2.0, 1.0, 0.0]
    """
    try:
        if isinstance(x, (list, tuple)) and any(isinstance(part, np.ndarray) for part in x):
            x = np.stack(x)
        if np.ma.is_masked(x):
            raise TypeError("some of its elements are masked")
        if isinstance(x, np.ndarray):
            plain = x.flags.writeable and x.flags.aligned and x.dtype.isnative
            if not plain or any(stride < 0 or stride % x.itemsize for stride in x.strides):
                x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
        tensor = torch.as_tensor(x, dtype=None if isinstance(x, (torch.Tensor, np.ndarray)) else dtype).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} is a {type(x).__name__} and no tensor ({error}); give a tensor, an array or a list.") from None
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {tensor.layout}, and must hold every element: convert it by x.to_dense().")
    if dtype is not None and tensor.is_complex():
        raise TypeError(f"{name} holds {tensor.dtype}, and must hold real numbers.")
    return tensor if dtype is None else tensor.to(dtype)


def as_float(x, name: str = "x") -> torch.Tensor:
    """x (tensor, array, list or number) as a detached floating-point tensor; TypeError where it holds no floating-point numbers, ValueError
    where it holds none at all, on the meta device."""
    x = as_tensor(x, name)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} holds {x.dtype}, and must hold float16, bfloat16, float32 or float64: convert it, for example x.float().")
    _check_values(x, name)
    return x


def as_integers(x, name: str = "x") -> torch.Tensor:
    """x (tensor, array or list) as a tensor of integers; unsigned ones of more than 8 bits, of which torch finds no largest, as int64.
    TypeError where it holds no integers, ValueError where it holds none at all, on the meta device."""
    x = as_tensor(x, name)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} holds {x.dtype}, and must hold integers.")
    _check_values(x, name)
    return x if x.dtype.is_signed or x.dtype == torch.uint8 else x.long()


def _check_values(x: torch.Tensor, name: str) -> None:
    if x.is_meta:
        raise ValueError(f"{name} is on the meta device, and must be on one that holds values: fill it first.")


def generator(seed) -> torch.Generator:
    """A generator of random numbers with this seed. Raises ValueError for what is no whole number of at most 63 bits."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}, and must be a whole number from 0 to 2**63 - 1.")
    return torch.Generator().manual_seed(int(seed))


def check_bits(bits, low: int, high: int = 16) -> int:
    if isinstance(bits, bool) or not isinstance(bits, Integral) or not low <= bits <= high:
        raise ValueError(f"bits is {bits!r}, and must be a whole number from {low} to {high}.")
    return int(bits)


def check_whole(name: str, given, least: int) -> None:
    """Raises ValueError unless given is a whole number of at least so many."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
        raise ValueError(f"{name} is {given!r}, and must be a whole number of at least {least}.")


def check_name(what: str, name, allowed) -> None:
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(f"{what} is {name!r}, and must be one of {', '.join(allowed)}.")


def check_scale_dtype(dtype: torch.dtype | None, x: torch.Tensor) -> torch.dtype:
    """What scales are stored as: by default float32, float64 for float64 x."""
    if dtype is None:
        return torch.float64 if x.dtype == torch.float64 else torch.float32
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"scale_dtype is {dtype!r}, and must be torch.float16, torch.bfloat16, torch.float32 or None.")
    return dtype


def stored_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Positive scales, float64, as a file holds them: to the nearest number of the dtype; in 16 bits the next above, so that the largest
    value is still inside the range. A scale is at least the smallest normal number of float32 or float64, the smallest number of float16.

    >>> stored_scale(torch.tensor([0.1, 1e-9], dtype=torch.float64), torch.float16)
    tensor([1.0004e-01, 5.9605e-08], dtype=torch.float16)
    """
    scale = scale.clamp(min=torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny)
    stored = scale.to(dtype)
    if dtype.itemsize == 2:
        stored = torch.where(stored.double() < scale, (stored.view(torch.int16) + 1).view(dtype), stored)
    if stored.isinf().any():
        raise ValueError(f"a scale of {scale.max():g} is needed, above the largest {dtype}: use more bits, or another scale_dtype.")
    return stored


def check_finite(low: torch.Tensor, high: torch.Tensor, name: str = "x") -> None:
    """Given the smallest and largest elements: a NaN or an infinity among the elements shows in them."""
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError(f"{name} holds NaN or infinity, and must be finite everywhere.")


def check_layout(shape: torch.Size, axis: int | None, group_size: int | None) -> tuple[int | None, int | None]:
    """axis (counted from the front) and group_size, or ValueError where they do not fit the shape."""
    if axis is not None:
        if isinstance(axis, bool) or not isinstance(axis, Integral) or not -len(shape) <= axis < len(shape):
            allowed = f"from {-len(shape)} to {len(shape) - 1}" if shape else "None for a single number"
            raise ValueError(f"axis is {axis!r}, and must be {allowed} for a tensor of shape {tuple(shape)}.")
        axis = int(axis) % len(shape)
    if group_size is not None:
        others = math.prod(n for i, n in enumerate(shape) if i != axis)
        if isinstance(group_size, bool) or not isinstance(group_size, Integral) or group_size < 1 or others % group_size:
            raise ValueError(f"group_size is {group_size!r}, and must divide the {others} elements that axis={axis} leaves to each "
                             f"channel of shape {tuple(shape)}.")
        group_size = int(group_size)
    return axis, group_size


def params_shape(shape: torch.Size, axis: int | None, group_size: int | None) -> tuple[int, ...]:
    """The shape of scale: () per tensor, (channels,) per axis, (channels, groups) per group, (groups,) for groups without an axis."""
    channels = () if axis is None else (shape[axis],)
    if group_size is None:
        return channels
    return channels + (math.prod(n for i, n in enumerate(shape) if i != axis) // group_size,)


def to_rows(x: torch.Tensor, axis: int | None, group_size: int | None) -> torch.Tensor:
    """x as (rows, elements that share a scale).

    >>> to_rows(torch.arange(12.).reshape(2, 6), axis=0, group_size=3).shape
    torch.Size([4, 3])
    """
    rows = math.prod(params_shape(x.shape, axis, group_size))
    moved = x if axis is None else x.movedim(axis, 0)
    return moved.reshape(rows, x.numel() // rows if rows else 0)


def from_rows(rows: torch.Tensor, shape: torch.Size, axis: int | None) -> torch.Tensor:
    """The inverse of to_rows: contiguous, in the original shape."""
    if axis is None:
        return rows.reshape(shape)
    moved = [shape[axis], *(n for i, n in enumerate(shape) if i != axis)]
    return rows.reshape(moved).movedim(0, axis).contiguous()


def extremes(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and largest element of each row, (rows,); zeros where the rows are empty."""
    if rows.numel() == 0:
        zeros = rows.new_zeros(rows.shape[0])
        return zeros, zeros
    if rows.shape[0] == 1:  # a whole-tensor reduction uses all cores, one over a single row does not
        low, high = rows.aminmax()
        return low[None], high[None]
    return rows.aminmax(dim=1)


def blocks(rows: torch.Tensor, size: int = 1 << 18):
    """Index pairs (row slice, column slice) that cut rows into blocks of about size elements.

    A chain of tensor operations passes over memory once each; over a block that stays in the cache, all but the first are nearly free.
    """
    count, width = rows.shape
    wide = max(1, min(width, size))
    tall = max(1, size // wide)
    for i in range(0, count, tall):
        for j in range(0, width, wide):
            yield slice(i, i + tall), slice(j, j + wide)
