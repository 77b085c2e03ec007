"""Fake (meta) implementations: what torch.compile, export and FakeTensor know of Lamina's ops."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lamina.modules import missing


def fake(op: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as the fake of lamina::<op>, where the op is compiled in."""

    def register(function: Callable) -> Callable:
        if missing["cpp"] is None and hasattr(torch.ops.lamina, op):
            torch.library.register_fake(f"lamina::{op}", function)
        return function

    return register
