"""The CUDA kernels on awkward shapes, dtypes and strides, against float64.

They run on the CPU through the host shim, and on the GPU where there is one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from host_shim.build import build
from lamina.activations import ACTIVATIONS
from lamina.layers.dynamic_routing import Options as RoutingOptions
from lamina.layers.dynamic_routing import route as routing_reference
from lamina.layers.routing_pass import step as routing_pass_reference
from lamina.layers.squash import KINDS as SQUASHES
from lamina.layers.squash import reference as squash_reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=["host", "cuda"])
def machine(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The registered ops and the device that they run on."""
    if request.param == "host":
        torch.ops.load_library(str(build()))
        return SimpleNamespace(ops=torch.ops.lamina_host, device="cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    import lamina  # noqa: F401

    return SimpleNamespace(ops=torch.ops.lamina, device="cuda")


def bits_of(mask: torch.Tensor, n: int) -> torch.Tensor:
    """The first n bits of each row of a uint8 mask, lowest bit first."""
    bits = mask.unsqueeze(-1) >> torch.arange(8, device=mask.device, dtype=torch.uint8) & 1
    return bits.flatten(-2)[..., :n].bool()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 63, 1025, 5000])
@pytest.mark.parametrize("offset", [0, 1])
def test_threshold(machine: SimpleNamespace, dtype: torch.dtype, n: int, offset: int) -> None:
    x = torch.randn(n + offset, dtype=dtype, device=machine.device)[offset:]
    if n > 3:
        x[2], x[3] = float("nan"), 0.25
    before = x.clone()
    y, mask = machine.ops.threshold_forward(x, 0.25, True)
    kept = ~(x <= 0.25)
    torch.testing.assert_close(y, x.where(kept, 0), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(bits_of(mask, n), kept)
    assert mask.numel() == (n + 7) // 8
    if n % 8:
        assert mask[-1] >> n % 8 == 0
        assert machine.ops.threshold_forward(x, -1.0, True)[1][-1] >> n % 8 == 0
    grad = torch.randn(n + offset, dtype=dtype, device=machine.device)[offset:]
    torch.testing.assert_close(
        machine.ops.threshold_backward(grad, mask), grad.where(kept, 0), rtol=0, atol=0
    )
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
    y, mask = machine.ops.threshold_forward(x, 0.25, False)
    assert mask.shape == (0,)
    torch.testing.assert_close(y, x.where(kept, 0), rtol=0, atol=0, equal_nan=True)


def test_threshold_of_more_than_the_grid_takes_at_once(machine: SimpleNamespace) -> None:
    x = torch.randn((2 << 20) + 1029, dtype=torch.float64, device=machine.device)
    y, mask = machine.ops.threshold_forward(x, 0.25, True)
    assert torch.equal(y, x.where(x > 0.25, 0))
    grad = torch.randn_like(x)
    assert torch.equal(machine.ops.threshold_backward(grad, mask), grad.where(x > 0.25, 0))


def test_threshold_keeps_dense_strides(machine: SimpleNamespace) -> None:
    x = torch.randn(5, 6, 7, device=machine.device).permute(2, 0, 1)
    y, mask = machine.ops.threshold_forward(x, 0.0, True)
    assert y.stride() == x.stride()
    assert torch.equal(y, x.relu())
    assert torch.equal(bits_of(mask, 210), (x > 0).permute(1, 2, 0).flatten())
    for sparse in (x[:, ::2], x[:1].expand(4, 5, 6)):
        assert torch.equal(machine.ops.threshold_forward(sparse, 0.0, True)[0], sparse.relu())


def double_reference(x, w, b, activation, parameter, grad):
    """Output and gradients of act(x Wᵀ + b) by autograd in float64."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in (x, w, b)]
    z = torch.nn.functional.linear(*leaves)
    y = ACTIVATIONS[activation][0](z, parameter)
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = list(torch.autograd.grad(y, wanted, grad.double()))
    return y.detach(), grads + [None] * (3 - len(grads))


def assert_near(got, exact, dtype):
    """Within a few roundings of the dtype at the scale of the result; of its sums, too."""
    assert got.shape == exact.shape
    assert got.dtype == dtype
    scale = exact.abs().max() if exact.numel() else 0
    roundings = 8 if dtype.itemsize == 2 else 32
    limit = roundings * torch.finfo(dtype).eps * float(scale) + 1e-30
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=limit)


def run_linear(machine, x, w, b, activation, parameter, grad, needs=(True, True, True)):
    y, saved = machine.ops.linear_forward(x, w, b, activation, parameter, True)
    kept = y if activation in ("tanh", "sigmoid") else saved
    return y, machine.ops.linear_backward(grad, x, w, kept, activation, parameter, list(needs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, 11, 9), (33, 24, 40)])
def test_linear_activations(machine, dtype, activation, shape) -> None:
    m, n, k = shape
    parameter = {"threshold": 0.25, "leaky_relu": 0.1}.get(activation, 0.0)
    draw = dict(dtype=dtype, device=machine.device)
    x, w, b = torch.randn(m, k, **draw), torch.randn(n, k, **draw) / 4, torch.randn(n, **draw)
    grad = torch.randn(m, n, **draw)
    y, grads = run_linear(machine, x, w, b, activation, parameter, grad)
    exact, exact_grads = double_reference(x, w, b, activation, parameter, grad)
    assert_near(y, exact, dtype)
    for got, wanted in zip(grads, exact_grads):
        assert_near(got, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (130, 136, 48),
        (3, 7, 1000),
        (3, 13, 1000),
        (700, 5, 3),
        (0, 3, 4),
        (3, 0, 4),
        (3, 4, 0),
    ],
)
def test_linear_shapes(machine, dtype, shape) -> None:
    """More than a tile, split sums, and nothing at all."""
    m, n, k = shape
    draw = dict(dtype=dtype, device=machine.device)
    x, w, b = torch.randn(m, k, **draw), torch.randn(n, k, **draw), torch.randn(n, **draw)
    grad = torch.randn(m, n, **draw)
    y, grads = run_linear(machine, x, w, b, "silu", 0.0, grad)
    exact, exact_grads = double_reference(x, w, b, "silu", 0.0, grad)
    assert_near(y, exact, dtype)
    for got, wanted in zip(grads, exact_grads):
        assert_near(got, wanted, dtype)


def strided(layout: str, rows: int, columns: int, **draw) -> torch.Tensor:
    made = {
        "contiguous": lambda: torch.randn(rows, columns, **draw),
        "transposed": lambda: torch.randn(columns, rows, **draw).t(),
        "sliced": lambda: torch.randn(rows, columns + 3, **draw)[:, 1:-2],
        "every other": lambda: torch.randn(2 * rows, 2 * columns, **draw)[::2, ::2],
        "expanded": lambda: torch.randn(1, columns, **draw).expand(rows, columns),
        "one number": lambda: torch.randn(1, 1, **draw).expand(rows, columns),
    }
    return made[layout]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("which", ["x", "w", "grad"])
@pytest.mark.parametrize(
    "layout", ["transposed", "sliced", "every other", "expanded", "one number"]
)
def test_linear_strides(machine, dtype, activation, which, layout) -> None:
    m, n, k = 18, 16, 24
    draw = dict(dtype=dtype, device=machine.device)
    layouts = {name: layout if name == which else "contiguous" for name in ("x", "w", "grad")}
    x = strided(layouts["x"], m, k, **draw)
    w = strided(layouts["w"], n, k, **draw)
    grad = strided(layouts["grad"], m, n, **draw)
    y, grads = run_linear(machine, x, w, None, activation, 0.0, grad)
    exact, exact_grads = double_reference(x, w, None, activation, 0.0, grad)
    assert_near(y, exact, dtype)
    assert_near(grads[0], exact_grads[0], dtype)
    assert_near(grads[1], exact_grads[1], dtype)
    assert grads[1].stride() == torch.empty_like(w).stride()
    exact_bias = torch.where(exact > 0, grad, 0) if activation == "relu" else grad
    assert_near(grads[2], exact_bias.double().sum(0), dtype)


def begun_later(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers and strides, from an odd element of memory on."""
    whole = torch.randn(tensor.numel() + 1, device=tensor.device).to(tensor.dtype)
    return whole.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_odd_offsets(machine, dtype, activation) -> None:
    """Where vectors of elements are not aligned, the bits are those of where they are."""

    def draw(*shape):
        made = torch.randn(shape, dtype=dtype, device=machine.device)
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    def linear(x, w, b, grad):
        y, grads = run_linear(machine, x, w, b, activation, 0.0, grad)
        return y, *grads

    def conv2d(x, w, b, residual, grad):
        options = [(1, 1), (1, 1), (1, 1), 1, activation, 0.0, "auto", True]
        y, saved = machine.ops.conv2d_forward(x, w, b, residual, *options, True)
        return y, *machine.ops.conv2d_backward(grad, x, w, saved, *options, [True] * 4)

    images = draw(2, 16, 5, 4), draw(2, 16, 5, 4), draw(2, 16, 5, 4)
    for call, tensors in (
        (linear, (draw(9, 16), draw(24, 16), draw(24), draw(9, 24))),
        (conv2d, (images[0], draw(16, 16, 3, 3), draw(16), *images[1:])),
    ):
        wanted = call(*tensors)
        for i, tensor in enumerate(tensors):
            found = call(*tensors[:i], begun_later(tensor), *tensors[i + 1 :])
            for a, b in zip(found, wanted, strict=True):
                assert torch.equal(a, b), (call.__name__, i)


@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
def test_linear_needs(machine, activation) -> None:
    """What is not needed is None, and the rest does not change by a bit."""
    x, w, grad = (torch.randn(6, 10), torch.randn(5, 10), torch.randn(6, 5))
    x, w, grad = (t.to(machine.device) for t in (x, w, grad))
    _, full = run_linear(machine, x, w, None, activation, 0.0, grad)
    for chosen in range(8):
        needs = [bool(chosen >> i & 1) for i in range(3)]
        _, grads = run_linear(machine, x, w, None, activation, 0.0, grad, needs)
        for needed, got, wanted in zip(needs, grads, full):
            assert (got is None) != needed
            if needed:
                assert torch.equal(got, wanted)


@pytest.mark.parametrize("activation", ["relu", "threshold", "leaky_relu"])
def test_linear_mask(machine, activation) -> None:
    x, w = torch.randn(6, 3, device=machine.device), torch.randn(13, 3, device=machine.device)
    x[0, 0] = float("nan")
    _, saved = machine.ops.linear_forward(x, w, None, activation, 0.5, True)
    assert saved.shape == (6, 2)
    z = x @ w.t()
    expected = z > 0 if activation == "leaky_relu" else ~(z <= 0.5 * (activation == "threshold"))
    assert torch.equal(bits_of(saved, 13), expected)
    y, saved = machine.ops.linear_forward(x, w, None, activation, 0.5, False)
    assert saved.shape == (0,)
    assert y[0].isnan().all()


ROUTING = {
    "plain": {},
    "one iteration": {"iterations": 1},
    "five iterations": {"iterations": 5},
    "over in": {"coupling_dim": "in"},
    "leaky": {"leaky": True},
    "leaky over in": {"leaky": True, "coupling_dim": "in"},
    "replaced logits, scale": {"accumulate": False, "scale": 0.7},
    "scale": {"scale": 0.7},
    "detached": {"detach_votes": True},
    "detached over in": {"detach_votes": True, "coupling_dim": "in", "accumulate": False},
    "detached, no bias": {"detach_votes": True, "bias": None, "prior": None},
    "bare": {"bias": None, "prior": None, "mask": None},
    "per sample": {"prior": (5, 37, 4), "mask": (5, 37)},
    "shared": {"weight": (4, 9, 6)},
    "wide": {"weight": (35, 37, 3, 6), "bias": (35, 3), "prior": (37, 35)},
    "sqrt_eps": {"squash": "sqrt_eps", "eps": 1e-3},
    "norm_eps": {"squash": "norm_eps", "eps": 1e-3},
    "exp": {"squash": "exp", "eps": 1e-3},
}


def routing_case(name: str, **draw) -> dict:
    case = {
        "u": (5, 37, 6),
        "weight": (4, 37, 9, 6),
        "bias": (4, 9),
        "prior": (37, 4),
        "mask": (37,),
        "iterations": 3,
        "coupling_dim": "out",
        "detach_votes": False,
        "leaky": False,
        "accumulate": True,
        "scale": 1.0,
        "squash": "exact",
        "eps": 0.0,
    } | ROUTING[name]
    for key in ("u", "weight", "bias", "prior", "mask"):
        if case[key] is not None:
            case[key] = torch.randn(case[key], **draw) / 2
    if case["mask"] is not None:
        case["mask"] = (case["mask"] > 0).to(case["mask"].dtype)
    return case


def routing_tensors(case: dict, dtype: torch.dtype) -> list[torch.Tensor | None]:
    tensors = [case[key] for key in ("u", "weight", "bias", "prior", "mask")]
    return [None if t is None else t.to(dtype) for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ROUTING)
def test_dynamic_routing(machine, dtype, name) -> None:
    case = routing_case(name, dtype=torch.float64, device=machine.device)
    options = [case[k] for k in ("leaky", "accumulate", "scale", "squash", "eps")]
    u, weight, bias, prior, mask = routing_tensors(case, dtype)
    v, s, couplings = machine.ops.dynamic_routing_forward(
        u, weight, bias, prior, mask, case["iterations"], case["coupling_dim"], *options, True, True
    )
    leaves = [
        None if t is None else t.clone().requires_grad_()
        for t in routing_tensors(case, torch.float64)
    ]
    wanted = (case["iterations"], case["coupling_dim"], case["detach_votes"], *options)
    exact, exact_couplings = routing_reference(*leaves, RoutingOptions(*wanted))
    assert_near(v, exact.detach(), dtype)
    assert_near(couplings, exact_couplings, dtype)
    plain = machine.ops.dynamic_routing_forward(
        u,
        weight,
        bias,
        prior,
        mask,
        case["iterations"],
        case["coupling_dim"],
        *options,
        False,
        False,
    )
    assert torch.equal(plain[0], v)
    assert [tensor.numel() for tensor in plain[1:]] == [0, 0]
    grad = torch.randn_like(exact)
    needs = [True, True, bias is not None, prior is not None]
    grads = machine.ops.dynamic_routing_backward(
        grad.to(dtype),
        u,
        weight,
        bias,
        prior,
        mask,
        s,
        case["coupling_dim"],
        case["detach_votes"],
        *options,
        needs,
    )
    wanted = [leaf for leaf, need in zip(leaves, needs) if need]
    exact_grads = torch.autograd.grad(exact, wanted, grad)
    for got, expected in zip([g for g in grads if g is not None], exact_grads, strict=True):
        assert_near(got, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name", ["plain", "over in", "leaky", "scale", "bare", "per sample", "shared"]
)
@pytest.mark.parametrize("with_v", [True, False])
def test_routing_pass(machine, dtype, name, with_v) -> None:
    case = routing_case(name, dtype=torch.float64, device=machine.device)
    options = [case[k] for k in ("coupling_dim", "leaky", "scale")]
    u, weight, _, prior, mask = routing_tensors(case, dtype)
    v = torch.randn(u.shape[0], weight.shape[0], weight.shape[-2], device=machine.device)
    v = v.double() if with_v else None
    cast_v = None if v is None else v.to(dtype)
    s = machine.ops.routing_pass_forward(u, weight, cast_v, prior, mask, *options)
    leaves = [
        None if t is None else t.double().clone().requires_grad_()
        for t in (u, weight, cast_v, prior)
    ]
    exact = routing_pass_reference(*leaves, None if mask is None else mask.double(), *options)
    assert_near(s, exact.detach(), dtype)
    grad = torch.randn_like(exact).to(dtype)
    needs = [leaf is not None for leaf in leaves]
    grads = machine.ops.routing_pass_backward(
        grad, u, weight, cast_v, prior, mask, s, *options, needs
    )
    exact_grads = torch.autograd.grad(exact, [x for x in leaves if x is not None], grad.double())
    for got, expected in zip([g for g in grads if g is not None], exact_grads, strict=True):
        assert_near(got, expected, dtype)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (70, 3, 9)])
def test_dynamic_routing_sizes(machine, shape) -> None:
    """Nothing at all, and more samples than a warp takes."""
    batch, ins, dim = shape
    draw = dict(dtype=torch.float64, device=machine.device)
    u, weight = torch.randn(batch, ins, dim, **draw), torch.randn(2, ins, 4, dim, **draw)
    options = [False, True, 1.0, "exact", 0.0]
    v, s, _ = machine.ops.dynamic_routing_forward(
        u, weight, None, None, None, 2, "out", *options, True, False
    )
    u.requires_grad_()
    weight.requires_grad_()
    wanted = RoutingOptions(2, "out", False, *options)
    exact, _ = routing_reference(u, weight, None, None, None, wanted)
    assert_near(v, exact.detach(), torch.float64)
    grad = torch.randn_like(exact)
    grads = machine.ops.dynamic_routing_backward(
        grad,
        u.detach(),
        weight.detach(),
        None,
        None,
        None,
        s,
        "out",
        False,
        *options,
        [True, True, False, False],
    )
    for got, expected in zip(grads, torch.autograd.grad(exact, [u, weight], grad)):
        assert_near(got, expected, torch.float64)


def test_dynamic_routing_weight_layouts(machine) -> None:
    u, weight = (
        torch.randn(3, 7, 4, device=machine.device),
        torch.randn(2, 7, 8, 4, device=machine.device),
    )
    options = [None, None, None, 2, "out", False, True, 1.0, "exact", 0.0, True, False]
    v, s, _ = machine.ops.dynamic_routing_forward(u, weight, *options)
    permuted = weight.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)
    assert permuted.stride() != weight.stride()
    assert torch.equal(machine.ops.dynamic_routing_forward(u, permuted, *options)[0], v)
    rest = [
        None,
        None,
        None,
        s,
        "out",
        False,
        False,
        True,
        1.0,
        "exact",
        0.0,
        [True, True, False, False],
    ]
    grad = torch.randn_like(v)
    grads = machine.ops.dynamic_routing_backward(grad, u, weight, *rest)
    permuted_grads = machine.ops.dynamic_routing_backward(grad, u, permuted, *rest)
    assert permuted_grads[1].stride() == permuted.stride()
    assert torch.equal(permuted_grads[1], grads[1])


def test_dynamic_routing_extremes(machine) -> None:
    """No NaN at zero input, at a fully masked sample, at logits of 1e4."""
    u, weight = (
        torch.zeros(3, 7, 4, device=machine.device),
        torch.randn(2, 7, 8, 4, device=machine.device),
    )
    u[1:] = torch.randn(2, 7, 4)
    mask = torch.ones(3, 7, device=machine.device)
    mask[1] = 0
    prior = torch.full((7, 2), 1e4, device=machine.device)
    prior[:, 0] = -1e4
    options = [3, "out", False, True, 1.0, "exact", 0.0, True, True]
    v, s, c = machine.ops.dynamic_routing_forward(u, weight, None, prior, mask, *options)
    grads = machine.ops.dynamic_routing_backward(
        torch.ones_like(v),
        u,
        weight,
        None,
        prior,
        mask,
        s,
        "out",
        False,
        False,
        True,
        1.0,
        "exact",
        0.0,
        [True, True, False, True],
    )
    for tensor in (v, s, c, *(g for g in grads if g is not None)):
        assert torch.isfinite(tensor).all()


CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": (2, 2), "padding": (1, 1)},
    "rectangular": {"kernel": (3, 1), "stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
    "1x1": {"kernel": (1, 1), "ins": 40, "outs": 16},
    "eights": {"ins": 16, "outs": 24, "padding": (1, 1)},
    "eights, stride, dilation": {"ins": 8, "outs": 8, "stride": (2, 3), "dilation": (2, 2)},
    "split sums": {"ins": 72, "outs": 8, "padding": (1, 1), "size": (6, 6)},
    "more than a tile": {"outs": 136, "size": (12, 13)},
    "groups": {"groups": 2, "ins": 6, "outs": 10},
    "wide groups": {"groups": 2, "ins": 32, "outs": 64, "padding": (1, 1), "size": (5, 5)},
    "depthwise": {"groups": 6, "ins": 6, "outs": 12, "padding": (1, 1)},
    "no images": {"images": 0},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("algorithm", ["auto", "library"])
def test_conv2d(machine, dtype, channels_last, name, activation, algorithm) -> None:
    case = {
        "images": 2,
        "ins": 5,
        "outs": 7,
        "size": (8, 9),
        "kernel": (3, 3),
        "groups": 1,
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
    } | CONVOLUTIONS[name]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    geometry = [case[k] for k in ("stride", "padding", "dilation", "groups")]

    def draw(*shape):
        made = torch.randn(shape, dtype=dtype, device=machine.device)
        return made.contiguous(memory_format=layout) if len(shape) == 4 else made

    x = draw(case["images"], case["ins"], *case["size"])
    w = draw(case["outs"], case["ins"] // case["groups"], *case["kernel"]) / 4
    b = draw(case["outs"])
    leaves = [t.double().clone().requires_grad_() for t in (x, w, b)]
    convolved = torch.nn.functional.conv2d(*leaves, *geometry)
    residual = draw(*convolved.shape)
    # Within rounding of relu's kink a gradient is either side's.
    residual += 0.5 * ((convolved.detach() + residual).abs() < 0.1)
    leaves.append(residual.double().clone().requires_grad_())
    exact = ACTIVATIONS[activation][0](convolved + leaves[3], 0.0)
    options = [*geometry, activation, 0.0, algorithm, channels_last]
    y, saved = machine.ops.conv2d_forward(x, w, b, residual, *options, True)
    assert_near(y, exact.detach(), dtype)
    assert y.is_contiguous(memory_format=layout)
    if activation == "relu":
        z = y.permute(0, 2, 3, 1).flatten(0, 2) if channels_last else y.transpose(0, 1).flatten(1)
        assert torch.equal(bits_of(saved, z.shape[1]), z > 0)
    grad = draw(*y.shape)
    grads = machine.ops.conv2d_backward(grad, x, w, saved, *options, [True] * 4)
    exact_grads = torch.autograd.grad(exact, leaves, grad.double())
    for got, wanted in zip(grads, exact_grads, strict=True):
        assert_near(got, wanted, dtype)
    assert grads[0].is_contiguous(memory_format=layout)
    assert grads[1].stride() == torch.empty_like(w).stride()
    again = machine.ops.conv2d_backward(grad, x, w, saved, *options, [True, False, False, False])
    assert torch.equal(again[0], grads[0])
    assert again[1:] == (None, None, None)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("algorithm", ["auto", "library"])
def test_conv2d_without_activation(machine, channels_last, algorithm) -> None:
    """The gradient of the residual is a copy of the incoming one, never the same memory.

    2244 pixels of the result: more than a block adds up for the gradient of the bias.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w = torch.randn(2, 3, 35, 36, device=machine.device), torch.randn(4, 3, 3, 3)
    x, w = x.contiguous(memory_format=layout), w.to(machine.device)
    options = [[1, 1], [0, 0], [1, 1], 1, "none", 0.0, algorithm, channels_last]
    y, saved = machine.ops.conv2d_forward(x, w, None, None, *options, True)
    grad = torch.randn_like(y)
    grads = machine.ops.conv2d_backward(grad, x, w, saved, *options, [False, False, True, True])
    assert grads[0] is None
    assert_near(grads[2], grad.double().sum((0, 2, 3)), torch.float32)
    assert torch.equal(grads[3], grad)
    assert grads[3].data_ptr() != grad.data_ptr()


def test_conv2d_around_the_librarys_records_nothing(machine) -> None:
    """Called with gradients enabled, torch would record its convolution and miss the rest."""
    x, w = (torch.randn(2, 2, 3, 3, device=machine.device, requires_grad=True) for _ in range(2))
    options = [[1, 1], [1, 1], [1, 1], 1, "relu", 0.0, "library", False]
    y, saved = machine.ops.conv2d_forward(x, w, None, None, *options, True)
    grads = machine.ops.conv2d_backward(y, x, w, saved, *options, [True, True, False, False])
    for tensor in (y, *grads[:2]):
        assert "Convolution" not in type(tensor.grad_fn).__name__


def test_conv2d_around_the_librarys_refuses_another_dtype(machine) -> None:
    """Of a program that was recorded outside of autocast and runs inside."""
    if machine.device == "cpu":
        pytest.skip("autocast lowers aten::convolution on a GPU only")
    x, w = (torch.randn(2, 2, 3, 3, device=machine.device) for _ in range(2))
    options = [[1, 1], [1, 1], [1, 1], 1, "relu", 0.0, "library", False]
    lowered = torch.autocast(machine.device, torch.bfloat16)
    with lowered, pytest.raises(RuntimeError, match="autocast lowers torch's convolution"):
        machine.ops.conv2d_forward(x, w, None, None, *options, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SQUASHES)
@pytest.mark.parametrize("shape", [(3, 5, 8), (7, 3), (1,), (40, 1), (2, 100), (0, 4), (4, 0)])
def test_squash(machine, dtype, kind, shape) -> None:
    eps = 0.0 if kind == "exact" else 1e-2
    s, grad = (torch.randn(shape, dtype=dtype, device=machine.device) for _ in range(2))
    if s.dim() > 1 and s.numel():
        s[0] = 0
    leaf = s.double().clone().requires_grad_()
    exact = squash_reference(leaf, kind, eps)
    assert_near(machine.ops.squash_forward(s, kind, eps), exact.detach(), dtype)
    got = machine.ops.squash_backward(grad, s, kind, eps)
    assert_near(got, torch.autograd.grad(exact, leaf, grad.double())[0], dtype)
