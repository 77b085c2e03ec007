"""What torch's tools are told of Lamina's ops: the shapes they return, and their FLOPs.

Fakes (meta implementations) serve torch.compile, export and FakeTensor; FLOP formulas serve
torch.utils.flop_counter.FlopCounterMode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import register_flop_formula

from lamina.modules import missing


def _registered(op: str) -> Iterator[tuple[str, torch._ops.OpOverloadPacket]]:
    """The op, compiled or Triton's, where it is: (qualified name, packet)."""
    for backend, namespace in (("cpp", "lamina"), ("triton", "lamina_triton")):
        if missing[backend] is None and hasattr(getattr(torch.ops, namespace), op):
            yield f"{namespace}::{op}", getattr(getattr(torch.ops, namespace), op)


def fake(op: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as the fake of an op."""

    def register(function: Callable) -> Callable:
        for name, _ in _registered(op):
            torch.library.register_fake(name, function)
        return function

    return register


def flops(op: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as an op's FLOP formula.

    It gets the op's arguments, shapes in place of tensors, and the result's as `out_shape`. As in
    torch, only products count, a multiply and an add are two, and what a kernel computes again to
    save memory does not count.
    """

    def register(function: Callable) -> Callable:
        for _, packet in _registered(op):
            register_flop_formula(packet)(function)
        return function

    return register
