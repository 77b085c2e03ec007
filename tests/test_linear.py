"""What is special to linear: drop-in for nn.Linear, autocast, memory, activations, sizes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lamina
from lamina.activations import ACTIVATIONS, parse_activation
from lamina.functional import linear
from saved import saved_bytes

cpp = pytest.mark.skipif(
    bool(lamina.backends.BACKENDS["cpp"].missing), reason="the C++ module is not built"
)


def test_same_state_and_initialisation_as_nn_linear():
    torch.manual_seed(0)
    theirs = nn.Linear(7, 5)
    torch.manual_seed(0)
    ours = lamina.LinearReLU(7, 5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7)
    torch.testing.assert_close(ours(input=x), F.relu(theirs(input=x)))


def test_in_out_weight_is_the_transpose():
    torch.manual_seed(0)
    rows = lamina.Linear(6, 4, activation="tanh")
    torch.manual_seed(0)
    columns = lamina.Linear(6, 4, activation="tanh", weight_layout="in_out")
    assert columns.weight.shape == (6, 4)
    x = torch.randn(5, 6)
    torch.testing.assert_close(columns(x), rows(x))


def test_a_square_weight_of_the_other_layout_is_refused():
    """By torch's metadata, since its shape does not tell; other shapes tell."""
    rows, torchs = lamina.LinearReLU(4, 4), nn.Linear(4, 4)
    columns = lamina.Linear(4, 4, weight_layout="in_out")
    for ours, other in ((columns, rows), (columns, torchs), (rows, columns)):
        before = ours.weight.detach().clone()
        for strict in (True, False):
            with pytest.raises(RuntimeError, match=r"weight is of layout '.*_.*', as the metadata"):
                nn.Sequential(ours).load_state_dict(
                    nn.Sequential(other).state_dict(), strict=strict
                )
        assert torch.equal(ours.weight, before)
        turned = {**other.state_dict(), "weight": other.weight.t()}
        ours.load_state_dict(turned, assign=True)
        x = torch.randn(3, 4)
        torch.testing.assert_close(
            ours(x).relu(), other(x).relu(), msg="a plain dict is of the layer's layout"
        )
    lamina.Linear(1, 1, weight_layout="in_out").load_state_dict(nn.Linear(1, 1).state_dict())
    torchs.load_state_dict(rows.state_dict())
    rows.load_state_dict(torchs.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        lamina.Linear(4, 5, weight_layout="in_out").load_state_dict(nn.Linear(4, 5).state_dict())


def test_a_state_dict_keeps_its_layout_in_a_file():
    model, file = nn.Sequential(lamina.Linear(4, 4, weight_layout="in_out")), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    copy.deepcopy(model).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"0\.weight is of layout 'in_out'"):
        nn.Sequential(lamina.Linear(4, 4)).load_state_dict(saved)
    del saved["0.weight"]
    nn.Sequential(lamina.Linear(4, 4)).load_state_dict(saved, strict=False)


def test_normal_initialisation_is_the_articles():
    layer = lamina.Linear(200, 100)
    layer.reset_parameters("normal")
    assert 0.9 < layer.weight.std() < 1.1
    assert (layer.bias == 0.01).all()
    with pytest.raises(ValueError, match="init is 'zeros'"):
        layer.reset_parameters("zeros")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((-1, 2), ValueError, "in_features must be at least 0, got -1"),
        ((2, 1.5), TypeError, "out_features must be an int, got 1.5"),
        ((2, 3, True, "reul"), ValueError, "activation is 'reul'"),
        ((2, 3, True, None, "io"), ValueError, "weight_layout is 'io'"),
        ((2, 3, True, ("relu", "0")), TypeError, r"a pair \(name, number\) or a callable"),
        ((2, 3, True, nn.ReLU), TypeError, "callable that is no class, got <class .*ReLU"),
    ],
)
def test_bad_construction(arguments, error, match):
    with pytest.raises(error, match=match):
        lamina.Linear(*arguments)


def test_arguments_of_the_relu_layer():
    layer = lamina.LinearReLU(6, 4, False, "in_out", "meta", torch.float64)
    assert (layer.weight.shape, layer.weight.dtype) == ((6, 4), torch.float64)
    assert layer.bias is None
    assert repr(layer) == (
        "LinearReLU(in_features=6, out_features=4, bias=False, activation='relu', "
        "weight_layout='in_out')"
    )
    assert {p.device.type for p in lamina.Linear(6, 4, device="meta").parameters()} == {"meta"}


def test_a_module_as_activation_is_shown_once():
    assert repr(lamina.Linear(2, 3, activation=nn.PReLU())).count("PReLU") == 1


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_features_at_all():
    layer = lamina.Linear(0, 4)
    torch.testing.assert_close(layer(torch.empty(3, 0)), layer.bias.expand(3, 4))
    assert (layer.bias == 0).all()


def test_copies_and_pickles():
    layer = lamina.Linear(4, 3, activation="gelu")
    x = torch.randn(2, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    assert "activation='gelu'" in repr(layer)


def test_modules_as_activations_are_recognised():
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    named = (nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh())
    for module in (*named, nn.Sigmoid(), nn.Threshold(0.3, 0.0)):
        assert parse_activation("linear", module)[2] is None
        torch.testing.assert_close(linear(x, w, None, module), module(F.linear(x, w)))
    assert parse_activation("linear", nn.Threshold(0.3, 0.0)) == ("threshold", 0.3, None)
    for unusual in (nn.Threshold(0.1, 20.0), nn.Softplus(), nn.PReLU()):
        torch.testing.assert_close(linear(x, w, None, unusual), unusual(F.linear(x, w)))


def test_an_activation_module_that_is_more_than_its_formula_is_called():
    class Doubled(nn.ReLU):
        def forward(self, input):
            return 2 * super().forward(input)

    x, w = torch.randn(3, 4), torch.randn(5, 4)
    torch.testing.assert_close(linear(x, w, None, Doubled()), 2 * F.relu(F.linear(x, w)))
    seen = []
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        relu = nn.ReLU()
        getattr(relu, register)(lambda *call: seen.append(call))
        torch.testing.assert_close(linear(x, w, None, relu), F.relu(F.linear(x, w)))
    assert len(seen) == 2


def test_parameters_of_an_activation_module_are_the_layers():
    layer = lamina.Linear(4, 3, activation=nn.PReLU())
    assert "activation.weight" in dict(layer.named_parameters())


def test_autocast(backend):
    name, device = backend
    if name == "triton" and device.type == "cpu":
        pytest.skip("the Triton interpreter has no autocast to test")
    x = torch.randn(9, 70, device=device, requires_grad=True)
    layer = lamina.LinearReLU(70, 33).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        y = layer(x)
        expected = F.relu(F.linear(x, layer.weight, layer.bias))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("size", [4, 128])
def test_autocast_leaves_float64(size):
    x = torch.randn(size, 96, dtype=torch.float64)
    layer = lamina.LinearReLU(96, 64, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == nn.functional.linear(x, layer.weight).dtype == torch.float64


def test_mixed_dtypes_are_fine_under_autocast_only():
    x, w = torch.randn(2, 3, dtype=torch.bfloat16), torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"weight is torch.float32 and input torch.bfloat16"):
        linear(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16
        with pytest.raises(TypeError, match="input must be of a floating-point dtype"):
            linear(x.long(), w)


@cpp
@pytest.mark.parametrize(("rows", "layout"), [(7, "in_out"), (8, "in_out"), (7, "out_in")])
def test_few_rows_go_where_their_gradients_are_faster(rows, layout):
    layer, x = lamina.Linear(512, 512, weight_layout=layout), torch.randn(rows, 512)
    (decision,) = lamina.explain(layer, x)
    slower = rows < 8 and layout == "in_out"
    assert decision.backend == ("reference" if slower else "cpp")
    with torch.no_grad():
        assert lamina.explain(layer, x)[0].backend == "cpp"


@cpp
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saves_no_more_than_it_must(activation):
    """Beside input, weight and bias: a bit an element, or one tensor of the output's size."""
    x, w, b = torch.randn(64, 96), torch.randn(128, 96), torch.randn(128)
    tensors = [t.requires_grad_() for t in (x, w, b)]
    output = 64 * 128
    allowed = {"none": 0, "relu": output // 8, "threshold": output // 8, "leaky_relu": output // 8}
    saved = saved_bytes(lambda: linear(*tensors, activation, backend="cpp"), exclude=tensors)
    assert saved <= allowed.get(activation, 4 * output)


@cpp
def test_double_backward_where_the_weight_comes_from_the_input():
    """The gradient stops at each argument; it must not run on through the other's history."""
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def call(x):
        return linear(x, x.t() * x, None, "tanh", backend="cpp")

    (plain,) = torch.autograd.grad(call(x).sum(), x)
    (graphed,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
    torch.testing.assert_close(graphed, plain)
    assert torch.autograd.gradgradcheck(call, x)


@cpp
@settings(max_examples=150)
@given(
    m=st.integers(0, 70),
    n=st.integers(0, 70),
    k=st.integers(0, 70),
    bias=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    step=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_size_and_stride(m, n, k, bias, activation, dtype, transposed, step, seed):
    torch.manual_seed(seed)
    x = torch.randn(k, m * step).t()[::step] if transposed else torch.randn(m, k * step)[:, ::step]
    x = x.to(dtype) if not transposed else x.to(dtype).clone(memory_format=torch.preserve_format)
    w = torch.randn(n, k * step, dtype=dtype)[:, ::step]
    b = torch.randn(n, dtype=dtype) if bias else None
    tensors = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got = linear(*tensors, activation=activation, backend="cpp")
    want = linear(*exact, activation=activation, backend="reference")
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}.get(dtype, 1e-2)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * (k + 1) ** 0.5)
    grad = torch.randn_like(want)
    ours = torch.autograd.grad(got, tensors, grad.to(dtype))
    for a, e in zip(ours, torch.autograd.grad(want, exact, grad.to(dtype).double())):
        size = (m + n + k + 1) ** 0.5
        # At a kink the rounded and the exact pre-activation may fall on different sides.
        off = (a.double() - e).abs() > tolerance * size * 4 + tolerance * e.abs() * 4
        smooth = activation not in ("relu", "threshold", "leaky_relu")
        assert off.sum() <= off.numel() * (0 if smooth or dtype == torch.float64 else 0.2)


@cpp
@pytest.mark.parametrize(("m", "n", "k"), [(40, 2100, 4103), (40, 40, 4103), (4103, 40, 40)])
def test_long_sums(m, n, k):
    """Sums in more than one chunk of K, and in more parts than two; the same for any threads."""
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((m, k), (n, k), (n,))]
    leaves = [t.requires_grad_() for t in tensors]
    grad = torch.randn(m, n, dtype=torch.float64)

    def results(backend):
        output = linear(*leaves, "leaky_relu", backend=backend)
        return output, *torch.autograd.grad(output, leaves, grad)

    threads = torch.get_num_threads()
    found = results("cpp")
    torch.set_num_threads(1)
    alone = results("cpp")
    torch.set_num_threads(threads)
    for ours, one, exact in zip(found, alone, results("reference")):
        assert torch.equal(ours, one)
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-11)


@cpp
@pytest.mark.parametrize(("m", "n", "k"), [(1, 131, 4103), (9, 70, 1030), (32, 150, 1301)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_few_rows_over_several_strips(m, n, k, dtype):
    """Against float64, and the same bits for every number of threads."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=dtype) for shape in ((m, k), (n, k), (n,))]
    grad = torch.randn(m, n, dtype=dtype)

    def gradients(backend, dtype):
        given = [t.to(dtype).requires_grad_() for t in tensors]
        output = linear(*given, "leaky_relu", backend=backend)
        return torch.autograd.grad(output, given, grad.to(dtype))

    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(gradients("cpp", dtype))
    torch.set_num_threads(threads)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    for ours, two, five, exact in zip(*found, gradients("reference", torch.float64)):
        assert torch.equal(ours, two)
        assert torch.equal(ours, five)
        error = (ours.double() - exact).norm() / exact.norm()
        assert error <= tolerance
