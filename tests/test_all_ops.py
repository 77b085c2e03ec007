"""Every op on every backend: values, gradients, layouts, bad input. Driven by the SPECs alone."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch

import lamina
from lamina import backends
from lamina.layers import _template
from lamina.spec import FLOATS, specs

# The template is tested as the op that it will be a copy of.
SPECS = [*specs().values(), _template.SPEC]
ops = pytest.mark.parametrize("spec", SPECS, ids=[s.name for s in SPECS])
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=[str(d).split(".")[1] for d in FLOATS])

# Two roundings of the result's dtype at the result's scale: what a correct kernel may differ by
# where torch happens to be exact. In float64 torch is itself the reference, whose own roundings
# (of sums that another order rounds otherwise) are not seen.
FLOOR = {dtype: 2 * torch.finfo(dtype).eps for dtype in FLOATS}
FLOOR[torch.float64] *= 8


@contextlib.contextmanager
def automatic():
    """References are computed by plain torch whatever the backend under test."""
    with lamina.use_backend("reference"):
        yield


def tensors_of(sample):
    return [a for a in (*sample.args, *sample.kwargs.values()) if isinstance(a, torch.Tensor)]


def double(value):
    if isinstance(value, torch.Tensor):
        return value.detach().double().requires_grad_(value.requires_grad)
    return value.double() if isinstance(value, torch.nn.Module) else value


def run(function, sample, convert=lambda value: value, grads=None):
    """(output, gradients of the tensors that require grad) of one sample."""
    args = [convert(a) for a in sample.args]
    kwargs = {k: convert(v) for k, v in sample.kwargs.items()}
    output = function(*args, **kwargs)
    wanted = [
        t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    if grads is None:
        grads = torch.randn_like(output)
    found = torch.autograd.grad(output, wanted, grads.to(output.dtype)) if wanted else ()
    return output.detach(), found, grads


def supported(spec, name, sample):
    """Whether the backend takes the sample: what it refuses must be refused by name."""
    try:
        with torch.no_grad():
            spec.functional(*sample.args, **sample.kwargs)
    except ValueError as error:
        assert "was asked for and cannot run this call" in str(error)  # noqa: PT017
        return False
    return True


def assert_close(name, got, plain, exact, dtype):
    """The error against float64 is at most twice torch's own, plus the floor."""
    assert got.shape == exact.shape, f"{name}: {got.shape} is not {exact.shape}"
    assert got.dtype == dtype
    finite = torch.isfinite(exact)
    torch.testing.assert_close(
        got.double()[~finite], exact[~finite], rtol=0, atol=0, equal_nan=True, msg=name
    )
    if not finite.any():
        return
    scale = exact[finite].abs().max().clamp(min=torch.finfo(dtype).tiny)
    ours = (got.double() - exact)[finite].abs().max()
    torchs = (plain.double() - exact)[finite].abs().max()
    limit = 2 * torchs + FLOOR[dtype] * scale
    assert ours <= limit, f"{name}: error {ours:.3g}, torch's own {torchs:.3g}, limit {limit:.3g}"


@ops
@dtypes
def test_values_and_gradients(spec, dtype, backend):
    name, device = backend
    ran = 0
    for sample in spec.samples(dtype, device):
        if dtype not in spec.dtypes or not supported(spec, name, sample):
            continue
        ran += 1
        before = [t.detach().clone() for t in tensors_of(sample)]
        got, got_grads, grads = run(spec.functional, sample)
        for kept, tensor in zip(before, tensors_of(sample), strict=True):
            torch.testing.assert_close(tensor, kept, rtol=0, atol=0, equal_nan=True)
        with automatic():
            plain, plain_grads, _ = run(spec.reference, sample, grads=grads)
            exact, exact_grads, _ = run(spec.reference, sample, double, grads=grads)
        assert_close(sample.name, got, plain, exact, dtype)
        for i, (g, p, e) in enumerate(zip(got_grads, plain_grads, exact_grads, strict=True)):
            assert_close(f"{sample.name}: gradient {i}", g, p, e, dtype)
    if not ran:
        pytest.skip(f"{name} has no kernel for {spec.name} in {dtype}")


@ops
def test_gradcheck(spec, backend):
    name, device = backend
    ran = 0
    for sample in spec.samples(torch.float64, device):
        tensors = tensors_of(sample)
        smooth = all(torch.isfinite(t).all() for t in tensors)
        small = sum(t.numel() for t in tensors) < 150
        if not smooth or not small or not supported(spec, name, sample):
            continue
        wanted = [i for i, a in enumerate(sample.args) if getattr(a, "requires_grad", False)]
        if not wanted or 0 in [sample.args[i].numel() for i in wanted]:
            continue
        ran += 1

        def call(*values, sample=sample, wanted=wanted):
            args = list(sample.args)
            for i, value in zip(wanted, values, strict=True):
                args[i] = value
            return spec.functional(*args, **sample.kwargs)

        # A copy: gradcheck perturbs elements one by one, which expanded tensors share.
        values = [sample.args[i].detach().clone().requires_grad_() for i in wanted]
        assert torch.autograd.gradcheck(call, values), sample.name
        if name in ("reference", "cpp"):  # Double backward is the reference's on every backend.
            assert torch.autograd.gradgradcheck(call, values), sample.name
    if not ran:
        pytest.skip(f"{name} has no float64 kernel for {spec.name}")


@ops
def test_gradient_layouts(spec, backend):
    """Expanded, transposed and strided incoming gradients give what contiguous ones give."""
    name, device = backend
    for sample in list(spec.samples(torch.float32, device))[:6]:
        if not supported(spec, name, sample):
            continue
        output = spec.functional(*sample.args, **sample.kwargs)
        shape = output.shape
        made = {
            "expanded": torch.ones((), device=device).expand(shape),
            "transposed": torch.randn(shape[::-1], device=device).permute(
                tuple(range(len(shape)))[::-1]
            ),
            "strided": torch.randn(*shape, 2, device=device)[..., 0],
        }
        for layout, grad in made.items():
            _, strided, _ = run(spec.functional, sample, grads=grad)
            _, contiguous, _ = run(spec.functional, sample, grads=grad.contiguous())
            for a, b in zip(strided, contiguous, strict=True):
                torch.testing.assert_close(a, b, msg=f"{sample.name}, {layout} gradient")


@ops
def test_bad_input(spec, backend):
    _, device = backend
    for bad in spec.bad_inputs(device):
        with pytest.raises(bad.error, match=bad.match):
            spec.functional(*bad.args, **bad.kwargs)


@ops
def test_deterministic(spec, backend):
    """Two runs, and any thread count, give identical bits."""
    name, device = backend
    threads = torch.get_num_threads()
    for sample in spec.samples(torch.float32, device):
        if not supported(spec, name, sample):
            continue
        first, first_grads, grads = run(spec.functional, sample)
        for count in (1, threads):
            torch.set_num_threads(count)
            again, again_grads, _ = run(spec.functional, sample, grads=grads)
            for a, b in zip((first, *first_grads), (again, *again_grads), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    torch.set_num_threads(threads)


@ops
def test_opcheck(spec, backend):
    """Schemas, fakes and autograd registrations hold, for torch.compile and torch.export."""
    name, device = backend
    if name != "cpp":
        pytest.skip("torch.library.opcheck is run on the ops of namespace lamina, on the CPU")
    calls = []
    real = backends.kernels

    def recorded(op, chosen):
        def record(function):
            def call(*args):
                calls.append((function, tuple(copied(a) for a in args)))
                return function(*args)

            return call

        found = real(op, chosen)
        return backends.Kernels(*(function and record(function) for function in found))

    def copied(value):
        return value.detach() if isinstance(value, torch.Tensor) else value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(spec.functional.__module__), "kernels", recorded)
        for sample in spec.samples(torch.float32, device):
            if supported(spec, name, sample):
                run(spec.functional, sample)
    if not calls:
        pytest.skip(f"{spec.name} has no C++ kernel")
    for function, args in calls:
        finite = all(torch.isfinite(a).all() for a in args if isinstance(a, torch.Tensor))
        if finite:
            torch.library.opcheck(function, args)


@ops
def test_compile_fullgraph(spec, backend):
    name, device = backend
    if name == "cuda" and device.type == "cpu":
        pytest.skip("the host shim's ops have no fakes: they stand for the CUDA kernels only")
    if name == "triton" and device.type == "cpu":
        pytest.skip("the Triton interpreter cannot run under torch.compile")
    for sample in list(spec.samples(torch.float32, device))[:3]:
        if not supported(spec, name, sample):
            continue
        torch._dynamo.reset()
        compiled = torch.compile(spec.functional, fullgraph=True, backend="aot_eager")
        eager, eager_grads, grads = run(spec.functional, sample)
        got, got_grads, _ = run(compiled, sample, grads=grads)
        torch.testing.assert_close(got, eager, equal_nan=True)
        for a, b in zip(got_grads, eager_grads, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@ops
def test_functorch_takes_the_reference(spec):
    """vmap and forward-mode AD work on the automatic choice."""
    sample = next(
        s
        for s in spec.samples(torch.float64, torch.device("cpu"))
        if all(torch.isfinite(t).all() and t.numel() for t in tensors_of(s))
    )
    tensor, *rest = sample.args

    def call(value):
        return spec.functional(value, *rest, **sample.kwargs)

    tangent = torch.randn_like(tensor)
    _, forward = torch.func.jvp(call, (tensor,), (tangent,))
    assert forward.shape == call(tensor).shape
    torch.testing.assert_close(
        torch.func.vmap(call)(torch.stack([tensor, tensor])), torch.stack([call(tensor)] * 2)
    )
