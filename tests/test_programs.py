"""Models written down as programs: export, AOTInductor, ONNX, jit.trace, symbolic_trace."""

from __future__ import annotations

import io
import pickle
import shutil
import warnings

import pytest
import torch

import lamina
from lamina.functional import (
    conv2d,
    dynamic_routing,
    fold_batch_norm,
    linear,
    squash,
    threshold_relu,
)


def every_kernel() -> torch.nn.Module:
    """A model of a few layers that the automatic choice runs with kernels."""
    return torch.nn.Sequential(
        lamina.Conv2dReLU(8, 16, 3, padding=1),
        torch.nn.Flatten(),
        lamina.LinearReLU(16 * 8 * 8, 40),
        lamina.ThresholdReLU(0.1),
        torch.nn.Unflatten(1, (5, 8)),
        lamina.Squash(),
        lamina.DynamicRouting(5, 3, 8, 4),
    ).eval()


def test_export_holds_the_registered_ops():
    model = torch.nn.Sequential(lamina.LinearReLU(300, 300), lamina.ThresholdReLU(0.1)).eval()
    x = torch.randn(300, 300)
    program = torch.export.export(model, (x,))
    assert "lamina.linear_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))


def test_export_with_gradients():
    """The reference's program has them; of the kernels' torch says that it has none."""
    model, x = lamina.LinearReLU(96, 64), torch.randn(128, 96)
    output = torch.export.export(model, (x,)).module()(x)
    with pytest.warns(UserWarning, match="lamina::linear_forward: an autograd kernel was not"):
        output.sum().backward()
    with lamina.use_backend("reference"):
        program = torch.export.export(model, (x,)).module()
    found, expected = (
        torch.autograd.grad(m(x).sum(), list(m.parameters())) for m in (program, model)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def exported_with_an_open_batch() -> tuple[torch.nn.Module, torch.export.ExportedProgram]:
    model = every_kernel()
    dynamic = {"input": {0: torch.export.Dim("batch", min=1)}}
    return model, torch.export.export(model, (torch.randn(6, 8, 8, 8),), dynamic_shapes=dynamic)


def test_export_leaves_the_batch_open():
    """Choosing by size would bound it: an exported program of open size takes the kernels."""
    model, program = exported_with_an_open_batch()
    for batch in (1, 2, 300):
        x = torch.randn(batch, 8, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
def test_aot_inductor_compiles_every_op(tmp_path):
    with torch.no_grad():
        model, program = exported_with_an_open_batch()
    called = {node.target for node in program.graph.nodes if "lamina" in str(node.target)}
    assert len(called) == 5
    package = str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    compiled = torch._inductor.aoti_load_package(package)
    for batch in (1, 2, 300):
        x = torch.randn(batch, 8, 8, 8)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_without_gradients_holds_the_registered_ops():
    model = torch.nn.Sequential(lamina.LinearReLU(96, 64), lamina.Squash())
    x = torch.randn(128, 96)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), model(x))
    assert "lamina::linear_forward" in str(traced.inlined_graph)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_with_gradients():
    """The program computes and can be saved; the reference's has gradients too."""
    model = torch.nn.Sequential(lamina.LinearReLU(96, 64), lamina.Squash())
    x, other = torch.randn(128, 96), torch.randn(128, 96)
    with pytest.warns(torch.jit.TracerWarning, match=r"use_backend\('reference'\)"):
        traced = torch.jit.trace(model, x)
    assert "lamina::linear_forward" in str(traced.inlined_graph)
    with torch.no_grad(), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.jit.trace(model, x)
    assert not any("use_backend" in str(warning.message) for warning in found)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(other), model(other))
    with lamina.use_backend("reference"):
        traced = torch.jit.trace(model, x)
    grad = torch.randn(128, 64)
    got, expected = (
        torch.autograd.grad(call(other), list(model.parameters()), grad) for call in (traced, model)
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", [lamina.LinearReLU(8, 8), lamina.Conv2dReLU(1, 2, 1)])
def test_jit_trace_of_small_calls(layer):
    """They are ATen's; with and without gradients torch.jit.trace has to see the same ops."""
    x = torch.randn(1, 8, 8)
    traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "layer",
    [
        lamina.LinearReLU(6, 7),
        lamina.Conv2dReLU(3, 4, 3),
        lamina.ConvBatchNormReLU2d(3, 4, 3),
        lamina.ThresholdReLU(),
        lamina.Squash(),
        lamina.DynamicRouting(6, 3, 4, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_jit_script_says_what_to_do_instead(layer):
    """Wherever in the model the layer is."""
    match = f"cannot compile {type(layer).__name__}, .* record the model with torch.jit.trace"
    with pytest.raises(NotImplementedError, match=match):
        torch.jit.script(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(layer)))


def test_onnx_export_is_given_plain_torch(monkeypatch):
    """The exporter, which has no words for Lamina's ops, goes through torch.export."""
    model = torch.nn.Sequential(lamina.LinearReLU(96, 64), lamina.Squash())
    x = torch.randn(128, 96)
    targets = []
    for _ in range(2):
        nodes = torch.export.export(model, (x,)).graph.nodes
        targets.append(" ".join(str(node.target) for node in nodes))
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert "lamina.linear_forward" in targets[0]
    assert "lamina" not in targets[1]
    with pytest.raises(ValueError, match="ONNX"), lamina.use_backend("cpp"):
        torch.export.export(model, (x,))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "error:torch.jit.trace records Lamina",
)
@pytest.mark.parametrize("inplace", [False, True])
def test_jit_trace_of_atens_choice_does_not_warn(inplace):
    """Where a traced call takes ATen, though it would not with gradients, none is lost."""
    layer = lamina.ThresholdReLU(0.1, inplace)
    x = torch.randn(4 << 20, requires_grad=True)
    traced = torch.jit.trace(lambda x: layer(x * 1.0), x, check_trace=False)
    assert "aten::threshold" in str(traced.inlined_graph)
    (grad,) = torch.autograd.grad(traced(x).sum(), x)
    assert torch.equal(grad, (x > 0.1).float())


@pytest.mark.parametrize(
    ("layer", "shape", "calls"),
    [
        (lamina.LinearReLU(6, 7), (4, 6), {linear}),
        (lamina.Linear(6, 7, activation=torch.nn.GELU()), (4, 6), {linear}),
        (lamina.ThresholdReLU(0.1), (9,), {threshold_relu}),
        (lamina.ThresholdReLU(0.1, inplace=True), (9,), {threshold_relu}),
        (lamina.Squash(), (4, 8), {squash}),
        (lamina.DynamicRouting(6, 3, 4, 5), (2, 6, 4), {dynamic_routing}),
        (lamina.Conv2dReLU(3, 4, 3), (2, 3, 8, 8), {conv2d}),
        (lamina.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 8, 8), None),
        (lamina.ConvBatchNormReLU2d(3, 4, 3), (2, 3, 8, 8), {conv2d}),
        (lamina.ConvBatchNormReLU2d(3, 4, 3).eval(), (2, 3, 8, 8), {fold_batch_norm, conv2d}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fx_records_calls(layer, shape, calls):
    """torch.fx.symbolic_trace, as tools that rewrite models use it, does not look inside an op."""
    model = torch.nn.Sequential(layer).train(layer.training)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(shape)
    for parameter in traced.parameters():  # Nothing of the old values may be baked in.
        torch.nn.init.normal_(parameter)
    copy = io.BytesIO(pickle.dumps(traced))
    assert torch.equal(pickle.load(copy)(x.clone()), model(x.clone()))
    if calls:
        found = {node.target for node in traced.graph.nodes if node.op == "call_function"}
        assert calls <= found
