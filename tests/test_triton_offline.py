"""What is special to the Triton kernels: two ways of loading, compiler beside interpreter."""

from __future__ import annotations

import functools
import importlib.util
from types import SimpleNamespace

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
import triton.language as tl

import triton_compile
from bounds import interpreted
from lamina.triton_kernels import gemm, gemm_config, launch, linear, threshold


@pytest.fixture
def interpreter():
    with interpreted():
        yield


@pytest.mark.parametrize("weight_order", ["out_in", "in_out"])
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_linear_loads(interpreter, monkeypatch, described, weight_order, activation):
    """Descriptors and pointers give the same; rows are whole multiples of 16 bytes."""
    monkeypatch.setattr(gemm, "describable", gemm.describable if described else lambda m: False)
    x, grad = torch.randn(37, 24), torch.randn(37, 40)
    weight, bias = torch.randn(40, 24), torch.randn(40)
    if weight_order == "in_out":
        weight = weight.t().contiguous().t()
    with launch.recording() as launches:
        linear.linear_forward(x, weight, bias, activation, 0.0, True)
    assert launches[0].options["A_DESCRIPTOR"] is described
    assert launches[0].options["B_TRANSPOSED"] is (described and weight_order == "out_in")

    output, saved = linear.linear_forward(x, weight, bias, activation, 0.0, True)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = torch.nn.functional.linear(*leaves)
    exact = exact if activation == "none" else getattr(torch.nn.functional, activation)(exact)
    torch.testing.assert_close(output.double(), exact.detach(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(exact, leaves, grad.double())
    for needs in (
        (True, True, True),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ):
        found = linear.linear_backward(grad, x, weight, saved, activation, 0.0, needs)
        for needed, got, wanted in zip(needs, found, gradients, strict=True):
            assert (got is not None) == needed
            if needed:
                torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)
    assert linear.linear_backward(grad, x, weight, saved, activation, 0.0, (False, True, False))[
        1
    ].stride() == (weight.stride())


def test_split_sums(interpreter, monkeypatch):
    """A long K is cut into parts, whose sums are added in order."""
    monkeypatch.setattr(gemm, "splits_of", lambda *_: 3)
    a, b = torch.randn(20, 150), torch.randn(150, 33)
    c = torch.full((20, 33), float("nan"))
    gemm.gemm(a, b, c, split=True)
    torch.testing.assert_close(c, a @ b, rtol=1e-5, atol=1e-5)


@triton.jit
def planted_kernel(source, target, first, reads, writes, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(source + first + place, mask=place < reads, other=0.0)
    tl.store(target + place, x, mask=place < writes)


@pytest.mark.parametrize(
    ("first", "reads", "writes", "inside"),
    [(0, 5, 5, True), (1, 4, 5, True), (0, 6, 5, False), (-1, 5, 5, False), (0, 5, 6, False)],
)
def test_what_lies_beside_tensors_is_out_of_bounds(interpreter, first, reads, writes, inside):
    source, target = torch.randn(5, 2)[:, 0].contiguous(), torch.zeros(5)
    call = functools.partial(launch.launch, planted_kernel, 1, source, target)
    if inside:
        call(first, reads, writes, BLOCK=8)
        assert torch.equal(target[:reads], source[first : first + reads])
    else:
        with pytest.raises(Exception, match=r"1 of \d elements are outside of the tensors"):
            call(first, reads, writes, BLOCK=8)


@pytest.mark.parametrize("summands", [8, 16])
def test_products_too_small_for_a_compiler_are_refused(interpreter, summands):
    c = torch.zeros(16, 16)
    config = gemm_config.GemmConfig(16, 16, summands, 1, 1)
    call = functools.partial(gemm.gemm, torch.ones(16, 16), torch.ones(16, 16), c, config=config)
    if summands < 16:
        with pytest.raises(Exception, match="K >= 16"):
            call()
    else:
        call()
        assert (c == 16).all()


def test_long_strides(interpreter):
    """Offsets are 64 bits wide: a column whose elements lie 2^33 bytes apart."""
    storage = torch.empty(3 << 31, dtype=torch.bfloat16, device="meta")
    assert gemm.describable(storage.as_strided((3, 8), (1 << 31, 1)))
    sizes, strides = threshold.collapsed(
        storage.as_strided((3, 5), (1 << 31, 2)), torch.empty(3, 5, device="meta")
    )
    assert (sizes, strides) == ((5, 3), (2, 1 << 31))


def test_recorded_launch_compiles_after_interpreting():
    x = torch.randn(100)
    with interpreted():
        output, _ = threshold.threshold_forward(x, 0.5, True)
    torch.testing.assert_close(output, torch.where(x <= 0.5, 0.0, x))
    built = triton_compile.build("threshold", "sm_90", False, 0)
    assert built.error == ""
    assert 0 < built.registers < 256


@pytest.mark.parametrize("op", ["threshold", "linear"])
def test_launches_become_what_triton_makes_of_them(op, monkeypatch):
    """Triton's own way from a launch to code, on a driver that knows nothing but its target."""
    target = triton_compile.TARGETS["sm_90"]
    known = {"target": target, "device": "none", "stream": 0}
    driver = SimpleNamespace(
        **{f"get_current_{name}": lambda *_, value=value: value for name, value in known.items()}
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)

    def code(compiled):
        lines = compiled.asm["ptx"].split(".section")[0].splitlines()  # where debug data begins
        return [line for line in lines if not line.strip().startswith((".file", ".loc"))]

    firsts = {
        kernel: call for kernel, _, call in reversed([*triton_compile.calls(op, "sm_90", False)])
    }
    assert len(firsts) > 1
    for call in firsts.values():
        launched = call.kernel.run(*call.arguments, grid=(1,), warmup=True, **call.options)
        source, options = triton_compile.source_of(call)
        built = triton.compile(source, target=target, options=options)
        assert code(launched) == code(built), call.kernel


def test_without_interpreter():
    if triton_compile.triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        threshold.threshold_forward(torch.randn(3), 0.0, False)
    assert threshold.unsupported(torch.randn(3))
    assert "torch.int32" in threshold.unsupported(torch.ones(3, dtype=torch.int32))[-1]


def test_small_gpus_get_no_tiles_beyond_their_shared_memory():
    """Descriptors are there on sm_120, the 227 KB of sm_90 and sm_100 are not."""
    tables = [
        gemm_config.candidates(launch.Target("cuda", capability, 100), torch.bfloat16, "ieee")
        for capability in (80, 89, 90, 100, 120, 121)
    ]
    ampere, hopper = gemm_config.AMPERE[16], gemm_config.HOPPER[16]
    assert tables == [ampere, ampere, hopper, hopper, ampere, ampere]
    for width, itemsize in ((16, 2), ("tf32", 4), (32, 4), (64, 8)):
        for c in gemm_config.AMPERE[width]:
            tiles = (c.block_m + c.block_n) * c.block_k * c.stages * itemsize
            assert tiles <= 99 << 10


@pytest.mark.parametrize("allowed", ["highest", "high"])
def test_tf32_only_where_torch_and_the_compiler_take_it(allowed):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        for target, takes_it in ((("cuda", 90), True), (("hip", 942), True), (("hip", 0), False)):
            target = launch.Target(*target, 100)
            wanted = "tf32" if takes_it and allowed == "high" else "ieee"
            assert gemm_config.precision_of(torch.float32, target) == wanted
            assert gemm_config.precision_of(torch.bfloat16, target) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("processors", [1, 132])
def test_every_shape_has_a_configuration(processors):
    for backend, capability in (("cuda", 80), ("cuda", 90), ("hip", 942), ("interpreter", 0)):
        target = launch.Target(backend, capability, processors)
        for dtype in linear.DTYPES:
            for m, n in ((1, 1), (16, 5000), (100_000, 3), (8192, 8192)):
                for described in (True, False):
                    config = gemm_config.choose(target, dtype, "ieee", m, n, described=described)
                    assert config in gemm_config.candidates(target, dtype, "ieee")
                    assert gemm_config.splits_of(target, config, m, n, 1 << 20) >= 1
