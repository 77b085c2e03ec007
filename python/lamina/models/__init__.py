"""Models composed from the layers."""

from lamina.models.capsnet import CapsNet
from lamina.models.mlp import MLP

__all__ = ["MLP", "CapsNet"]
