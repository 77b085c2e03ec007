"""PyTorch layers with compiled cores and hand-written backward passes.

Every layer is a drop-in `nn.Module` and falls back to plain PyTorch where no kernel fits.
`lamina info`, `lamina check` and `lamina bench` tell what runs here, whether it is right, and how
fast it is.
"""

from importlib.metadata import version

from lamina import functional, losses, models
from lamina.backends import use_backend
from lamina.explain import explain
from lamina.layers.conv2d_modules import Conv2d, Conv2dReLU
from lamina.layers.conv_batch_norm import ConvBatchNorm2d, ConvBatchNormReLU2d
from lamina.layers.dynamic_routing_modules import DynamicRouting
from lamina.layers.linear_modules import Linear, LinearReLU
from lamina.layers.squash import Squash
from lamina.layers.threshold import ThresholdReLU
from lamina.workspace import release_workspace

__version__ = version("lamina")

__all__ = [
    "Conv2d",
    "Conv2dReLU",
    "ConvBatchNorm2d",
    "ConvBatchNormReLU2d",
    "DynamicRouting",
    "Linear",
    "LinearReLU",
    "Squash",
    "ThresholdReLU",
    "explain",
    "functional",
    "losses",
    "models",
    "release_workspace",
    "use_backend",
]
