"""Triton's interpreter, in which a kernel may touch the tensors of its launch and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from lamina import triton_kernels


def spans(arguments: list[Any]) -> np.ndarray:
    """The first address of each tensor and the one after its last element, in order."""
    found = []
    for argument in arguments:
        tensor = argument.base if isinstance(argument, TensorDescriptor) else argument
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))
            begin = tensor.data_ptr()
            found.append((begin, begin + (last + 1) * tensor.itemsize))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


@contextmanager
def interpreted() -> Iterator[None]:
    """`triton_kernels.interpreted`, with an IndexError for whatever lies outside of the tensors."""
    real, executor = interpreter._interpreter, interpreter.GridExecutor
    prepare, allowed = executor._init_args_hst, spans([])

    def note(self, args, kwargs):
        nonlocal allowed
        prepared = prepare(self, args, kwargs)
        allowed = spans(prepared[0])
        return prepared

    def check(pointers, mask, itemsize):
        at = pointers[mask].astype(np.int64)
        # Tensors may overlap: the furthest end of those that begin before counts.
        ends = np.concatenate([[0], np.maximum.accumulate(allowed[:, 1])])
        outside = at + itemsize > ends[np.searchsorted(allowed[:, 0], at, side="right")]
        if outside.any():
            raise IndexError(f"{outside.sum()} of {at.size} elements are outside of the tensors")

    def load(pointers, mask, other, dtype):
        check(pointers, mask, np.dtype(dtype).itemsize)
        return real.load(pointers, mask, other, dtype)

    def store(pointers, value, mask):
        check(pointers, mask, value.itemsize)
        return real.store(pointers, value, mask)

    executor._init_args_hst = note
    interpreter._interpreter = SimpleNamespace(**vars(real) | {"load": load, "store": store})
    try:
        with triton_kernels.interpreted():
            yield
    finally:
        executor._init_args_hst = prepare
        interpreter._interpreter = real
