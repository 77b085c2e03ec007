"""Argument checks that every op shares. They run before anything is computed, on every backend."""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F


def index(value: object) -> int | None:
    """An int: Python's or numpy's, which np.prod gives. None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, torch.Tensor)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_int(op: str, name: str, value: object, least: int) -> int:
    """The argument as an int; TypeError if it is none, ValueError below `least`."""
    number = index(value)
    if number is None:
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {number}")
    return number


def check_number(op: str, name: str, value: object) -> None:
    """TypeError unless the argument is an int or a float."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")


def one_hot(op: str, name: str, numbers: torch.Tensor, classes: int) -> torch.Tensor:
    """F.one_hot; ValueError where it raises for class numbers that are out of range."""
    try:
        return F.one_hot(numbers, classes)
    except RuntimeError:
        least, most = numbers.aminmax()
        if least >= 0 and most < classes:
            raise
        raise ValueError(
            f"{op}: {name} must be from 0 to {classes - 1}, got {least} to {most}"
        ) from None


def check_floating(op: str, name: str, tensor: object) -> None:
    """TypeError unless the argument is a tensor of a real floating-point dtype."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{op}: {name} must be of a floating-point dtype, got {tensor.dtype}")


def check_alike(op: str, name: str, tensor: torch.Tensor, other: str, like: torch.Tensor) -> None:
    """ValueError unless both tensors have one device, TypeError unless they have one dtype."""
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device} and {other} on {like.device}; "
            "move them to one device"
        )
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{op}: {name} is {tensor.dtype} and {other} {like.dtype}; "
            "convert one, or run under torch.autocast"
        )


def check_bias(
    op: str, bias: object, outs: int, named: str, weight: torch.Tensor, like: torch.Tensor
) -> None:
    """Bias is None, or one number for each of the weight's `outs` outputs, called `named`."""
    if bias is None:
        return
    check_floating(op, "bias", bias)
    if bias.shape != (outs,):
        raise ValueError(
            f"{op}: bias must have shape ({outs},), the {named} of the weight of shape "
            f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    check_alike(op, "bias", bias, "input", like)


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast asks of matrix products on this tensor's device, or None."""
    kind = tensor.device.type
    # Devices such as meta have no autocast, and torch raises where asked whether it is on.
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


def without_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    """Within it, autocast lowers nothing on this tensor's device."""
    kind = tensor.device.type
    available = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()


def cast(tensor: object, dtype: torch.dtype) -> object:
    """As autocast casts: floating-point tensors, but not float64; anything else is left alone."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return tensor
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
