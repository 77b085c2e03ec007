"""Fixtures: the backends that this machine can run, each made current for the test that asks."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from hypothesis import settings

import lamina
from lamina import backends
from lamina.accuracy import poisoned

# In CI the same examples every time: a change must not fail for what another one left in hiding.
# No deadlines: a busy machine is no defect.
settings.register_profile("house", derandomize="CI" in os.environ, deadline=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20261121)


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


@pytest.fixture(scope="session")
def host_shim():
    """The CUDA kernels compiled for the CPU; registered as lamina_host."""
    if importlib.util.find_spec("host_shim") is None:
        pytest.skip("tests/host_shim is not there")
    from host_shim.build import build

    torch.ops.load_library(str(build()))


@pytest.fixture(params=["reference", "cpp", "cuda", "triton"])
def backend(request, monkeypatch):
    """One backend after another, current by use_backend. Yields (name, device).

    On a machine without a GPU the CUDA kernels run through the host shim and the Triton kernels in
    the interpreter, both on CPU tensors.
    """
    name, device = request.param, "cpu"
    if name == "cpp" and backends.BACKENDS["cpp"].missing:
        pytest.skip(backends.BACKENDS["cpp"].missing)
    if name in ("cuda", "triton"):
        if torch.cuda.is_available():
            device = "cuda"
        else:
            replacement = request.getfixturevalue(f"{name}_on_cpu")
            monkeypatch.setitem(backends.BACKENDS, name, replacement)
    with lamina.use_backend(name):
        yield name, torch.device(device)


@pytest.fixture
def cuda_on_cpu(host_shim):
    return backends.Backend("lamina_host", "cpu", None)


@pytest.fixture
def triton_on_cpu():
    if backends.BACKENDS["triton"].missing:
        pytest.skip(backends.BACKENDS["triton"].missing)
    from bounds import interpreted

    with interpreted():
        yield backends.Backend("lamina_triton", "cpu", None)
