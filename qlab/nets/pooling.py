"""Which values of a map each average is of."""

from torch import nn

Windows = tuple[tuple[int, int], ...]


def windows_of(module: nn.Module, size: tuple[int, int], out: tuple[int, int]):
    """kernel, stride, padding; rows, columns, divisors of an average pooling from a map of one size to one of another.

    Where all windows have as many values: kernel, stride and padding, (rows, columns) each, rows and columns None, and one divisor. Where
    they have not: rows and columns, the (start, stop) of each window, cut off at the map's edge, and divisors, one a window, rows first.

    >>> windows_of(nn.AvgPool2d(2), (4, 4), (2, 2))
    ((2, 2), (2, 2), (0, 0), None, None, 4)
    >>> windows_of(nn.AdaptiveAvgPool2d((1, 2)), (1, 3), (1, 2))[3:]
    (((0, 1),), ((0, 2), (1, 3)), [2, 2])
    """
    if isinstance(module, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)):
        if all(s % o == 0 for s, o in zip(size, out)):
            kernel = tuple(s // o for s, o in zip(size, out))
            return kernel, kernel, (0, 0), None, None, kernel[0] * kernel[1]
        rows, columns = (tuple((i * s // o, -(-(i + 1) * s // o)) for i in range(o)) for s, o in zip(size, out))
        return None, None, (0, 0), rows, columns, [(b - a) * (d - c) for a, b in rows for c, d in columns]
    flat = isinstance(module, nn.AvgPool1d)
    kernel, stride, padding = _pair(module.kernel_size, flat, 1), _pair(module.stride, flat, 1), _pair(module.padding, flat, 0)
    override = getattr(module, "divisor_override", None)
    reach = [(o - 1) * t + k - 2 * p for o, t, k, p in zip(out, stride, kernel, padding)]
    if all(r <= s for r, s in zip(reach, size)) and (module.count_include_pad or not any(padding)):
        return kernel, stride, padding, None, None, override or kernel[0] * kernel[1]
    padded = [[(i * t - p, min(i * t - p + k, s + p)) for i in range(o)] for s, o, k, t, p in zip(size, out, kernel, stride, padding)]
    rows, columns = (tuple((max(a, 0), min(b, s)) for a, b in ends) for ends, s in zip(padded, size))
    counted = padded if module.count_include_pad else (rows, columns)
    return None, None, (0, 0), rows, columns, [override or (b - a) * (d - c) for a, b in counted[0] for c, d in counted[1]]


def _pair(value, flat: bool, alone: int) -> tuple[int, int]:
    """(rows, columns) of a setting; flat: of a one-dimensional layer, whose map has one row."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) if flat else (value, value)
    return (alone, *values) if flat else values
