"""Fake (meta) implementations: what torch.compile, export and FakeTensor know of Lamina's ops."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lamina.modules import missing


def fake(op: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as the fake of an op, compiled or Triton's, where it is."""

    def register(function: Callable) -> Callable:
        for backend, namespace in (("cpp", "lamina"), ("triton", "lamina_triton")):
            if missing[backend] is None and hasattr(getattr(torch.ops, namespace), op):
                torch.library.register_fake(f"{namespace}::{op}", function)
        return function

    return register
