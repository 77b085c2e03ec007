"""The CUDA kernels on awkward shapes, dtypes and strides, against float64.

They run on the CPU through the host shim, and on the GPU where there is one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from host_shim.build import build

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
