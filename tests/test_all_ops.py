"""Every op on every backend: values, gradients, layouts, bad input. Driven by the SPECs alone."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lamina
from lamina import backends
from lamina.accuracy import (
    compare_sample,
    differentiable,
    gradcheck_sample,
    problems_of,
    run,
    supported,
    tensors_of,
)
from lamina.layers import _template
from lamina.spec import FLOATS, specs

# The template is tested as the op that it will be a copy of.
SPECS = [*specs().values(), _template.SPEC]
CPU = torch.device("cpu")
ops = pytest.mark.parametrize("spec", SPECS, ids=[s.name for s in SPECS])
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=[str(d).split(".")[1] for d in FLOATS])


@contextmanager
def wrapped_kernels(wrap):
    """The kernels of every op that is called go through `wrap`."""
    real = backends.kernels

    def wrapped(op, chosen):
        return backends.Kernels(*(kernel and wrap(kernel) for kernel in real(op, chosen)))

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("lamina.layers.") and getattr(module, "kernels", None) is real:
                patch.setattr(module, "kernels", wrapped)
        yield


def minding_memory(kernel):
    """`kernel`, failing where it writes to an argument or returns memory that is not fresh."""
    if kernel._schema.is_mutable:
        return kernel

    def place(tensor):
        return tensor.untyped_storage().data_ptr()

    def call(*args):
        given = [a for a in args if isinstance(a, torch.Tensor)]
        before = [tensor.clone() for tensor in given]
        found = kernel(*args)
        for tensor, kept in zip(given, before, strict=True):
            exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
            torch.testing.assert_close(tensor, kept, **exactly, msg=f"{kernel} wrote to an input")
        taken = {place(tensor) for tensor in given}
        for output in [found] if isinstance(found, torch.Tensor) else found:
            if output is not None and output.numel():
                assert place(output) not in taken, f"{kernel} returned memory of something else"
                taken.add(place(output))
        return found

    return call


@ops
@dtypes
def test_values_and_gradients(spec, dtype, backend):
    name, device = backend
    ran = 0
    for sample in spec.samples(dtype, device):
        if dtype not in spec.dtypes or not supported(spec, sample):
            continue
        ran += 1
        with wrapped_kernels(minding_memory):
            comparisons = compare_sample(spec, sample)
        assert not problems_of(comparisons, spec, sample, dtype, device)
    if not ran:
        pytest.skip(f"{name} has no kernel for {spec.name} in {dtype}")


@ops
@dtypes
def test_values_and_gradients_of_the_automatic_choice(spec, dtype):
    """Small calls take shortcuts that a backend asked for by name does not take."""
    for sample in spec.samples(dtype, CPU):
        assert not problems_of(compare_sample(spec, sample), spec, sample, dtype, CPU)


@ops
def test_gradcheck(spec, backend):
    name, device = backend
    interpreted = name == "triton" and device.type == "cpu"
    ran = 0
    for sample in spec.samples(torch.float64, device):
        wanted = differentiable(sample)
        if not wanted or not supported(spec, sample):
            continue
        ran += 1
        assert gradcheck_sample(spec, sample, wanted, second=False, fast=interpreted) is None
        if name in ("reference", "cpp"):  # Double backward is the reference's on every backend.
            assert gradcheck_sample(spec, sample, wanted, second=True) is None
    if not ran:
        pytest.skip(f"{name} has no float64 kernel for {spec.name}")


@ops
def test_gradient_layouts(spec, backend):
    """Expanded, transposed and strided incoming gradients give what contiguous ones give."""
    _name, device = backend
    done = Counter()
    for sample in spec.samples(torch.float32, device):
        if not supported(spec, sample):
            continue
        shape = run(spec.functional, sample)[0].shape
        done[len(shape)] += 1
        if done[len(shape)] > 6:
            continue
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


def among_nans(sample, gaps, before):
    """The sample's tensors as parts of larger ones, full of NaN: beside them, or between too.

    `before` elements lie before the first: an odd number leaves vectors of elements unaligned.
    """

    def part(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if gaps:
            whole = value.new_full([size + 2 for size in value.shape], torch.nan)
            place = whole[tuple(slice(1, 1 + size) for size in value.shape)]
        else:
            whole = value.new_full((value.numel() + 128,), torch.nan)
            place = whole[before:].as_strided(value.shape, torch.empty_like(value).stride())
        return place.copy_(value.detach()).requires_grad_(value.requires_grad)

    kwargs = {name: part(value) for name, value in sample.kwargs.items()}
    return replace(sample, args=tuple(map(part, sample.args)), kwargs=kwargs)


@ops
def test_what_lies_beside_a_tensor_does_not_matter(spec, backend):
    """A kernel that reads past an end, and multiplies by a zero of its padding, is found."""
    name, device = backend
    interpreted = name == "triton" and device.type == "cpu"
    for i, sample in enumerate(spec.samples(torch.float32, device)):
        if sample.overwrites or (interpreted and i % 3) or not supported(spec, sample):
            continue
        expected, expected_grads, grads = run(spec.functional, sample)
        for gaps, before in ((False, 64), (False, 63), (True, None)):
            moved, where = among_nans(sample, gaps, before), f"{sample.name}, {gaps=}, {before=}"
            found, found_grads, _ = run(spec.functional, moved, grads=grads)
            for a, b in zip((found, *found_grads), (expected, *expected_grads), strict=True):
                closely = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}  # Layouts may differ.
                torch.testing.assert_close(a, b, **closely, msg=where)


@ops
def test_bad_input(spec, backend):
    _, device = backend
    for bad in spec.bad_inputs(device):
        with pytest.raises(bad.error, match=bad.match):
            spec.functional(*bad.args, **bad.kwargs)


@ops
def test_bad_input_of_the_automatic_choice(spec):
    """The shortcuts of small calls, which a backend asked for by name does not take, refuse too."""
    for bad in spec.bad_inputs(CPU):
        with pytest.raises(bad.error, match=bad.match):
            spec.functional(*bad.args, **bad.kwargs)


@ops
def test_deterministic(spec, backend):
    """Two runs, and any thread count, give identical bits; torch itself promises the first only.

    What stands in for a GPU here takes no notice of torch's threads.
    """
    name, device = backend
    threads = torch.get_num_threads()
    counts = (1, threads) if name == "cpp" else (threads,)
    for sample in spec.samples(torch.float32, device):
        if not supported(spec, sample):
            continue
        first, first_grads, grads = run(spec.functional, sample)
        for count in counts:
            torch.set_num_threads(count)
            again, again_grads, _ = run(spec.functional, sample, grads=grads)
            for a, b in zip((first, *first_grads), (again, *again_grads), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    torch.set_num_threads(threads)


@ops
def test_python_threads(spec):
    """Calls of all sizes at the same time give the bits that they give alone."""
    if backends.BACKENDS["cpp"].missing:
        pytest.skip(backends.BACKENDS["cpp"].missing)
    with lamina.use_backend("cpp"):
        samples = [s for s in spec.samples(torch.float32, CPU) if supported(spec, s)]
        alone = [run(spec.functional, sample) for sample in samples]
    if not samples:
        pytest.skip(f"{spec.name} has no C++ kernel")

    def work(first):
        with lamina.use_backend("cpp"):
            for i in range(len(samples)):
                sample, (expected, grads, grad) = ((t * 2)[first + i] for t in (samples, alone))
                output, found, _ = run(spec.functional, sample, grads=grad)
                for a, b in zip((output, *found), (expected, *grads), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(0, len(samples), len(samples) // 4 + 1)))


@ops
def test_only_what_is_needed_is_computed(spec, backend):
    """With one tensor that requires grad, the backward kernel gives one gradient: the same."""
    name, device = backend
    if name == "reference":
        pytest.skip("autograd's own matter")
    interpreted = name == "triton" and device.type == "cpu"
    given = []

    def record(kernel):
        def call(*args):
            found = kernel(*args)
            if kernel._schema.name.endswith("_backward"):
                given.append([found] if isinstance(found, torch.Tensor) else found)
            return found

        return call

    with wrapped_kernels(record):
        for i, sample in enumerate(spec.samples(torch.float32, device)):
            few = interpreted and i % 7 and sample.kwargs.get("residual") is None
            if few or not supported(spec, sample):
                continue
            leaves = [t for t in tensors_of(sample) if t.requires_grad]
            _, wanted, grads = run(spec.functional, sample)
            for leaf, expected in zip(leaves, wanted, strict=True):
                for tensor in leaves:
                    tensor.requires_grad_(tensor is leaf)
                given.clear()
                _, (grad,), _ = run(spec.functional, sample, grads=grads)
                torch.testing.assert_close(grad, expected, equal_nan=True, msg=sample.name)
                for found in given:
                    assert sum(g is not None for g in found) == 1, sample.name


@ops
def test_flops_are_the_reference_s(spec):
    """FlopCounterMode finds in the kernels' calls the products that it finds in plain torch."""
    if backends.BACKENDS["cpp"].missing:
        pytest.skip(backends.BACKENDS["cpp"].missing)
    for sample in spec.samples(torch.float32, CPU):
        counts = []
        for name in ("reference", "cpp"):
            with lamina.use_backend(name):
                if supported(spec, sample):
                    with FlopCounterMode(display=False) as counter:
                        run(spec.functional, sample)
                    counts.append(counter.get_total_flops())
        if "groups" in sample.kwargs or counts[0] == 0:
            continue  # torch counts a grouped weight's gradient as if there were no groups.
        assert len(set(counts)) == 1, (sample.name, counts)


@ops
def test_opcheck(spec, backend):
    """Schemas, fakes and autograd registrations hold, for torch.compile and torch.export."""
    name, device = backend
    if name != "cpp":
        pytest.skip("torch.library.opcheck is run on the ops of namespace lamina, on the CPU")
    calls = []

    def record(function):
        def call(*args):
            calls.append((function, tuple(copied(a) for a in args)))
            return function(*args)

        return call

    def copied(value):
        return value.detach() if isinstance(value, torch.Tensor) else value

    with wrapped_kernels(record):
        for sample in spec.samples(torch.float32, device):
            if supported(spec, sample):
                run(spec.functional, sample)
    if not calls:
        pytest.skip(f"{spec.name} has no C++ kernel")
    # Of very many calls a part will do; a sample makes three.
    for function, args in calls[:: 4 if len(calls) > 150 else 1]:
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
        if not supported(spec, sample):
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
        for s in spec.samples(torch.float64, CPU)
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
