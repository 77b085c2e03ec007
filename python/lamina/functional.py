"""The functional forms of every op."""

from lamina.layers.linear import linear
from lamina.layers.threshold import threshold_relu

__all__ = ["linear", "threshold_relu"]
