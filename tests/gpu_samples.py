"""Calls of every op for tests on a GPU; `python tests/gpu_samples.py BACKEND OP` runs an op's.

The large calls take their size, so that they can be tried on the CPU with a small one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import lamina
from lamina import functional as F
from lamina.accuracy import run, supported, tensors_of
from lamina.spec import specs


@dataclass(frozen=True)
class Call:
    """One sample of an op: `run` gives the output and the gradients of its tensors."""

    name: str
    tensors: list[Tensor]
    run: Callable[[], list[Tensor]]


def calls_of(op: str, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The samples that the backend in use takes and that have gradients, with fixed gradients."""
    spec = specs()[op]
    for sample in spec.samples(dtype, device):
        tensors = [t for t in tensors_of(sample) if t.requires_grad]
        if dtype not in spec.dtypes or not tensors or not supported(spec, sample):
            continue
        _, _, grad = run(spec.functional, sample)

        def call(sample=sample, grad=grad) -> list[Tensor]:
            output, grads, _ = run(spec.functional, sample, grads=grad)
            return [output, *grads]

        # An expanded tensor has no memory of its own to write to.
        yield Call(sample.name, [t for t in tensors if 0 not in t.stride()], call)


def gradients(function: Callable[..., Tensor], *tensors: Tensor, **options: object) -> list[Tensor]:
    """The output, and the gradients of its sum."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def near(got: Tensor, wanted: Tensor) -> None:
    scale = float(wanted.abs().max())
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-2 * scale)


def large_threshold(device: torch.device, elements: int) -> None:
    x = torch.randn(elements + 9, dtype=torch.bfloat16, device=device)
    y, grad = gradients(F.threshold_relu, x, threshold=0.25)
    for part in (
        slice(0, 1000),
        slice(elements // 2 - 500, elements // 2 + 500),
        slice(-1000, None),
    ):
        assert torch.equal(y[part], x[part].where(x[part] > 0.25, 0))
        assert torch.equal(grad[part], (x[part] > 0.25).to(grad.dtype))


def large_linear_input(device: torch.device, elements: int) -> None:
    """The input is large: rows at its end."""
    k = 4096 if elements > 1 << 20 else 64
    x = torch.randn(elements // k + 3, k, dtype=torch.bfloat16, device=device)
    w = torch.randn(16, k, dtype=torch.bfloat16, device=device) / k**0.5
    y, grad_x, grad_w = gradients(F.linear, x, w, activation="relu")
    for part in (slice(0, 50), slice(-50, None)):
        wanted, wanted_x, _ = gradients(lambda a, b: torch.relu(a @ b.t()), x[part], w)
        near(y[part], wanted)
        near(grad_x[part], wanted_x)
    near(grad_w, ((y > 0).to(x.dtype).t() @ x))


def large_linear_output(device: torch.device, elements: int) -> None:
    """The output is large, and its mask with it."""
    n = 8192 if elements > 1 << 20 else 64
    x = torch.randn(elements // n + 3, 16, dtype=torch.bfloat16, device=device)
    w = torch.randn(n, 16, dtype=torch.bfloat16, device=device) / 4
    y, grad_x, _ = gradients(F.linear, x, w, activation="relu")
    for part in (slice(0, 50), slice(-50, None)):
        wanted, wanted_x, _ = gradients(lambda a, b: torch.relu(a @ b.t()), x[part], w)
        near(y[part], wanted)
        near(grad_x[part], wanted_x)


def large_conv2d(device: torch.device, elements: int) -> None:
    side = 56 if elements > 1 << 20 else 8
    images = elements // (64 * side * side) + 2
    x = torch.randn(images, 64, side, side, dtype=torch.bfloat16, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    w = torch.randn(16, 64, 3, 3, dtype=torch.bfloat16, device=device) / 24
    y, grad_x, _ = gradients(F.conv2d, x, w, padding=1, activation="relu")
    for part in (slice(0, 1), slice(-1, None)):
        wanted, wanted_x, _ = gradients(
            lambda a, b: torch.relu(torch.nn.functional.conv2d(a, b, padding=1)), x[part], w
        )
        near(y[part], wanted)
        near(grad_x[part], wanted_x)


def large_dynamic_routing(device: torch.device, elements: int) -> None:
    """The weight is large; in the first iteration all couplings are equal."""
    b, o, e, d = 2, 32, 64, 16
    i = elements // (o * e * d) + 1
    u = torch.randn(b, i, d, device=device)
    w = torch.randn(o, i, e, d, device=device) * (4 / i**0.5)
    v, grad_u, grad_w = gradients(F.dynamic_routing, u, w, iterations=1)

    def plain(u: Tensor, w: Tensor) -> Tensor:
        s = torch.einsum("bid,oied->boe", u, w) / o
        q = (s * s).sum(-1, keepdim=True)
        return s * q.sqrt() / (1 + q)

    wanted, wanted_u, wanted_w = gradients(plain, u, w)
    near(v, wanted)
    near(grad_u, wanted_u)
    near(grad_w[:, -8:], wanted_w[:, -8:])


large_calls = (
    large_threshold,
    large_linear_input,
    large_linear_output,
    large_conv2d,
    large_dynamic_routing,
)


def main(backend: str, *ops: str) -> None:
    torch.manual_seed(0)
    count = 0
    with lamina.use_backend(backend):
        for op in ops:
            for dtype in (torch.float32, torch.bfloat16):
                for call in calls_of(op, dtype, torch.device("cuda")):
                    call.run()
                    count += 1
    torch.cuda.synchronize()
    print(f"{count} calls ran")


if __name__ == "__main__":
    main(*sys.argv[1:])
