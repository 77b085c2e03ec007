"""The CUDA kernels on awkward shapes, dtypes and strides, against float64.

They run on the CPU through the host shim, and on the GPU where there is one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from host_shim.build import build
from lamina.activations import ACTIVATIONS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=["host", "cuda"])
def machine(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The registered ops and the device that they run on."""
    if request.param == "host":
        torch.ops.load_library(str(build()))
        return SimpleNamespace(ops=torch.ops.lamina_host, device="cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    import lamina  # noqa: F401

    return SimpleNamespace(ops=torch.ops.lamina, device="cuda")


def bits_of(mask: torch.Tensor, n: int) -> torch.Tensor:
    """The first n bits of each row of a uint8 mask, lowest bit first."""
    bits = mask.unsqueeze(-1) >> torch.arange(8, device=mask.device, dtype=torch.uint8) & 1
    return bits.flatten(-2)[..., :n].bool()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 63, 1025, 5000])
@pytest.mark.parametrize("offset", [0, 1])
def test_threshold(machine: SimpleNamespace, dtype: torch.dtype, n: int, offset: int) -> None:
    x = torch.randn(n + offset, dtype=dtype, device=machine.device)[offset:]
    if n > 3:
        x[2], x[3] = float("nan"), 0.25
    before = x.clone()
    y, mask = machine.ops.threshold_forward(x, 0.25, True)
    kept = ~(x <= 0.25)
    torch.testing.assert_close(y, x.where(kept, 0), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(bits_of(mask, n), kept)
    assert mask.numel() == (n + 7) // 8
    if n % 8:
        assert mask[-1] >> n % 8 == 0
    grad = torch.randn(n + offset, dtype=dtype, device=machine.device)[offset:]
    torch.testing.assert_close(
        machine.ops.threshold_backward(grad, mask), grad.where(kept, 0), rtol=0, atol=0
    )
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
    y, mask = machine.ops.threshold_forward(x, 0.25, False)
    assert mask.shape == (0,)
    torch.testing.assert_close(y, x.where(kept, 0), rtol=0, atol=0, equal_nan=True)


def test_threshold_keeps_dense_strides(machine: SimpleNamespace) -> None:
    x = torch.randn(5, 6, 7, device=machine.device).permute(2, 0, 1)
    y, mask = machine.ops.threshold_forward(x, 0.0, True)
    assert y.stride() == x.stride()
    assert torch.equal(y, x.relu())
    assert torch.equal(bits_of(mask, 210), (x > 0).permute(1, 2, 0).flatten())
    for sparse in (x[:, ::2], x[:1].expand(4, 5, 6)):
        assert torch.equal(machine.ops.threshold_forward(sparse, 0.0, True)[0], sparse.relu())


def double_reference(x, w, b, activation, parameter, grad):
    """Output and gradients of act(x Wᵀ + b) by autograd in float64."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in (x, w, b)]
    z = torch.nn.functional.linear(*leaves)
    y = ACTIVATIONS[activation][0](z, parameter)
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = list(torch.autograd.grad(y, wanted, grad.double()))
    return y.detach(), grads + [None] * (3 - len(grads))


def assert_near(got, exact, dtype):
    """Within a few roundings of the dtype at the scale of the result."""
    assert got.shape == exact.shape
    assert got.dtype == dtype
    scale = exact.abs().max() if exact.numel() else 0
    torch.testing.assert_close(
        got.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps * float(scale) + 1e-30
    )


def run_linear(machine, x, w, b, activation, parameter, grad, needs=(True, True, True)):
    y, saved = machine.ops.linear_forward(x, w, b, activation, parameter, True)
    kept = y if activation in ("tanh", "sigmoid") else saved
    return y, machine.ops.linear_backward(grad, x, w, kept, activation, parameter, list(needs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, 11, 9), (33, 24, 40)])
def test_linear_activations(machine, dtype, activation, shape) -> None:
    m, n, k = shape
    parameter = {"threshold": 0.25, "leaky_relu": 0.1}.get(activation, 0.0)
    draw = dict(dtype=dtype, device=machine.device)
    x, w, b = torch.randn(m, k, **draw), torch.randn(n, k, **draw) / 4, torch.randn(n, **draw)
    grad = torch.randn(m, n, **draw)
    y, grads = run_linear(machine, x, w, b, activation, parameter, grad)
    exact, exact_grads = double_reference(x, w, b, activation, parameter, grad)
    assert_near(y, exact, dtype)
    for got, wanted in zip(grads, exact_grads):
        assert_near(got, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (130, 136, 48), (3, 7, 1000), (700, 5, 3), (0, 3, 4), (3, 0, 4), (3, 4, 0)]
)
def test_linear_shapes(machine, dtype, shape) -> None:
    """More than a tile, split sums, and nothing at all."""
    m, n, k = shape
    draw = dict(dtype=dtype, device=machine.device)
    x, w, b = torch.randn(m, k, **draw), torch.randn(n, k, **draw), torch.randn(n, **draw)
    grad = torch.randn(m, n, **draw)
    y, grads = run_linear(machine, x, w, b, "silu", 0.0, grad)
    exact, exact_grads = double_reference(x, w, b, "silu", 0.0, grad)
    assert_near(y, exact, dtype)
    for got, wanted in zip(grads, exact_grads):
        assert_near(got, wanted, dtype)


def strided(layout: str, rows: int, columns: int, **draw) -> torch.Tensor:
    made = {
        "contiguous": lambda: torch.randn(rows, columns, **draw),
        "transposed": lambda: torch.randn(columns, rows, **draw).t(),
        "sliced": lambda: torch.randn(rows, columns + 3, **draw)[:, 1:-2],
        "every other": lambda: torch.randn(2 * rows, 2 * columns, **draw)[::2, ::2],
        "expanded": lambda: torch.randn(1, columns, **draw).expand(rows, columns),
        "one number": lambda: torch.randn(1, 1, **draw).expand(rows, columns),
    }
    return made[layout]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("which", ["x", "w", "grad"])
@pytest.mark.parametrize(
    "layout", ["transposed", "sliced", "every other", "expanded", "one number"]
)
def test_linear_strides(machine, dtype, activation, which, layout) -> None:
    m, n, k = 18, 16, 24
    draw = dict(dtype=dtype, device=machine.device)
    layouts = {name: layout if name == which else "contiguous" for name in ("x", "w", "grad")}
    x = strided(layouts["x"], m, k, **draw)
    w = strided(layouts["w"], n, k, **draw)
    grad = strided(layouts["grad"], m, n, **draw)
    y, grads = run_linear(machine, x, w, None, activation, 0.0, grad)
    exact, exact_grads = double_reference(x, w, None, activation, 0.0, grad)
    assert_near(y, exact, dtype)
    assert_near(grads[0], exact_grads[0], dtype)
    assert_near(grads[1], exact_grads[1], dtype)
    assert grads[1].stride() == torch.empty_like(w).stride()
    exact_bias = torch.where(exact > 0, grad, 0) if activation == "relu" else grad
    assert_near(grads[2], exact_bias.double().sum(0), dtype)


@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
def test_linear_needs(machine, activation) -> None:
    """What is not needed is None, and the rest does not change by a bit."""
    x, w, grad = (torch.randn(6, 10), torch.randn(5, 10), torch.randn(6, 5))
    x, w, grad = (t.to(machine.device) for t in (x, w, grad))
    _, full = run_linear(machine, x, w, None, activation, 0.0, grad)
    for chosen in range(8):
        needs = [bool(chosen >> i & 1) for i in range(3)]
        _, grads = run_linear(machine, x, w, None, activation, 0.0, grad, needs)
        for needed, got, wanted in zip(needs, grads, full):
            assert (got is None) != needed
            if needed:
                assert torch.equal(got, wanted)


@pytest.mark.parametrize("activation", ["relu", "threshold", "leaky_relu"])
def test_linear_mask(machine, activation) -> None:
    x, w = torch.randn(6, 3, device=machine.device), torch.randn(13, 3, device=machine.device)
    x[0, 0] = float("nan")
    _, saved = machine.ops.linear_forward(x, w, None, activation, 0.5, True)
    assert saved.shape == (6, 2)
    z = x @ w.t()
    expected = z > 0 if activation == "leaky_relu" else ~(z <= 0.5 * (activation == "threshold"))
    assert torch.equal(bits_of(saved, 13), expected)
    y, saved = machine.ops.linear_forward(x, w, None, activation, 0.5, False)
    assert saved.shape == (0,)
    assert y[0].isnan().all()
