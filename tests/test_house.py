"""What holds for the whole package: backend choice, explain, threads, checkpointing."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import lamina
from lamina import modules
from lamina.functional import (
    conv2d,
    dynamic_routing,
    linear,
    routing_pass,
    squash,
    threshold_relu,
)
from lamina.spec import specs


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_unmet_choice_names_every_backends_reasons():
    with pytest.raises(ValueError, match="backend 'cuda' was asked for") as error:
        threshold_relu(torch.randn(3), backend="cuda")
    for name in ("reference", "cpp", "cuda", "triton"):
        assert f"  {name}: " in str(error.value)


def test_use_backend_is_of_its_thread_and_nests():
    seen = []
    with lamina.use_backend("reference"):
        with lamina.use_backend("cpp"):
            assert lamina.backends.choice.name == "cpp"
        assert lamina.backends.choice.name == "reference"
        thread = threading.Thread(target=lambda: seen.append(lamina.backends.choice.name))
        thread.start()
        thread.join()
    assert seen == [None]
    assert lamina.backends.choice.free


def test_environment_chooses():
    code = "import torch, lamina; lamina.explain(lamina.ThresholdReLU(), torch.randn(9))"
    done = run_python(code, LAMINA_BACKEND="reference")
    assert "threshold: reference" in done.stdout
    assert "reference was asked for" in done.stdout
    done = run_python("import lamina", LAMINA_BACKEND="gpu")
    assert "LAMINA_BACKEND is 'gpu'" in done.stderr


def test_the_nearest_choice_counts():
    """backend=, then use_backend, then the environment, whose backend can't run the call here."""
    x = torch.randn(3, 4)
    with lamina.use_backend("cuda"):
        squash(x, backend="reference")
        with pytest.raises(ValueError, match="backend 'cuda' was asked for"):
            squash(x)
    code = (
        "import torch, lamina\n"
        "with lamina.use_backend('reference'):\n"
        "    lamina.explain(lamina.Squash(), torch.randn(9))"
    )
    assert "squash: reference" in run_python(code, LAMINA_BACKEND="cuda").stdout


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
def test_an_instruction_set_that_is_not_there_is_refused():
    done = run_python("import lamina", LAMINA_ISA="avx9")
    assert "ValueError: LAMINA_ISA is 'avx9'; this CPU runs baseline" in done.stderr
    with pytest.raises(ValueError, match="is 'avx512'; this CPU runs baseline, avx2"):
        modules._check_isa("avx512", "avx2")
    for accepted in (None, "", "avx2"):
        modules._check_isa(accepted, "avx2")


def test_use_backend_ends_where_the_call_raises_and_refuses_names():
    with pytest.raises(ZeroDivisionError), lamina.use_backend("reference"):
        raise ZeroDivisionError
    assert lamina.backends.choice.name is None
    with pytest.raises(ValueError, match="argument is 'gpu'; the backends are reference"):
        lamina.use_backend("gpu").__enter__()
    for name in ("gpu", 3):
        with pytest.raises(ValueError, match=f"squash: backend is {name!r}; the backends are"):
            squash(torch.randn(3), backend=name)


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
def test_a_kernel_refuses_other_devices_and_dtypes():
    for given, reason in (
        (torch.empty(3, device="meta"), "cpp: the input is on meta, its kernels take cpu"),
        (torch.ones(3, dtype=torch.float16), "cpp: torch.float16 is not among its dtypes"),
    ):
        with pytest.raises(ValueError, match=reason):
            squash(given, backend="cpp")
        assert squash(given).device == given.device


def test_explain_tells_choice_and_reasons(capsys):
    model = torch.nn.Sequential(lamina.LinearReLU(64, 64), lamina.ThresholdReLU(0.1))
    decisions = lamina.explain(model, torch.randn(2, 64))
    assert [d.op for d in decisions] == ["linear", "threshold"]
    assert all(d.backend == "reference" for d in decisions)
    assert "ATen" in decisions[0].reasons["cpp"][0]
    assert "linear: reference" in capsys.readouterr().out


def test_explain_runs_the_call_as_its_caller_would():
    """In training, ThresholdReLU's kernel pays earlier than in inference."""
    x = torch.randn(4 << 20, requires_grad=True)
    with lamina.backends.record_decisions() as training:
        threshold_relu(x)
    assert lamina.explain(threshold_relu, x)[0].backend == training[0].backend
    with torch.no_grad(), lamina.backends.record_decisions() as inference:
        threshold_relu(x)
    with torch.no_grad():
        assert lamina.explain(threshold_relu, x)[0].backend == inference[0].backend


def test_explain_tells_that_there_is_nothing_to_tell(capsys):
    assert lamina.explain(torch.nn.ReLU(), torch.randn(3)) == []
    assert "no Lamina op was called" in capsys.readouterr().out


def test_recording_ends():
    """Nested too; what was recorded is complete, and small calls take their shortcuts again."""
    call, x = squash, torch.randn(3, 4)
    with lamina.backends.record_decisions() as outer:
        with lamina.backends.record_decisions() as inner:
            call(x)
        call(x)
    call(x)
    assert [len(outer), len(inner)] == [1, 1]
    assert lamina.backends.choice.free


def test_kernels_that_no_gpu_has_run_are_taken_by_name_only(triton_on_cpu, monkeypatch):
    absent = lamina.backends.Backend("lamina", "cpu", "not today", automatic=True)
    monkeypatch.setitem(lamina.backends.BACKENDS, "triton", triton_on_cpu)
    monkeypatch.setitem(lamina.backends.BACKENDS, "cpp", absent)
    (decision,) = lamina.explain(squash, torch.randn(3, 4))
    assert decision.backend == "reference"
    assert "ask for it by name" in decision.reasons["triton"][0]


def test_imports_and_runs_without_compiled_modules(tmp_path):
    """As the pure-Python wheel does, without Triton: neither is to be found."""
    code = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: (\n"
        "    None if name.startswith(('lamina._', 'triton')) else find(name, *a))\n"
        "import torch, lamina\n"
        "print(lamina.LinearReLU(300, 300)(torch.randn(300, 300)).shape)\n"
        "print(lamina.backends.missing)"
    )
    done = run_python(code)
    assert "torch.Size([300, 300])" in done.stdout, done.stderr
    for reason in ("reinstall with a C++ compiler", "pip install triton", "needs the C++ module"):
        assert reason in done.stdout


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
def test_a_torch_without_cuda_is_why_there_are_no_cuda_kernels():
    """Not that they were not compiled: compiling them would not help."""
    assert lamina.backends.missing["cuda"] == "this torch is built without CUDA"


def test_a_module_that_does_not_load_is_absent(tmp_path):
    """As one for another torch: Lamina runs the references, and says why."""
    (tmp_path / "_ops.so").write_text("nothing")
    code = "import lamina; print(lamina.backends.BACKENDS['cpp'].missing)"
    done = run_python(code, LAMINA_MODULES=str(tmp_path))
    assert f"_ops.so does not load into torch {torch.__version__}" in done.stdout, done.stderr


def test_no_noise_at_import():
    done = run_python("import lamina")
    assert done.stdout == ""
    assert done.stderr == ""


def test_several_python_threads_may_call():
    layers = [lamina.LinearReLU(256, 256), lamina.ThresholdReLU(0.1)]
    inputs = [torch.randn(64, 256) for _ in range(4)]
    expected = [layers[1](layers[0](x)) for x in inputs]
    failures = []

    def work(x, want):
        for _ in range(20):
            got = layers[1](layers[0](x.requires_grad_()))
            got.sum().backward()
            if not torch.equal(got, want):
                failures.append((got - want).abs().max())

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
def test_workspace_is_kept_and_given_back():
    layer, x = lamina.Linear(256, 256), torch.randn(64, 256)
    with torch.no_grad():
        expected = layer(x)
        lamina.release_workspace()
        assert lamina.release_workspace() == 0
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
        assert lamina.release_workspace() >= 64 * 256 * 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    layer = lamina.LinearReLU(70, 70)
    x = torch.randn(64, 70, requires_grad=True)
    with lamina.use_backend("cpp"):
        (plain,) = torch.autograd.grad(layer(x).sum(), x)
    x.grad = None
    with lamina.use_backend("cpp"):
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(x.grad, plain, rtol=0, atol=0)


def test_selective_checkpointing_names_the_registered_ops():
    """What create_selective_checkpoint_contexts is told to keep is not computed again."""
    kept, calls = torch.ops.lamina.linear_forward.default, []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(op)
            return op(*args, **(kwargs or {}))

    layer, x = lamina.LinearReLU(70, 70), torch.randn(64, 70, requires_grad=True)
    contexts = partial(create_selective_checkpoint_contexts, [kept])
    with lamina.use_backend("cpp"), Count():
        (plain,) = torch.autograd.grad(layer(x).sum(), x)
        calls.clear()
        output = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
        (found,) = torch.autograd.grad(output.sum(), x)
    assert calls.count(kept) == 1
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_retain_graph_gives_the_same_twice():
    x, w = torch.randn(8, 9, requires_grad=True), torch.randn(7, 9, requires_grad=True)
    loss = linear(x, w, None, "silu", backend="cpp").sum()
    first = torch.autograd.grad(loss, (x, w), retain_graph=True)
    second = torch.autograd.grad(loss, (x, w))
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_layers_are_torchs_layers():
    """As loops over model.modules() that initialise or convert ask."""
    assert isinstance(lamina.LinearReLU(3, 4), torch.nn.Linear)
    assert isinstance(lamina.Conv2dReLU(3, 4, 1), torch.nn.Conv2d)


def test_dynamic_shapes_compile_once():
    layer = lamina.LinearReLU(64, 512)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (64, 65, 130):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(compiled(x), layer(x))


# Calls that kernels run, had they rules for it; each of one tensor.
TRANSFORMED = {
    "linear": (lambda x: linear(x, torch.ones(64, 96), None, "silu"), (128, 96)),
    "conv2d": (lambda x: conv2d(x, torch.ones(16, 16, 3, 3), activation="silu"), (4, 16, 20, 20)),
    "threshold": (lambda x: threshold_relu(x).square(), (4 << 20,)),
    "squash": (squash, (5, 8)),
    "dynamic_routing": (lambda u: dynamic_routing(u, torch.ones(5, 8, 4, 3)), (2, 8, 3)),
}


@pytest.mark.parametrize(("call", "shape"), TRANSFORMED.values(), ids=TRANSFORMED)
def test_functorch_transforms_inside_compile(call, shape):
    """Dynamo traces functorch's transforms, which know nothing of the kernels' gradients."""
    torch._dynamo.reset()
    x = torch.randn(shape)
    gradient = torch.func.grad(lambda x: call(x).sin().sum())
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gradient(x), rtol=1e-4, atol=1e-4)

    def forward(x):
        return torch.func.jvp(call, (x,), (x,))[1]

    compiled = torch.compile(forward, backend="aot_eager")
    torch.testing.assert_close(compiled(x), forward(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
def test_forward_mode_outside_of_functorch():
    x, tangent = torch.randn(2, 5, 8)
    assert lamina.explain(squash, x)[0].backend == "cpp"
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        assert lamina.explain(squash, dual)[0].backend == "reference"
        got = torch.autograd.forward_ad.unpack_dual(squash(dual)).tangent
    torch.testing.assert_close(got, torch.func.jvp(squash, (x,), (tangent,))[1])


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta", "ignore:The PyTorch API of nested tensors"
)
def test_other_layouts_take_the_reference():
    """What torch can multiply and no kernel can read: the automatic choice never refuses it."""
    x, w = torch.randn(128, 96), torch.randn(64, 96)
    for given in (x.to_sparse(), x.to_sparse_csr(), x.to_mkldnn()):
        (decision,) = lamina.explain(linear, given, w)
        assert decision.backend == "reference"
        assert str(given.layout) in decision.reasons["cpp"][0]
        torch.testing.assert_close(linear(given, w).to_dense(), x @ w.t())
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor([x, x[:50]], layout=layout)
        (decision,) = lamina.explain(linear, nested, w)
        assert decision.backend == "reference"
        torch.testing.assert_close(linear(nested, w).unbind()[1], x[:50] @ w.t())


def test_a_subclass_in_any_argument_takes_the_reference():
    class Tagged(torch.Tensor):
        pass

    weight = torch.randn(64, 96).as_subclass(Tagged)
    (decision,) = lamina.explain(linear, torch.randn(128, 96), weight)
    assert decision.backend == "reference"
    assert "Tagged is a tensor subclass" in decision.reasons["cpp"][0]


def test_negated_views_are_read_as_what_they_are():
    """The imaginary part of a conjugate is its memory, negated."""
    x = torch.randn(128, 96, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    w = torch.randn(64, 96)
    torch.testing.assert_close(linear(x, w, backend="cpp"), x.clone() @ w.t())


def test_losses_and_models_come_with_the_package():
    done = run_python("import lamina; print(lamina.losses.MarginLoss(), lamina.models.MLP)")
    assert "MarginLoss(positive=0.9" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (lamina.Linear, (4, 3)),
        (lamina.LinearReLU, (4, 3)),
        (lamina.Conv2d, (4, 3, 2)),
        (lamina.Conv2dReLU, (4, 3, 2)),
        (lamina.DynamicRouting, (4, 3, 2, 2)),
    ],
)
def test_initialisation_can_be_skipped(layer, arguments):
    """skip_init asks the signature for `device`."""
    made = torch.nn.utils.skip_init(layer, *arguments, dtype=torch.float64)
    assert made.weight.dtype == torch.float64


def test_layers_take_numpys_ints():
    """np.prod of a shape is one; torch's layers take them."""
    eight, three = np.prod([2, 4]), np.int64(3)
    x = torch.randn(2, 8)
    assert lamina.Linear(eight, three)(x).shape == (2, 3)
    assert lamina.models.MLP(eight, [three], 5)(x).shape == (2, 5)
    routing = lamina.DynamicRouting(eight, three, 1, 4, iterations=three)
    assert routing(x.unsqueeze(2)).shape == (2, 3, 4)
    assert type(routing.iterations) is int


def test_layers_tell_shapes_on_the_meta_device():
    with torch.device("meta"):
        model = torch.nn.Sequential(
            lamina.ConvBatchNormReLU2d(3, 64, 3),
            lamina.LinearReLU(30, 512),
            lamina.ThresholdReLU(),
            torch.nn.Flatten(2),
            lamina.Squash(),
            lamina.DynamicRouting(64, 10, 30 * 512, 16),
        )
        capsules = model(torch.empty(64, 3, 32, 32))
        assert capsules.shape == (64, 10, 16)
        weight = torch.empty(5, 10, 8, 16)
        assert routing_pass(capsules, weight, prior=torch.empty(10, 5)).shape == (64, 5, 8)


def test_every_spec_is_complete():
    for spec in specs().values():
        samples = list(spec.samples(torch.float32, torch.device("cpu")))
        assert len({s.name for s in samples}) == len(samples), spec.name
        assert list(spec.bad_inputs(torch.device("cpu"))), spec.name
        assert spec.workloads, spec.name


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
@pytest.mark.parametrize(("multiplies", "chosen"), [(True, "reference"), (False, "cpp")])
def test_bf16_goes_where_it_is_fast(monkeypatch, multiplies, chosen):
    """A CPU with bf16 products runs ATen's; one without them runs ours, which widens to float32."""
    weights = {linear: (64, 64), conv2d: (64, 64, 3, 3)}
    inputs = {linear: (64, 64), conv2d: (2, 64, 8, 8)}
    for op, shape in weights.items():
        monkeypatch.setattr(sys.modules[op.__module__], "MULTIPLIES_BF16", multiplies)
        input = torch.randn(inputs[op], dtype=torch.bfloat16)
        (decision,) = lamina.explain(op, input, torch.randn(shape, dtype=torch.bfloat16))
        assert decision.backend == chosen
