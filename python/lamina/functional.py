"""The functional forms of every op."""

from lamina.layers.col2im import col2im
from lamina.layers.conv2d import conv2d
from lamina.layers.im2col import im2col
from lamina.layers.linear import linear
from lamina.layers.threshold import threshold_relu

__all__ = ["col2im", "conv2d", "im2col", "linear", "threshold_relu"]
