"""What torch's tools are told of Lamina's ops: shapes of results, FLOPs, what is overwritten.

Fakes (meta implementations) serve torch.compile, export and FakeTensor; FLOP formulas serve
torch.utils.flop_counter.FlopCounterMode; counted versions serve autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lamina.modules import missing

_libraries: list[torch.library.Library] = []  # A registration ends with its Library.


def _registered(op: str) -> Iterator[tuple[str, torch._ops.OpOverloadPacket]]:
    """The op, compiled or Triton's, where it is: (qualified name, packet)."""
    for backend, namespace in (("cpp", "lamina"), ("triton", "lamina_triton")):
        if missing[backend] is None and hasattr(getattr(torch.ops, namespace), op):
            yield f"{namespace}::{op}", getattr(getattr(torch.ops, namespace), op)


def fake(op: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as the fake of an op."""

    def register(function: Callable) -> Callable:
        for name, packet in _registered(op):
            torch.library.register_fake(name, function)
            if packet.default._schema.is_mutable:
                _count_versions(name, packet.default)
        return function

    return register


def _count_versions(name: str, overload: Any) -> None:
    """Let an op that overwrites its first argument count up the version of that tensor.

    By its version autograd knows that what it had saved is no longer there.
    """

    def counted(keys: torch._C.DispatchKeySet, first: Tensor, *rest: Any) -> Any:
        torch.autograd.graph.increment_version(first)
        return overload.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, first, *rest)

    namespace, _, op = name.partition("::")
    library = torch.library.Library(namespace, "IMPL")
    library.impl(op, counted, "ADInplaceOrView", with_keyset=True)
    _libraries.append(library)


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
