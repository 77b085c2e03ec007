"""The functional forms of every op."""

from lamina.layers.col2im import col2im
from lamina.layers.conv2d import conv2d
from lamina.layers.dynamic_routing import dynamic_routing
from lamina.layers.fold_batch_norm import fold_batch_norm
from lamina.layers.im2col import im2col
from lamina.layers.linear import linear
from lamina.layers.routing_pass import routing_pass
from lamina.layers.squash import squash
from lamina.layers.threshold import threshold_relu

__all__ = [
    "col2im",
    "conv2d",
    "dynamic_routing",
    "fold_batch_norm",
    "im2col",
    "linear",
    "routing_pass",
    "squash",
    "threshold_relu",
]
