"""The host shim runs the CUDA kernels on the CPU: it must find the bugs it is there to find."""

from __future__ import annotations

import ctypes
from pathlib import Path

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


def test_collectives_and_atomics(shim: ctypes.CDLL) -> None:
    source = torch.randint(0, 100, (3, 64), dtype=torch.int32)
    result = torch.zeros(4, dtype=torch.int32)
    function = shim.host_shim_collectives
    function.restype = ctypes.c_char_p
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (source, result))
    assert function(*pointers, 3) == b""
    odd = int((source % 2).sum())
    assert result.tolist() == [int(source.sum()), int(source.sum()), odd, 6]


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found(shim: ctypes.CDLL, bug: str) -> None:
    message, _, _ = run_planted(shim, 1 + list(BUGS).index(bug))
    assert BUGS[bug] in message, message
    # The next launch starts afresh.
    assert run_planted(shim, 0)[0] == ""


CSRC = Path(__file__).parents[1] / "csrc"
BARRIERS = [
    pytest.param(number, id=f"{path.name}:{number}")
    for path in sorted(CSRC.glob("**/*.cu*"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if "__syncthreads()" in line
]


def run_every_kernel() -> None:
    """The smallest calls that reach every barrier of every kernel."""
    ops = torch.ops.lamina_host
    for dtype in (torch.float32, torch.bfloat16):
        x, w, grad = torch.randn(9, 600), torch.randn(8, 600), torch.randn(9, 8)
        x, w, grad = (t.to(dtype) for t in (x, w, grad))
        y, _ = ops.linear_forward(x, w, None, "tanh", 0.0, True)
        ops.linear_backward(grad, x, w, y, "tanh", 0.0, [True, True, True])
    images, filters = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    options = [[1, 1], [0, 0], [1, 1], 1, "relu", 0.0, "auto", False]
    y, mask = ops.conv2d_forward(images, filters, None, None, *options, True)
    ops.conv2d_backward(y, images, filters, mask, *options, [True, True, True, False])
    u, weight = torch.randn(3, 40, 4), torch.randn(2, 40, 3, 4)
    options = ["in", False, True, 1.0, "exact", 0.0]
    v, s, _ = ops.dynamic_routing_forward(u, weight, None, None, None, 2, *options, True, False)
    needs = [True, True, False, False]
    options.insert(1, False)
    ops.dynamic_routing_backward(v, u, weight, None, None, None, s, *options, needs)


@pytest.mark.parametrize("line", BARRIERS)
def test_every_barrier_is_needed(shim: ctypes.CDLL, line: int) -> None:
    """Without any one of the kernels' barriers the shim reports an error; with all of them none."""
    run_every_kernel()
    shim.host_grid_drop_barrier(line)
    try:
        with pytest.raises(RuntimeError, match=r"race|waited"):
            run_every_kernel()
    finally:
        shim.host_grid_drop_barrier(0)
