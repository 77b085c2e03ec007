"""Losses."""

from lamina.losses.margin import MarginLoss

__all__ = ["MarginLoss"]
