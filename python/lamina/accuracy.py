"""Accuracy: an op's results against float64, and its gradients against finite differences.

`lamina check`, `lamina bench` and the generic tests compare by the same rule: an output's or a
gradient's error against float64 is at most twice the error that plain torch makes in the same
dtype, plus two roundings at the result's scale; a sample that asks for a less exact algorithm says
how many times instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from lamina import backends
from lamina.spec import FLOATS, Sample, Spec

# Two roundings of the result's dtype at the result's scale: what a correct kernel may differ by
# where torch happens to be exact. In float64 torch is itself the reference, whose own roundings
# (of sums that another order rounds otherwise) are not seen.
FLOOR = {dtype: 2 * torch.finfo(dtype).eps for dtype in FLOATS}
FLOOR[torch.float64] *= 8
TOLERANCE = 1e-5  # of finite differences in float64; torch's default of 1e-3 hides small errors
SMALL = 150  # elements: gradcheck runs the op twice for each
DRAWS = 16  # of a sample whose first draw missed the bar
REFUSAL = "was asked for and cannot run this call"


@dataclass(frozen=True)
class Comparison:
    """One tensor against float64. `problem` says what is wrong; None if nothing is."""

    name: str
    error: float
    limit: float
    problem: str | None = None


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that a kernel which forgets to write an element is found."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def tensors_of(sample: Sample) -> list[Tensor]:
    """The tensors among a sample's arguments."""
    return [a for a in (*sample.args, *sample.kwargs.values()) if isinstance(a, Tensor)]


def double(value: Any) -> Any:
    """A tensor or module in float64, with the same requires_grad; anything else as it is."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        return value.detach().double().requires_grad_(value.requires_grad)
    return value.double() if isinstance(value, torch.nn.Module) else value


def run(
    function: Callable[..., Tensor],
    sample: Sample,
    convert: Callable[[Any], Any] = lambda value: value,
    grads: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """(output, gradients of the tensors that require grad, incoming gradient) of one sample."""
    args = tuple(convert(a) for a in sample.args)
    kwargs = {k: convert(v) for k, v in sample.kwargs.items()}
    call = replace(sample, args=args, kwargs=kwargs).fresh()
    output = function(*call.args, **call.kwargs)
    wanted = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.requires_grad]
    if grads is None:
        grads = torch.randn_like(output)
    found = torch.autograd.grad(output, wanted, grads.to(output.dtype)) if wanted else ()
    return output.detach(), found, grads


def supported(spec: Spec, sample: Sample) -> bool:
    """Whether the backend in use takes the sample; any other error than its refusal is raised."""
    try:
        with torch.no_grad():
            call = sample.fresh()
            spec.functional(*call.args, **call.kwargs)
    except ValueError as error:
        if REFUSAL not in str(error):
            raise
        return False
    return True


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class Expected:
    """What one tensor must be: as near to the float64 result `exact` as `bar` times `plain`."""

    def __init__(self, exact: Tensor, plain: Tensor, bar: float = 2.0) -> None:
        self.exact, self.dtype = exact, plain.dtype
        finite = torch.isfinite(exact)
        self.finite = None if finite.all() else finite
        self.torchs = self.limit = 0.0
        if exact.numel() and finite.any():
            scale = self._largest(exact)
            self.torchs = self._largest(plain.double() - exact)
            scale = max(scale, torch.finfo(self.dtype).tiny)
            self.limit = bar * self.torchs + FLOOR[self.dtype] * scale

    def _largest(self, values: Tensor) -> float:
        finite = values if self.finite is None else values[self.finite]
        return finite.abs().max().item()

    def compare(self, name: str, got: Tensor) -> Comparison:
        """Never raises: what is wrong is told in the comparison."""
        if got.shape != self.exact.shape or got.dtype != self.dtype:
            wrong = f"{tuple(got.shape)} {got.dtype} is not {tuple(self.exact.shape)} {self.dtype}"
            return Comparison(name, float("inf"), 0.0, f"{name}: {wrong}")
        if self.finite is not None and not _same(
            got.double()[~self.finite], self.exact[~self.finite]
        ):
            problem = f"{name}: NaN and infinity are not where they belong"
            return Comparison(name, float("inf"), 0.0, problem)
        if self.limit == 0:
            return Comparison(name, 0.0, 0.0)
        error = self._largest(got.double() - self.exact)
        problem = None
        if not error <= self.limit:  # A NaN is never within the limit.
            problem = (
                f"{name}: error {error:.3g}, torch's own {self.torchs:.3g}, limit {self.limit:.3g}"
            )
        return Comparison(name, error, self.limit, problem)


def compare_sample(spec: Spec, sample: Sample) -> list[Comparison]:
    """The output and every gradient of one sample on the backend in use; inputs must not change."""
    before = [t.detach().clone() for t in tensors_of(sample)]
    got, got_grads, grads = run(spec.functional, sample)
    found = []
    for i, (kept, tensor) in enumerate(zip(before, tensors_of(sample), strict=True)):
        if not _same(kept, tensor):
            problem = f"{sample.name}: tensor {i} of the input was written to"
            found.append(Comparison(sample.name, float("inf"), 0.0, problem))
    with backends.use_backend("reference"):
        plain, plain_grads, _ = run(spec.reference, sample, grads=grads)
        exact, exact_grads, _ = run(spec.reference, sample, double, grads=grads)
    found.append(Expected(exact, plain, sample.bar).compare(sample.name, got))
    for i, (g, p, e) in enumerate(zip(got_grads, plain_grads, exact_grads, strict=True)):
        name = f"{sample.name}: gradient {i}"
        found.append(Expected(e, p, sample.bar).compare(name, g))
    return found


def problems_of(
    first: list[Comparison],
    spec: Spec,
    sample: Sample,
    dtype: torch.dtype,
    device: torch.device,
) -> list[str]:
    """What is wrong with a sample whose comparisons were `first`; empty if nothing.

    On a few elements torch may happen to round to the exact result, and a kernel that is as good
    on the whole misses the bar. So where one draw misses it, the sum of the errors over DRAWS
    draws of the same sample is held against the sum of their limits.
    """
    if not any(found.problem for found in first):
        return []
    errors, limits = [0.0] * len(first), [0.0] * len(first)
    for _ in range(DRAWS):
        again = next(s for s in spec.samples(dtype, device) if s.name == sample.name)
        for i, found in enumerate(compare_sample(spec, again)):
            errors[i] += found.error
            limits[i] += found.limit
    return [
        f"{found.name}: error {error / DRAWS:.3g}, limit {limit / DRAWS:.3g}, over {DRAWS} draws"
        + (f"; the first: {found.problem}" if found.problem else "")
        for found, error, limit in zip(first, errors, limits, strict=True)
        if not error <= limit
    ]


def differentiable(sample: Sample) -> list[int] | None:
    """The positions of the arguments to check by finite differences; None if it can't be done."""
    tensors = tensors_of(sample)
    wanted = [i for i, a in enumerate(sample.args) if getattr(a, "requires_grad", False)]
    if not wanted or any(sample.args[i].numel() == 0 for i in wanted):
        return None
    if sum(t.numel() for t in tensors) >= SMALL or not all(t.isfinite().all() for t in tensors):
        return None
    return wanted


def gradcheck_sample(
    spec: Spec, sample: Sample, wanted: list[int], second: bool, fast: bool = False
) -> str | None:
    """What finite differences (of the gradient, if `second`) object to; None if nothing.

    `fast` looks along random directions instead of at every element. What is plain torch, as
    the gradient's gradient on every backend, takes one thread: in thousands of calls on a few
    elements, threads that share their cores with other programs wait for each other for minutes.
    """

    def call(*values: Tensor) -> Tensor:
        args = list(sample.args)
        for i, value in zip(wanted, values, strict=True):
            args[i] = value
        call = replace(sample, args=tuple(args)).fresh()
        return spec.functional(*call.args, **call.kwargs)

    # A copy: gradcheck perturbs elements one by one, which expanded tensors share.
    values = [sample.args[i].detach().clone().requires_grad_() for i in wanted]
    check = torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    plain = second or backends.choice.name == "reference"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if plain else threads)
        check(call, values, atol=TOLERANCE, rtol=TOLERANCE, fast_mode=fast)
    except GradcheckError as error:
        return f"{sample.name}: {check.__name__}: {str(error).strip()}"
    finally:
        torch.set_num_threads(threads)
    return None
