"""Numbers to codes: linear, logarithmic and k-means quantization, their ranges, their packing, and the QTensor they all return."""

from qlab.quant import kmeans, linear, log, packing, ranges
from qlab.quant.qtensor import QTensor, load

__all__ = ["QTensor", "kmeans", "linear", "load", "log", "packing", "ranges"]
