"""Linear: output = act(input @ weight.T + bias), and its gradients, through one GEMM kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from .contracts import check_linear, check_linear_backward
from .epilogue import new_saved
from .gemm import gemm
from .gemm_config import candidates
from .launch import Target, refusals, register
from .linear_dz import activation_backward

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unsupported(input: Tensor, *_: object) -> list[str]:
    """Reasons why these kernels cannot take `input`; empty where they can."""
    return refusals(input, DTYPES)


def as_matrix(tensor: Tensor) -> Tensor:
    """[..., K] -> [M, K], as a view wherever strides allow."""
    return tensor.reshape(prod(tensor.shape[:-1]), tensor.size(-1))


def linear_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    parameter: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Returns act(input @ weight.T + bias) and what the backward needs of it."""
    check_linear(input, weight, bias, activation)
    n, rows = weight.size(0), prod(input.shape[:-1])
    output = input.new_empty((*input.shape[:-1], n))
    saved = new_saved(output, (rows, n), activation, save)
    gemm(
        as_matrix(input),
        weight.t(),
        as_matrix(output),
        bias=bias if bias is None else bias.contiguous(),
        saved=saved if saved.numel() else None,
        activation=activation,
        parameter=parameter,
    )
    return output, saved


def linear_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias; None for what is not needed."""
    check_linear_backward(grad, input, weight, saved, activation)
    grad_input = input.new_empty(input.shape) if needs[0] else None
    grad_weight = torch.empty_like(weight) if needs[1] else None
    dz, grad_bias = activation_backward(
        as_matrix(grad), saved, activation, parameter, needs[0] or needs[1], needs[2]
    )
    if grad_input is not None:
        gemm(dz, weight, as_matrix(grad_input))
    if grad_weight is not None:
        x = as_matrix(input)
        if grad_weight.is_contiguous():
            gemm(dz.t(), x, grad_weight, split=True)
        else:
            gemm(x.t(), dz, grad_weight.t(), split=True)
    return grad_input, grad_weight, grad_bias


register(
    "linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation, float parameter, "
    "bool save) -> (Tensor output, Tensor saved)",
    linear_forward,
)
register(
    "linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor saved, str activation, "
    "float parameter, bool[3] needs) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    linear_backward,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""
    m, n, k = 8192, 4096, 1024
    for dtype in DTYPES if every else (torch.float64, torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        new = partial(torch.empty, dtype=dtype, device="meta")
        x, weight, grad = new(m, k), new(n, k), new(m, n)
        mask = torch.empty(m, n // 8, dtype=torch.uint8, device="meta")
        configs = candidates(target, dtype, "ieee")
        for config in configs if every else configs[:1]:
            fused = {"bias": new(n), "saved": mask, "activation": "relu", "config": config}
            yield f"{name} relu {config}", partial(gemm, x, weight.t(), grad, **fused)
        yield f"{name} relu", partial(activation_backward, grad, mask, "relu", 0.0, True, True)
        if every or dtype == torch.bfloat16:
            yield f"{name} dX", partial(gemm, grad, weight, x)
            yield f"{name} dW", partial(gemm, grad.t(), x, weight, split=True)
    x, weight, z = x.bfloat16(), weight.bfloat16(), grad.bfloat16()
    for act in ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid") if every else ("gelu_tanh",):
        yield f"bfloat16 {act}", partial(linear_forward, x, weight, None, act, 0.0, True)
        yield f"bfloat16 {act}", partial(activation_backward, z, z, act, 0.0, True, True)
    yield "bfloat16 strided", partial(gemm, x[:, ::2], weight[:, ::2].t(), z)
