"""The host shim runs the CUDA kernels on the CPU: it must find the bugs it is there to find."""

from __future__ import annotations

import ctypes

import pytest
import torch

from host_shim.build import build

BUGS = {
    "missing_barrier": "race in shared memory",
    "shared_overrun": "outside of the 256 that the block has",
    "global_overrun": "write of 4 bytes at 400 in a tensor of 400 bytes",
    "global_underrun": "write of 4 bytes at -",
    "read_overrun": "read of 4 bytes at 400 in a tensor of 400 bytes",
    "missing_wait": "before its cp.async was waited for",
    "blocks_collide": "race in global memory",
    "divergent_barrier": "others never reach",
    "misaligned_access": "not aligned",
    "missing_warp_barrier": "race in shared memory",
}


@pytest.fixture(scope="module")
def shim() -> ctypes.CDLL:
    library = build()
    torch.ops.load_library(str(library))
    return ctypes.CDLL(str(library))


def run_planted(shim: ctypes.CDLL, bug: int) -> tuple[str, torch.Tensor, torch.Tensor]:
    n = 128 if bug == 6 else 100
    source = torch.randn(n)
    result = torch.full((n,), float("nan"))
    function = shim.host_shim_planted
    function.restype = ctypes.c_char_p
    message = function(
        bug, ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(result.data_ptr()), n
    )
    return message.decode(), source, result


@pytest.mark.parametrize("seed", range(4))
def test_correct_kernel_passes(shim: ctypes.CDLL, seed: int) -> None:
    shim.host_grid_seed(seed)
    message, source, result = run_planted(shim, 0)
    assert message == ""
    assert torch.equal(result, torch.cat([part.flip(0) for part in source.split(64)]))


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found(shim: ctypes.CDLL, bug: str) -> None:
    message, _, _ = run_planted(shim, 1 + list(BUGS).index(bug))
    assert BUGS[bug] in message, message
    # The next launch starts afresh.
    assert run_planted(shim, 0)[0] == ""
