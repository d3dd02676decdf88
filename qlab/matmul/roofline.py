"""The roofline (Williams, Waterman and Patterson 2009): how fast can a computation be on this machine?

    attainable = min(peak, intensity * bandwidth)      [operations/s]

intensity is the number of arithmetic operations for each byte moved from and to memory. Left of the ridge, peak / bandwidth, the
computation waits for memory (memory-bound) and fewer bytes make it faster; right of it, it waits for arithmetic (compute-bound).
A multiplication and an addition count as two operations. Both roofs are measured here, with torch, on the threads torch uses.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from qlab.matmul.product import int8_matmul

MATMUL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8)


def attainable(intensity, peak: float, bandwidth: float):
    """Operations/s that a computation of this intensity can reach.

    intensity: operations/byte, 0 or more, a number or an array of any shape; peak: operations/s; bandwidth: bytes/s, both above 0.
    Returns a float, or a float64 array of intensity's shape. Raises ValueError for anything else.

    >>> attainable(2, peak=100, bandwidth=10), attainable(10, 100, 10), attainable(50, 100, 10)
    (20.0, 100.0, 100.0)
    """
    for name, value in {"peak": peak, "bandwidth": bandwidth}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}, and must be a finite number above 0.")
    intensity = np.asarray(intensity, dtype=np.float64)
    if not np.all(intensity >= 0):  # false for NaN too
        raise ValueError("intensity must be 0 or more everywhere, and not NaN.")
    reached = np.minimum(peak, intensity * bandwidth)
    return float(reached) if reached.ndim == 0 else reached


def matmul_intensity(m: int, k: int, n: int, bytes_per_element: float, bytes_per_result: float | None = None) -> float:
    """Operations/byte of an (m, k) by (k, n) product if each matrix crosses the memory bus once, which is the best case:

        2 m k n / (bytes_per_element (m k + k n) + bytes_per_result m n)

    bytes_per_element of the two factors (0.5 for 4 bits); bytes_per_result of the product, the same if it is not given: an INT8
    product is int32, so 1 and 4. Raises ValueError if a size is below 1 or a number of bytes is not above 0.

    >>> matmul_intensity(2, 2, 2, 4), matmul_intensity(1024, 1024, 1024, 4)
    (0.3333333333333333, 170.66666666666666)
    """
    for name, size in {"m": m, "k": k, "n": n}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, and must be 1 or more.")
    bytes_per_result = bytes_per_element if bytes_per_result is None else bytes_per_result
    for name, size in {"bytes_per_element": bytes_per_element, "bytes_per_result": bytes_per_result}.items():
        if not (math.isfinite(size) and size > 0):
            raise ValueError(f"{name} is {size}, and must be a finite number above 0.")
    return 2 * m * k * n / (bytes_per_element * (m * k + k * n) + bytes_per_result * m * n)


def _seconds(fn, device: str) -> float:
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    fn()
    synchronize()
    return time.perf_counter() - started


def _check_budget(seconds: float):
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds is {seconds}, and must be a finite number above 0.")


def _square_matmul(dtype: torch.dtype, size: int, device: str):
    if dtype == torch.int8:
        a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        backend = "auto" if torch.device(device).type == "cpu" else "torch"  # a roof is what some kernel reaches, not what one does
        return lambda: int8_matmul(a, b, backend)  # int8 x int8 -> int32; a plain a @ b would wrap around in int8
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def measure_peak(dtype: torch.dtype = torch.float32, seconds: float = 1.0, device: str = "cpu") -> float:
    """Operations/s of the fastest square matmul seen, for about this many seconds: 256 x 256, doubled while the time allows.

    The best and not the mean, because a roof is what can be reached. Operations on int8 go through `int8_matmul`, on the CPU by the
    backend that is fastest there. Raises ValueError for a dtype that is not in MATMUL_DTYPES or seconds not above 0.

    >>> measure_peak(seconds=0.05) > 1e6
    True
    """
    if dtype not in MATMUL_DTYPES:
        raise ValueError(f"dtype is {dtype}, and must be one of {', '.join(map(str, MATMUL_DTYPES))}.")
    _check_budget(seconds)
    deadline, best, size = time.perf_counter() + seconds, 0.0, 256
    while True:
        matmul = _square_matmul(dtype, size, device)
        matmul()  # the first call prepares buffers and chooses a kernel
        once = _seconds(matmul, device)
        best = max(best, 2 * size**3 / once)
        if size == 16384 or time.perf_counter() + 3 * 8 * once > deadline:  # three runs of twice the size would not fit
            break
        size *= 2
    while time.perf_counter() + once < deadline:
        best = max(best, 2 * size**3 / _seconds(matmul, device))
    return best


def measure_bandwidth(seconds: float = 0.5, megabytes: int = 128, device: str = "cpu") -> float:
    """Bytes/s, read plus written, of the fastest copy seen, for about this many seconds.

    Copies a float32 array of this many megabytes (1e6 bytes), as the copy test of STREAM does (McCalpin 1995). The array must be
    several times the last-level cache, or the cache is what is measured. Raises ValueError if an argument is not above 0.

    >>> measure_bandwidth(seconds=0.05, megabytes=16) > 1e6
    True
    """
    _check_budget(seconds)
    if megabytes < 1:
        raise ValueError(f"megabytes is {megabytes}, and must be 1 or more.")
    deadline = time.perf_counter() + seconds
    source = torch.ones(int(megabytes * 1e6) // 4, device=device)
    target = torch.empty_like(source)
    moved = source.nbytes + target.nbytes
    target.copy_(source)  # the first copy waits for the operating system to hand out the pages
    best = moved / _seconds(lambda: target.copy_(source), device)
    while time.perf_counter() < deadline:
        best = max(best, moved / _seconds(lambda: target.copy_(source), device))
    return best


@dataclass(frozen=True)
class Roof:
    """peak in operations/s, bandwidth in bytes/s; ridge in operations/byte.

    >>> roof = Roof(peak=8e10, bandwidth=2e10)
    >>> print(roof)
    80.0 GFLOP/s, 20.0 GB/s, ridge at 4.0 FLOP/byte
    >>> roof.attainable(1) / 1e9
    20.0
    """

    peak: float
    bandwidth: float

    def __post_init__(self):
        attainable(0, self.peak, self.bandwidth)  # raises for what is no roof

    @property
    def ridge(self) -> float:
        """The intensity where the two roofs meet: below it memory decides, above it arithmetic."""
        return self.peak / self.bandwidth

    def attainable(self, intensity):
        """Operations/s under this roof; see the function attainable."""
        return attainable(intensity, self.peak, self.bandwidth)

    def __str__(self) -> str:
        return f"{self.peak / 1e9:.1f} GFLOP/s, {self.bandwidth / 1e9:.1f} GB/s, ridge at {self.ridge:.1f} FLOP/byte"


def measure_roof(dtype: torch.dtype = torch.float32, seconds: float = 1.5, device: str = "cpu") -> Roof:
    """The roof of this machine for matrices of dtype: two thirds of the seconds for the peak, the rest for the bandwidth.

    >>> measure_roof(seconds=0.1).ridge > 0
    True
    """
    _check_budget(seconds)
    return Roof(measure_peak(dtype, seconds * 2 / 3, device), measure_bandwidth(seconds / 3, device=device))
