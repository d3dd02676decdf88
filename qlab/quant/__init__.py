"""Numbers to codes: linear, logarithmic and k-means quantization, number formats and ternary weights, their ranges, their packing, and the
QTensor they all return."""

from qlab.quant import formats, kmeans, linear, log, packing, ranges, ternary
from qlab.quant.qtensor import QTensor, load

__all__ = ["QTensor", "formats", "kmeans", "linear", "load", "log", "packing", "ranges", "ternary"]
