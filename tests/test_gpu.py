"""What only a GPU shows: graphs, streams, devices, more than 2^31 elements, compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lamina
from gpu_samples import calls_of, gradients, large_calls
from lamina import backends
from lamina.spec import specs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]
SANITIZER = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or shutil.which(
    "compute-sanitizer"
)
OPS = [op for op in specs() if op not in ("im2col", "col2im")]
LARGE = {call.__name__: call for call in large_calls}


@pytest.fixture(params=["cuda", "triton"])
def kernels(request):
    """A backend of the GPU, current by use_backend."""
    if reason := backends.BACKENDS[request.param].missing:
        pytest.skip(reason)
    with lamina.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("op", OPS)
def test_graph(op, kernels):
    """A captured forward and backward pass computes anew what its inputs hold at the replay."""
    for call in calls_of(op, torch.float32, torch.device("cuda")):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call.run()
        for tensor in call.tensors:
            tensor.data.copy_(torch.randn_like(tensor))
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip(captured, call.run(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True, msg=call.name)


@pytest.mark.parametrize("op", OPS)
def test_streams(op, kernels):
    """Kernels run on the current stream: they wait for what is queued there, and nothing else."""
    for call in calls_of(op, torch.float32, torch.device("cuda")):
        later = [torch.randn_like(tensor) for tensor in call.tensors]
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            for tensor, value in zip(call.tensors, later, strict=True):
                tensor.data.copy_(value)
            found = call.run()
        stream.synchronize()
        for got, wanted in zip(found, call.run(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True, msg=call.name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("op", OPS)
def test_another_device_than_the_current_one(op, kernels):
    """Kernels run where the tensors are, and leave the current device as it is."""
    for call in calls_of(op, torch.float32, torch.device("cuda", 1)):
        with torch.cuda.device(1):
            wanted = call.run()
        with torch.cuda.device(0):
            found = call.run()
            assert torch.cuda.current_device() == 0
        for got, expected in zip(found, wanted, strict=True):
            assert got.device.index == 1
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=call.name)


@pytest.mark.parametrize("name", LARGE)
def test_beyond_32_bits(name, kernels):
    """Tensors of more than 2^31 elements: where an index of 32 bits would wrap."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 48 << 30:
        pytest.skip(f"{free >> 30} GiB of GPU memory are free, 48 are wanted")
    LARGE[name](torch.device("cuda"), 1 << 31)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("op", OPS)
def test_sanitizer(op, tool):
    if SANITIZER is None:
        pytest.skip("compute-sanitizer is not installed")
    if reason := backends.BACKENDS["cuda"].missing:
        pytest.skip(reason)
    script = Path(__file__).with_name("gpu_samples.py")
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "99", "--kernel-name", "kns=lamina"]
    done = subprocess.run(
        [*command, sys.executable, str(script), "cuda", op],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "ran" in done.stdout


def test_gradients_on_two_devices_agree(kernels):
    """The same call on the CPU's reference and on the GPU."""
    torch.manual_seed(3)
    x, w = torch.randn(5, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    found = gradients(lamina.functional.linear, x.cuda(), w.cuda(), activation="silu")
    with lamina.use_backend("reference"):
        wanted = gradients(lamina.functional.linear, x, w, activation="silu")
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), expected)
