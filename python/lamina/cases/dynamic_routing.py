"""The calls that tests, `lamina check` and `lamina bench` make of dynamic_routing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lamina.cases.routing_pass import bad_routing
from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    def sample(name: str, b: int, i: int, o: int, d: int, e: int, **kwargs: Any) -> Sample:
        weight = draw(o, e, d) if kwargs.get("weight_layout") == "oed" else draw(o, i, e, d)
        return Sample(name, (leaf(draw(b, i, d)), leaf(weight / d)), kwargs)

    yield sample("small", 2, 3, 2, 2, 3)
    # Large enough for gradcheck to leave it out: finite differences know nothing of a detach.
    yield sample("detached votes", 3, 5, 4, 3, 4, detach_votes=True)
    yield sample("over the in-capsules", 2, 3, 2, 2, 3, coupling_dim="in")
    yield sample("shared weight", 2, 4, 3, 2, 2, weight_layout="oed")
    yield sample("one iteration", 2, 3, 2, 2, 3, iterations=1)
    yield sample("replaced logits", 2, 3, 2, 2, 3, iterations=4, accumulate=False, scale=0.7)
    yield sample("leaky", 2, 3, 2, 2, 3, leaky=True)
    for kind in ("sqrt_eps", "norm_eps", "exp"):
        yield sample(kind, 2, 3, 2, 2, 3, squash=kind, eps=1e-3)
    yield sample("one of each", 1, 1, 1, 1, 1)
    yield sample("more than a tile", 19, 23, 5, 8, 16)
    yield sample("odd sizes", 9, 11, 3, 5, 7, iterations=2)
    yield sample("empty batch", 0, 3, 2, 2, 3)
    extras = {
        "bias": {"bias": leaf(draw(4, 2))},
        "prior": {"prior": leaf(draw(5, 4))},
        "prior of each sample": {"prior": leaf(draw(3, 5, 4)), "coupling_dim": "in"},
        "mask": {"mask": torch.arange(5, device=device) % 2 == 0},
        "mask of each sample": {"mask": (torch.arange(15, device=device) < 11).view(3, 5)},
        "detached, bias and prior": {
            "bias": leaf(draw(4, 2)),
            "prior": leaf(draw(5, 4)),
            "detach_votes": True,
        },
    }
    for name, kwargs in extras.items():
        yield sample(name, 3, 5, 4, 3, 2, **kwargs)
    u = leaf(draw(3, 5, 2))
    layouts = {"idoe": (5, 2, 3, 4), "oide": (3, 5, 2, 4), "1ioed": (1, 5, 3, 4, 2)}
    for layout, shape in layouts.items():
        yield Sample(layout, (u, leaf(draw(*shape))), {"weight_layout": layout})
    merged = {"weight_layout": "id(oe)", "out_capsules": 3}
    yield Sample("id(oe)", (u, leaf(draw(5, 2, 12))), merged)
    yield Sample("zero input", (leaf(torch.zeros_like(u)), leaf(draw(3, 5, 4, 2))))
    yield Sample("expanded u", (leaf(draw(1, 5, 2).expand(3, 5, 2)), leaf(draw(3, 5, 4, 2))))
    yield Sample("strided u", (leaf(draw(6, 10, 4)[::2, ::2, ::2]), leaf(draw(3, 5, 4, 2))))
    weight = draw(1, 5, 4, 2).expand(3, 5, 4, 2)
    yield Sample("expanded weight", (leaf(draw(19, 5, 2)), leaf(weight)))
    frozen = draw(3, 5, 4, 2)
    yield Sample("frozen weight", (u, frozen))
    yield Sample("frozen u", (u.detach(), leaf(frozen)))
    yield sample("teams of samples", 9, 31, 3, 2, 4)


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    yield from bad_routing("dynamic_routing", device)
    tensors = (torch.ones(2, 3, 4, device=device), torch.ones(5, 3, 6, 4, device=device))
    for name, error, match, kwargs in (
        ("bias", ValueError, r"bias must have shape \(5, 6\), got", {"bias": tensors[0]}),
        ("no iterations", ValueError, "iterations must be at least 1, got 0", {"iterations": 0}),
        ("iterations", TypeError, "iterations must be an int, got 1.5", {"iterations": 1.5}),
        ("squash", ValueError, "squash is 'l2'; it must be one of", {"squash": "l2"}),
        ("eps", ValueError, "eps must not be negative", {"squash": "exp", "eps": -1.0}),
    ):
        yield BadInput(name, tensors, error, match, kwargs)


def workload(b: int, i: int, o: int, d: int, e: int) -> Workload:
    name = f"{b}x{i}x{o}x{d}x{e}"

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        u = torch.randn(b, i, d, dtype=dtype, device=device)
        weight = torch.randn(o, i, e, d, dtype=dtype, device=device) * 0.05
        return Sample(name, (u.requires_grad_(), weight.requires_grad_()))

    # With the votes stored: once computed, then met by s and v in each of three iterations.
    votes = b * i * o * e
    elements = b * i * d + o * i * e * d + b * o * e
    return Workload(name, build, flops=votes * (2 * d + 10), elements=elements)


WORKLOADS = tuple(
    workload(*shape)
    for shape in (
        (128, 1152, 10, 8, 16),
        (32, 2048, 32, 16, 16),
        (8, 64, 10, 8, 16),
        (1, 1152, 10, 8, 16),
    )
)
GPU_WORKLOADS = tuple(
    workload(*shape)
    for shape in ((128, 1152, 10, 8, 16), (128, 4096, 64, 16, 32), (32, 2048, 32, 16, 16))
)
