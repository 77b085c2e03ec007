"""How the Triton kernels are launched, interpreted, recorded and registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl  # noqa: F401  (_patch_lang looks for it)
from torch import Tensor
from triton.language import core  # noqa: F401  (_patch_lang looks for it)
from triton.runtime.interpreter import InterpretedFunction, _patch_lang, interpreter_builder
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Target:
    """What a kernel is configured for; `capability` is 90 for sm_90, 942 for gfx942, else 0."""

    backend: str
    capability: int
    processors: int

    @property
    def descriptors(self) -> bool:
        """Whether the tensor memory accelerator serves tensor descriptors."""
        return self.backend == "cuda" and self.capability >= 90

    @property
    def roomy(self) -> bool:
        """Whether a program can have 227 KB of shared memory, not the 99 KB of small GPUs."""
        return self.backend == "cuda" and 90 <= self.capability < 120

    @property
    def tf32(self) -> bool:
        """Whether the compiler takes float32 products of this precision."""
        return self.backend != "hip" or self.capability == 942

    @property
    def interpreted(self) -> bool:
        return self.backend == "interpreter"


# Few processors make a persistent kernel walk over several tiles even on the small shapes of tests.
INTERPRETER = Target("interpreter", 0, 3)


@dataclass(frozen=True)
class Launch:
    """One recorded launch: everything that decides how the kernel is compiled."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


_target: ContextVar[Target | None] = ContextVar("target", default=None)
_record: ContextVar[list[Launch] | None] = ContextVar("record", default=None)


@cache
def _device_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        capability = 942 if properties.gcnArchName.startswith("gfx942") else 0
        return Target("hip", capability, properties.multi_processor_count)
    capability = 10 * properties.major + properties.minor
    return Target("cuda", capability, properties.multi_processor_count)


def target_of(tensor: Tensor) -> Target:
    """The target that kernels on this tensor are configured for."""
    chosen = _target.get()
    if chosen is not None:
        return chosen
    if tensor.is_cuda:
        return _device_target(tensor.get_device())
    return INTERPRETER


@contextmanager
def targeting(target: Target) -> Iterator[None]:
    """Configures kernels for `target` instead of the device that the tensors are on."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects the launches of this block instead of running them; tensors may be on "meta"."""
    launches: list[Launch] = []
    token = _record.set(launches)
    try:
        yield launches
    finally:
        _record.reset(token)


@cache
def _interpretable(function: Callable[..., Any]) -> Callable[..., Any]:
    return InterpretedFunction(function).rewrite()


def _call_interpreted(function: JITFunction, *args: Any, **kwargs: Any) -> Any:
    # InterpretedFunction.__call__ would patch the language anew for every call.
    return _interpretable(function.fn)(*args, **kwargs)


@contextmanager
def interpreted() -> Iterator[None]:
    """Runs launches on CPU tensors in Triton's interpreter, whatever TRITON_INTERPRET was before.

    Unlike that variable, which decides for a whole process, this leaves the kernels compilable.
    """
    knobs, options = triton.knobs.runtime, interpreter_builder.options
    before, call = knobs.interpret, JITFunction.__call__
    knobs.interpret = True
    JITFunction.__call__ = _call_interpreted
    # The interpreter alone would take products of fewer than 16 summands; compilers refuse them.
    functions = interpreter_builder.codegen_fns
    interpreter_builder.codegen_fns = functions | {"min_dot_size": lambda *_: (1, 1, 16)}
    # Checking every integer operation for overflow takes half of the interpreter's time.
    interpreter_builder.options = replace(options, sanitize_overflow=False)
    # For what kernels call: `launch` stands for any function that sees the language and its core.
    patched = _patch_lang(launch)
    try:
        yield
    finally:
        knobs.interpret = before
        JITFunction.__call__ = call
        interpreter_builder.options = options
        interpreter_builder.codegen_fns = functions
        patched.restore()


def cannot_run_on(tensor: Tensor) -> list[str]:
    """Reasons why no Triton kernel can run on this tensor's device."""
    if tensor.is_cuda or tensor.is_meta:
        return []
    if tensor.device.type == "cpu" and triton.knobs.runtime.interpret:
        return []
    if tensor.device.type == "cpu":
        return ["Triton runs on CPU tensors only in its interpreter (TRITON_INTERPRET=1)"]
    return [f"Triton kernels run on CUDA and ROCm devices, not on {tensor.device.type}"]


def refusals(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """Reasons why kernels of these dtypes cannot take `tensor`; empty where they can."""
    reasons = cannot_run_on(tensor)
    if tensor.dtype not in dtypes:
        reasons.append(f"dtype {tensor.dtype} is not one of {', '.join(map(str, dtypes))}")
    return reasons


def launch(kernel: Any, grid: int, *arguments: Any, **options: Any) -> None:
    """Runs `kernel` on `grid` programs, on the device of its first argument."""
    if grid == 0:
        return
    # Said for every kernel, because Triton's default is about to change from True.
    options.setdefault("enable_fp_fusion", True)
    record = _record.get()
    if record is not None:
        record.append(Launch(kernel, arguments, options))
        return
    first = arguments[0]
    tensor = first if isinstance(first, Tensor) else first.base
    if tensor.is_cuda:
        index = tensor.get_device()
        if index == torch.cuda.current_device():
            kernel[(grid,)](*arguments, **options)
        else:
            with torch.cuda.device(index):
                kernel[(grid,)](*arguments, **options)
        return
    if reasons := cannot_run_on(tensor):
        raise RuntimeError("; ".join(reasons))
    if isinstance(kernel, JITFunction):
        kernel = InterpretedFunction(kernel.fn)
    kernel[(grid,)](*arguments, **options)


# Measured per call over calling the launcher itself: this way 2.3 us, torch.library.custom_op
# 10 us, torch.library.triton_op 11.6 us; and triton_op cannot wrap an interpreted kernel.
_library = torch.library.Library("lamina_triton", "FRAGMENT")


def register(schema: str, launcher: Callable[..., Any]) -> None:
    """Registers `lamina_triton::<schema>`; its fake is that of the C++ op (lamina.fakes)."""
    _library.define(schema)
    name = schema[: schema.index("(")]
    for key in ("CPU", "CUDA"):
        _library.impl(name, launcher, key)
