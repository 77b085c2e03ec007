"""Models composed from the layers."""

from lamina.models.capsnet import CapsNet

__all__ = ["CapsNet"]
