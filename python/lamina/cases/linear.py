"""The calls that tests, `lamina check` and `lamina bench` make of linear."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lamina.activations import ACTIVATIONS
from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    def sample(name: str, input: Tensor, outs: int = 5, bias: bool = True, **kwargs: Any) -> Sample:
        weight = draw(outs, input.shape[-1])
        if kwargs.get("weight_layout") == "in_out":
            weight = weight.t().contiguous()
        tensors = (leaf(input), leaf(weight), leaf(draw(outs)) if bias else None)
        return Sample(name, tensors, kwargs)

    for activation in ACTIVATIONS:
        yield sample(f"{activation}, odd", draw(7, 9), 11, activation=activation)
    yield sample("threshold 0.5", draw(9, 4), activation=("threshold", 0.5))
    yield sample("threshold -0.5", draw(9, 4), activation=("threshold", -0.5))
    yield sample("leaky 0.3", draw(9, 4), activation=("leaky_relu", 0.3))
    yield sample("callable", draw(3, 4), activation=torch.sin)
    yield sample("module", draw(3, 4), activation=nn.GELU("tanh"))
    yield sample("vector", draw(6), activation="relu")
    yield sample("4-D, no bias", draw(2, 3, 2, 5), 7, bias=False, activation="silu")
    yield sample("in_out", draw(4, 6), 3, activation="relu", weight_layout="in_out")
    yield sample("transposed input", draw(8, 5).t(), activation="tanh")
    yield sample("strided input", draw(9, 14)[::2, ::3], activation="relu")
    yield sample("expanded input", draw(1, 6).expand(4, 6), activation="relu")
    yield sample("more than a block", draw(37, 70), 67, activation="relu")
    yield sample("one column", draw(5, 3), 1, activation="relu")
    for name, shape, outs in (
        ("no rows", (0, 4), 3),
        ("no ins", (3, 0), 4),
        ("no outs", (3, 4), 0),
        ("no rows, many outs", (0, 70), 700),
        ("no ins, many rows", (300, 0), 70),
    ):
        yield sample(name, draw(*shape), outs, activation="relu")
    frozen = draw(5, 4)
    yield Sample("frozen weight", (leaf(draw(3, 4)), frozen, None), {"activation": "relu"})
    yield Sample("frozen input", (draw(3, 4), leaf(frozen), leaf(draw(5))), {"activation": "gelu"})
    yield Sample("only bias", (draw(3, 4), frozen, leaf(draw(5))), {"activation": "relu"})
    wild = draw(4, 3)
    wild[0, 0], wild[1, 1], wild[2, 2] = float("nan"), float("inf"), -float("inf")
    wild[3] = 0  # and its products lie at the kink
    for activation in ("relu", "leaky_relu", "threshold"):
        yield sample(f"non-finite {activation}", wild, bias=False, activation=activation)


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, w, b = ones(2, 3), ones(4, 3), ones(4)
    yield BadInput(
        "last dimension", (ones(2, 5), w), ValueError, r"\(2, 5\) must end in 3.*\(4, 3\)"
    )
    yield BadInput("no dimension", (ones(), w), ValueError, r"\(\) must end in 3")
    yield BadInput("3-D weight", (x, ones(1, 4, 3)), ValueError, "weight must have 2 dimensions")
    yield BadInput("bias size", (x, w, ones(3)), ValueError, r"bias must have shape \(4,\).*\(3,\)")
    yield BadInput("one bias", (x, w, ones(1)), ValueError, r"bias must have shape \(4,\).*\(1,\)")
    yield BadInput(
        "dtypes", (x, w.double()), TypeError, "weight is torch.float64 and input torch.fl"
    )
    yield BadInput("bias dtype", (x, w, b.half()), TypeError, "bias is torch.float16 and input")
    bias = (ones(1, 2, 6)[..., ::2], w, b.double())
    yield BadInput("strided, bias dtype", bias, TypeError, "bias is torch.float64 and input")
    yield BadInput("integers", (x.long(), w), TypeError, "input must be of a floating-point dtype")
    yield BadInput("devices", (x, w.to("meta")), ValueError, "weight is on meta and input on")
    yield BadInput("list", ([1.0, 2.0, 3.0], w), TypeError, "input must be a Tensor, got list")
    yield BadInput(
        "name", (x, w, b, "rleu"), ValueError, "activation is 'rleu'; the fused ones are"
    )
    yield BadInput("number", (x, w, b, 3), TypeError, "activation must be None, a name")
    layout = {"weight_layout": "oi"}
    yield BadInput("layout", (x, w), ValueError, "'oi'; it must be 'out_in' or 'in_out'", layout)


def workload(m: int, n: int, k: int) -> Workload:
    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device)

        tensors = (draw(m, k), draw(n, k) / math.sqrt(k), draw(n))
        return Sample(
            f"{m}x{n}x{k}", tuple(t.requires_grad_() for t in tensors), {"activation": "relu"}
        )

    return Workload(f"{m}x{n}x{k}", build, flops=2 * m * n * k, elements=m * k + n * k + m * n)


WORKLOADS = tuple(
    workload(*shape)
    for shape in (
        (128, 1024, 1024),
        (256, 1024, 1024),
        (512, 2048, 1024),
        (1024, 4096, 1024),
        (2048, 2048, 2048),
        (4096, 3072, 768),
        (1, 1024, 1024),
        (8, 512, 512),
        (16, 4096, 4096),
        (32, 2048, 2048),
        (8, 64, 64),
    )
)

GPU_WORKLOADS = tuple(
    workload(*shape)
    for shape in (
        (8192, 1024, 1024),
        (8192, 4096, 4096),
        (8192, 2048, 2048),
        (8192, 8192, 8192),
        (128, 4096, 4096),
        (16, 4096, 4096),
    )
)
