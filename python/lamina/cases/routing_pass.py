"""The calls that tests, `lamina check` and `lamina bench` make of routing_pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def sample(name: str, b: int, i: int, o: int, d: int, e: int, **kwargs: Any) -> Sample:
        shape = (o, e, d) if kwargs.get("weight_layout") == "oed" else (o, i, e, d)
        tensors = [draw(b, i, d), draw(*shape) / d, draw(b, o, e)]
        return Sample(name, tuple(t.requires_grad_() for t in tensors), kwargs)

    yield sample("small", 2, 3, 2, 2, 3)
    yield sample("over the in-capsules", 2, 3, 2, 2, 3, coupling_dim="in")
    yield sample("shared weight", 2, 4, 3, 2, 2, weight_layout="oed")
    yield sample("leaky, scaled", 3, 5, 3, 4, 5, leaky=True, scale=0.5)
    yield sample("more than a tile", 19, 21, 5, 8, 16)
    yield sample("prior", 3, 5, 4, 3, 2, prior=draw(5, 4).requires_grad_())
    yield sample("prior of each sample", 3, 5, 4, 3, 2, prior=draw(3, 5, 4).requires_grad_())
    yield sample("mask", 3, 5, 4, 3, 2, mask=torch.arange(5, device=device) % 2 == 0)
    tensors = (draw(3, 5, 2).requires_grad_(), draw(4, 5, 3, 2).requires_grad_())
    yield Sample("no v", tensors)
    yield Sample("no v, over the in-capsules", tensors, {"coupling_dim": "in"})


def bad_routing(op: str, device: torch.device) -> Iterator[BadInput]:
    """What every routing op rejects."""
    u, w = torch.ones(2, 3, 4, device=device), torch.ones(5, 3, 6, 4, device=device)
    learned = torch.ones(3, device=device, requires_grad=True)
    yield BadInput("2-D u", (u[0], w), ValueError, r"u must be \[B, I, D\], got shape \(3, 4\)")
    yield BadInput("list", ([1.0], w), TypeError, "u must be a Tensor, got list")
    yield BadInput("integers", (u.long(), w), TypeError, "floating-point dtype, got torch.int64")
    yield BadInput("in-capsules", (u[:, :2], w), ValueError, r"I, D = 3, 4, u .* I, D = 2, 4")
    yield BadInput("in_dim", (u[..., :2], w), ValueError, r"I, D = 3, 4, u .* I, D = 3, 2")
    yield BadInput("dtypes", (u, w.double()), TypeError, "weight is torch.float64 and u torch.fl")
    yield BadInput("devices", (u, w.to("meta")), ValueError, "weight is on meta and u on")
    yield BadInput("no capsules", (u, w[:0]), ValueError, "I, D, O, E = 3, 4, 0, 6")
    for name, match, kwargs in (
        ("layout name", "weight_layout is 'oiex'; it must name", {"weight_layout": "oiex"}),
        ("layout", "does not have the layout '1oied'", {"weight_layout": "1oied"}),
        ("merged layout", "needs out_capsules", {"weight_layout": "1(oe)di"}),
        ("merged, 2", "size 3, got 2", {"weight_layout": "1(oe)di", "out_capsules": 2}),
        (
            "merged, -3",
            "out_capsules must be at least 1, got -3",
            {"weight_layout": "1(oe)di", "out_capsules": -3},
        ),
        ("size one", "does not have the layout '1oed'", {"weight_layout": "1oed"}),
        ("out-capsules", "out_capsules is 7, and the weight .* has 5", {"out_capsules": 7}),
        ("coupling_dim", "coupling_dim is 'o'; it must be", {"coupling_dim": "o"}),
        ("prior", r"prior must have shape \(3, 5\) or \(2, 3, 5\), got", {"prior": u}),
        ("mask", r"mask must have shape \(3,\) or \(2, 3\), got", {"mask": u[0, 0] > 0}),
        ("learned mask", "mask is a constant: it must not", {"mask": learned}),
    ):
        weight = w[:1] if name.startswith("merged") else w
        yield BadInput(name, (u, weight), ValueError, f"{op}: .*{match}", kwargs)
    for name, match, value in (
        ("scale", "a number", "1"),
        ("weight_layout", "a str, got None", None),
        ("out_capsules", "an int, got '5'", "5"),
        ("mask", "a Tensor, got list", [1.0]),
    ):
        match = f"{op}: {name} must be {match}"
        yield BadInput(f"{name} type", (u, w), TypeError, match, {name: value})


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    yield from bad_routing("routing_pass", device)
    u, w = torch.ones(2, 3, 4, device=device), torch.ones(5, 3, 6, 4, device=device)
    yield BadInput("v", (u, w, u), ValueError, r"v must have shape \(2, 5, 6\), got \(2, 3, 4\)")


def workload(b: int, i: int, o: int, d: int, e: int) -> Workload:
    name = f"{b}x{i}x{o}x{d}x{e}"

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device)

        tensors = (draw(b, i, d), draw(o, i, e, d) / d, draw(b, o, e) / e)
        return Sample(name, tuple(t.requires_grad_() for t in tensors))

    votes = b * i * o * e
    elements = b * i * d + o * i * e * d + 2 * b * o * e
    return Workload(name, build, flops=votes * (2 * d + 4), elements=elements)


WORKLOADS = (workload(128, 1152, 10, 8, 16), workload(8, 64, 10, 8, 16))
