"""Dynamic routing: what the generic tests leave open."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import lamina
from lamina.functional import dynamic_routing, routing_pass, squash
from lamina.layers.dynamic_routing import reference
from lamina.losses import MarginLoss
from lamina.models import CapsNet


def drawn(*shape, scale=1.0, dtype=torch.float64):
    return (scale * torch.randn(*shape, dtype=dtype)).requires_grad_()


OPTIONS = list(
    itertools.product((1, 2, 5), ("out", "in"), (False, True), (False, True), (False, True))
)


@pytest.mark.parametrize(("iterations", "coupling_dim", "detach", "shared", "leaky"), OPTIONS)
def test_all_gradients(iterations, coupling_dim, detach, shared, leaky):
    """Every gradient in float64, with bias, prior and mask, for every squash."""
    for kind, per_sample in zip(("exact", "sqrt_eps", "norm_eps", "exp"), (0, 1, 0, 1)):
        u, bias = drawn(11, 6, 3), drawn(4, 5, scale=0.1)
        weight = drawn(4, 5, 3) if shared else drawn(4, 6, 5, 3)
        prior = drawn(11, 6, 4) if per_sample else drawn(6, 4)
        mask = torch.rand(11, 6) < 0.7 if per_sample else torch.arange(6) % 3 > 0
        mask[0] = False
        kwargs = {
            "iterations": iterations,
            "coupling_dim": coupling_dim,
            "detach_votes": detach,
            "leaky": leaky,
            "squash": kind,
            "eps": 0.0 if kind == "exact" else 1e-3,
            "scale": 0.8,
            "accumulate": kind != "exp",
            "weight_layout": "oed" if shared else "oied",
            "return_couplings": True,
        }
        leaves = (u, weight, bias, prior)
        v, couplings = dynamic_routing(
            u, weight, bias=bias, prior=prior, mask=mask, backend="cpp", **kwargs
        )
        exact = reference(u, weight, bias=bias, prior=prior, mask=mask, **kwargs)
        torch.testing.assert_close(v, exact[0], rtol=0, atol=1e-13)
        torch.testing.assert_close(couplings, exact[1], rtol=0, atol=1e-13)
        assert not couplings.requires_grad
        grad = torch.randn_like(v)
        for got, wanted in zip(
            torch.autograd.grad(v, leaves, grad), torch.autograd.grad(exact[0], leaves, grad)
        ):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_only_s_is_saved():
    u, weight = drawn(64, 50, 8, dtype=torch.float32), drawn(10, 50, 16, 8, dtype=torch.float32)
    sizes = []

    def keep(tensor):
        if tensor.data_ptr() not in (u.data_ptr(), weight.data_ptr()):
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        dynamic_routing(u, weight, backend="cpp")
    assert sizes == [3 * 64 * 10 * 16]


@pytest.mark.parametrize("coupling_dim", ["out", "in"])
def test_wild_values_stay_finite(coupling_dim):
    """Zero input, zero vectors, masked samples and logits of +-1e4 give numbers."""
    prior = 1e4 * torch.tensor([[1.0, -1, 0], [-1, -1, 1], [1, 1, 1], [-1, -1, -1]])
    cases = {
        "zeros": {"u": torch.zeros(3, 4, 2)},
        "masked": {"mask": torch.zeros(3, 4, dtype=torch.bool)},
        "wild prior": {"prior": prior.requires_grad_()},
        "wild votes": {"u": 100 * torch.randn(3, 4, 2), "scale": 100.0},
    }
    for name, case in cases.items():
        u = case.pop("u", torch.randn(3, 4, 2)).requires_grad_()
        weight = drawn(3, 4, 5, 2, dtype=torch.float32)
        v = dynamic_routing(u, weight, coupling_dim=coupling_dim, backend="cpp", **case)
        grads = torch.autograd.grad(v.sum(), (u, weight))
        assert all(t.isfinite().all() for t in (v, *grads)), name


def test_infinite_prior_removes_a_coupling():
    prior = torch.zeros(4, 3)
    prior[1, 2] = prior[0, 0] = -float("inf")
    for coupling_dim in ("out", "in"):
        u, weight = drawn(3, 4, 2, dtype=torch.float32), drawn(3, 4, 5, 2, dtype=torch.float32)
        _, c = dynamic_routing(
            u, weight, prior=prior, coupling_dim=coupling_dim, return_couplings=True, backend="cpp"
        )
        assert (c[:, 1, 2] == 0).all()
        assert (c[:, 0, 0] == 0).all()
        assert c.isfinite().all()


@pytest.mark.parametrize(
    ("batch", "out_capsules", "in_dim"),
    [(2, 10, 8), (6, 10, 8), (70, 10, 8), (70, 41, 8), (20, 41, 16), (70, 41, 32)],
)
def test_bits_do_not_depend_on_threads(batch, out_capsules, in_dim):
    """In-capsules in the lanes: a few samples, and teams. Samples in the lanes: couplings kept in
    scratch memory, and in the weight's gradient."""
    u = drawn(batch, 300, in_dim, dtype=torch.float32)
    weight = drawn(out_capsules, 300, 16, in_dim, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        v = dynamic_routing(u, weight, backend="cpp")
        found.append((v.detach(), *torch.autograd.grad(v.square().sum(), (u, weight))))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize(
    ("sizes", "iterations"), [((40, 64, 6, 260, 4), 3), ((150, 99, 30, 3, 2), 4)]
)
def test_large_groups_add_up(sizes, iterations):
    """More tiles of samples, or teams, than one group has room for: grad_weight, bias and prior are
    sums over groups."""
    b, i, o, e, d = sizes
    u, weight = drawn(b, i, d), drawn(o, i, e, d, scale=0.2)
    bias, prior = drawn(o, e), drawn(i, o)
    leaves = (u, weight, bias, prior)
    kwargs = {"bias": bias, "prior": prior, "iterations": iterations}
    v = dynamic_routing(u, weight, backend="cpp", **kwargs)
    exact = reference(u, weight, **kwargs)
    grad = torch.randn_like(v)
    for got, wanted in zip(
        torch.autograd.grad(v, leaves, grad), torch.autograd.grad(exact, leaves, grad)
    ):
        assert (got - wanted).abs().max() <= 1e-12 * (1 + wanted.abs().max())


@pytest.mark.parametrize("coupling_dim", ["out", "in"])
@pytest.mark.parametrize("layout", ["oied", "idoe", "oide"])
@pytest.mark.parametrize("batch", [1, 3, 6, 21])
def test_in_capsules_in_the_lanes(batch, layout, coupling_dim):
    """A few samples, and teams of which the last is smaller; the last tile is not full."""
    shape = {"o": 3, "i": 37, "e": 5, "d": 6}
    weight = drawn(*(shape[name] for name in layout), scale=0.5)
    for per_sample in (False, True):
        u, bias = drawn(batch, 37, 6), drawn(3, 5)
        prior = drawn(batch, 37, 3) if per_sample else drawn(37, 3)
        mask = torch.rand(batch, 37) < 0.7 if per_sample else torch.arange(37) % 3 > 0
        kwargs = {"bias": bias, "prior": prior, "mask": mask, "return_couplings": True}
        kwargs |= {"weight_layout": layout, "coupling_dim": coupling_dim, "leaky": per_sample}
        leaves = (u, weight, bias, prior)
        got = dynamic_routing(u, weight, backend="cpp", **kwargs)
        exact = reference(u, weight, **kwargs)
        grad = torch.randn_like(exact[0])
        got = (*got, *torch.autograd.grad(got[0], leaves, grad))
        for found, wanted in zip(got, (*exact, *torch.autograd.grad(exact[0], leaves, grad))):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coupling_dim", ["out", "in"])
def test_teams_of_two_chunks(coupling_dim):
    """Teams whose votes are cut in two, one at a time and, with three threads, several at once."""
    u, weight = drawn(10, 300, 4), drawn(10, 300, 16, 4, scale=0.3)
    bias, prior = drawn(10, 16), drawn(10, 300, 10)
    kwargs = {"bias": bias, "prior": prior, "mask": torch.rand(10, 300) < 0.7}
    kwargs |= {"coupling_dim": coupling_dim, "return_couplings": True}
    leaves = (u, weight, bias, prior)
    exact = reference(u, weight, **kwargs)
    grad = torch.randn_like(exact[0])
    exact = (*exact, *torch.autograd.grad(exact[0], leaves, grad))
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got = dynamic_routing(u, weight, backend="cpp", **kwargs)
        got = (*got, *torch.autograd.grad(got[0], leaves, grad))
        for found, wanted in zip(got, exact):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.set_num_threads(before)


def test_a_gradient_on_huge_pages():
    """grad_weight of 36 MB: its pages are touched first, then couplings are kept in it."""
    leaves = drawn(6, 1100, 16), drawn(32, 1100, 16, 16, scale=0.1)
    exact = torch.autograd.grad(reference(*leaves).square().sum(), leaves)
    single = [x.detach().float().requires_grad_() for x in leaves]
    got = torch.autograd.grad(dynamic_routing(*single, backend="cpp").square().sum(), single)
    eager = torch.autograd.grad(reference(*single).square().sum(), single)
    for found, plain, wanted in zip(got, eager, exact):
        # The leaves rounded to float32 are in both errors.
        assert (found - wanted).abs().max() <= 2 * (plain - wanted).abs().max()


@pytest.mark.parametrize("layout", ["oied", "idoe"])
def test_several_tiles(layout):
    """grad_weight summed over the lanes of several tiles, in and out of the weight's order."""
    shape = {"o": 3, "i": 7, "e": 6, "d": 8}
    u, weight = drawn(100, 7, 8), drawn(*(shape[name] for name in layout), scale=0.2)
    grad = torch.randn(100, 3, 6, dtype=torch.float64)

    def gradients(route, dtype, **options):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (u, weight)]
        v = route(*leaves, weight_layout=layout, **options)
        return torch.autograd.grad(v, leaves, grad.to(dtype))

    exact = gradients(reference, torch.float64)
    for got, wanted in zip(gradients(dynamic_routing, torch.float64, backend="cpp"), exact):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    single = gradients(dynamic_routing, torch.float32, backend="cpp")
    for got, eager, wanted in zip(single, gradients(reference, torch.float32), exact):
        # u, weight and grad rounded to float32 are in both errors.
        assert (got - wanted).abs().max() <= 2 * (eager - wanted).abs().max()


def test_routing_pass_composes_to_dynamic_routing():
    u, weight = drawn(5, 7, 3), drawn(4, 7, 6, 3)
    v = total = squash(routing_pass(u, weight))
    for _ in range(2):
        v = squash(routing_pass(u, weight, total))
        total = total + v
    fused = dynamic_routing(u, weight)
    torch.testing.assert_close(v, fused, rtol=0, atol=1e-13)
    grad = torch.randn_like(v)
    for a, b in zip(
        torch.autograd.grad(v, (u, weight), grad), torch.autograd.grad(fused, (u, weight), grad)
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def _public_oied(x, weight):
    """Softmax over the out-capsules, votes detached but in the last iteration; eps in the norm."""
    votes = torch.matmul(weight, x[:, None, :, :, None]).squeeze(-1)
    constant, b = votes.detach(), x.new_zeros(len(x), *weight.shape[:2])
    for t in range(3):
        c = b.softmax(1)
        s = (c[..., None] * (votes if t == 2 else constant)).sum(-2, keepdim=True)
        n = s.norm(dim=-1, keepdim=True)
        v = n**2 / (1 + n**2) / (n + 1e-8) * s
        b = b + (v * constant).sum(-1)
    return v.squeeze(-2)


def test_moving_over_from_public_layouts():
    """The examples of docs/capsule.md."""
    x, w = torch.randn(4, 6, 3), torch.randn(5, 6, 7, 3)
    ours = dynamic_routing(x, w, detach_votes=True, squash="norm_eps", eps=1e-8)
    torch.testing.assert_close(ours, _public_oied(x, w))
    exact = dynamic_routing(x, w)
    flat = w.permute(1, 3, 0, 2).reshape(6, 3, 35)
    torch.testing.assert_close(
        dynamic_routing(x, flat, weight_layout="id(oe)", out_capsules=5), exact
    )
    turned = w.transpose(2, 3).contiguous()
    torch.testing.assert_close(dynamic_routing(x, turned, weight_layout="oide"), exact)


@pytest.mark.parametrize("layout", ["oied", "idoe", "id(oe)", "1oied", "oide", "oed"])
def test_module(layout):
    torch.manual_seed(3)
    layer = lamina.DynamicRouting(6, 4, 3, 5, bias=True, prior=True, weight_layout=layout)
    u = torch.randn(2, 6, 3)
    other = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(u), layer(u))
    assert set(layer.state_dict()) == {"weight", "bias", "prior"}
    if layout != "oed":
        torch.manual_seed(3)
        plain = lamina.DynamicRouting(6, 4, 3, 5, bias=True)
        torch.testing.assert_close(plain(u), layer(u))
    assert f"weight_layout='{layout}'" in repr(layer)


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 1},
        {"coupling_dim": "in"},
        {"squash": "norm_eps", "eps": 0.5},
        {"accumulate": False},
        {"scale": 3.0},
        {"leaky": True},
        {"detach_votes": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_module_hands_on_its_options(options):
    layer = lamina.DynamicRouting(6, 4, 3, 5, init_std=1.0, **options, dtype=torch.float64)
    u, mask = drawn(2, 6, 3), torch.arange(6) % 3 > 0
    wanted = dynamic_routing(u, layer.weight, mask=mask, return_couplings=True, **options)
    got = layer(u, mask, return_couplings=True)
    plain = dynamic_routing(u, layer.weight, mask=mask)
    for ours, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)
    gradients = [torch.autograd.grad(v.sum(), u)[0] for v in (got[0], wanted[0], plain)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert not torch.allclose(gradients[0], gradients[2])


def test_module_draws_as_it_says():
    layer = lamina.DynamicRouting(60, 10, 8, 16, bias=True, prior=True, init_std=0.5)
    assert 0.45 < layer.weight.std() < 0.55
    assert (layer.bias == 0.1).all()
    assert (layer.prior == 0).all()
    on_meta = lamina.DynamicRouting(6, 4, 3, 5, bias=True, prior=True, device="meta")
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


def test_module_rejects():
    with pytest.raises(ValueError, match="out_capsules must be at least 1, got 0"):
        lamina.DynamicRouting(6, 0, 3, 5)
    for options, error, match in (
        ({"weight_layout": "oix"}, ValueError, "weight_layout is 'oix'; it must name"),
        ({"weight_layout": None}, TypeError, "weight_layout must be a str, got None"),
        ({"coupling_dim": "o"}, ValueError, "coupling_dim is 'o'; it must be 'out' or 'in'"),
        ({"in_dim": 3.0}, TypeError, "in_dim must be an int, got 3.0"),
        ({"scale": "2"}, TypeError, "scale must be a number, got str"),
        ({"init_std": None}, TypeError, "init_std must be a number, got NoneType"),
    ):
        with pytest.raises(error, match=f"DynamicRouting: {match}"):
            lamina.DynamicRouting(
                **{"in_capsules": 6, "out_capsules": 4, "in_dim": 3, "out_dim": 5, **options}
            )


def test_a_weight_of_another_layout_is_refused():
    """Where its shape fits all the same; what names no layout may come from anywhere."""
    ours, other = (
        lamina.DynamicRouting(6, 4, 5, 5, weight_layout=layout) for layout in ("oied", "oide")
    )
    with pytest.raises(RuntimeError, match=r"layout 'oide', as the metadata .* is 'oied'"):
        ours.load_state_dict(other.state_dict())
    ours.load_state_dict(dict(other.state_dict()))
    ours.load_state_dict(torch.nn.ParameterDict({"weight": other.weight}).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(lamina.Linear(5, 5, bias=False).state_dict())


def test_autocast_keeps_float32():
    u, weight = torch.randn(2, 6, 3), torch.randn(4, 6, 5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = dynamic_routing(u.bfloat16(), weight)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, dynamic_routing(u.bfloat16().float(), weight))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_autocast_lowers_no_argument(backend):
    """Given in bfloat16 or float32, each is computed with in float32, on every backend."""
    if lamina.backends.missing[backend]:
        pytest.skip(lamina.backends.missing[backend])
    u, weight, vector = torch.randn(2, 6, 3), torch.randn(4, 6, 5, 3), torch.randn(4, 5)
    prior = torch.randn(6, 4).bfloat16()
    vector = vector.bfloat16()
    votes = vector.expand(2, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = dynamic_routing(u, weight, bias=vector, prior=prior, backend=backend)
        s = routing_pass(u, weight, votes, prior=prior, backend=backend)
    prior, vector, votes = prior.float(), vector.float(), votes.float()
    wanted = dynamic_routing(u, weight, bias=vector, prior=prior, backend=backend)
    torch.testing.assert_close(v, wanted, rtol=0, atol=0)
    torch.testing.assert_close(s, routing_pass(u, weight, votes, prior=prior, backend=backend))


def test_results_have_the_dtype_of_the_input():
    u, weight = torch.randn(2, 6, 3).bfloat16(), torch.randn(4, 6, 5, 3).bfloat16()
    for tensor in dynamic_routing(u, weight, return_couplings=True):
        assert tensor.dtype == torch.bfloat16


def test_margin_loss():
    lengths = torch.tensor([[0.95, 0.2, 0.05], [0.5, 0.0, 0.1]])
    found = MarginLoss(reduction="none")(lengths, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.01, 0.81 + 0.5 * 0.16]))
    many = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    found = MarginLoss(reduction="sum")(lengths, many)
    torch.testing.assert_close(found, torch.tensor(0.49 + 0.5 * 0.16))
    found = MarginLoss(0.8, 0.3, absent_weight=0.25, reduction="sum")(lengths, many)
    torch.testing.assert_close(found, torch.tensor(0.36 + 0.25 * 0.04))
    mean = MarginLoss(reduction="none")(lengths, many).mean()
    torch.testing.assert_close(MarginLoss()(lengths, many), mean)
    for wrong, error in ((lengths[0], ValueError), (many.long(), TypeError)):
        with pytest.raises(error, match="MarginLoss: lengths must be"):
            MarginLoss()(wrong, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="reduction is 'max'"):
        MarginLoss(reduction="max")
    for name in ("positive", "negative", "absent_weight"):
        with pytest.raises(TypeError, match=f"MarginLoss: {name} must be a number, got str"):
            MarginLoss(**{name: "sum"})
    with pytest.raises(ValueError, match=r"target must have shape \(2,\) or \(2, 3\), got \(3,\)"):
        MarginLoss()(lengths, torch.tensor([0, 1, 2]))
    for target, match in (([0, 1], "must be a Tensor, got list"), (lengths[:, 0], "must be int64")):
        with pytest.raises(TypeError, match=match):
            MarginLoss()(lengths, target)
    with pytest.raises(ValueError, match="target is on meta and lengths on cpu"):
        MarginLoss()(lengths, many.to("meta"))
    for wrong, got in (([0, 3], "0 to 3"), ([-1, 1], "-1 to 1")):
        with pytest.raises(ValueError, match=f"class numbers must be from 0 to 2, got {got}"):
            MarginLoss()(lengths, torch.tensor(wrong))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_margin_loss_compiles_and_maps(reduction):
    loss, lengths, target = MarginLoss(reduction=reduction), torch.rand(5, 3), torch.arange(5) % 3
    expected = loss(lengths, target)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(lengths, target), expected)
    mapped = torch.func.vmap(lambda v, t: loss(v[None], t[None]))(lengths, target)
    torch.testing.assert_close(mapped.mean() if reduction == "mean" else mapped[:, 0], expected)


def test_capsnet_is_the_papers():
    """Against plain torch: channels c * in_dim to (c + 1) * in_dim of a place are a capsule."""
    model = CapsNet((1, 9, 11), 3, filters=5, kernel_size=3, stride=1, primary=2, iterations=1)
    assert (model.routing.iterations, model.primary.stride) == (1, (1, 1))
    images = torch.rand(2, 1, 9, 11)
    maps = torch.relu(torch.conv2d(images, model.conv.weight, model.conv.bias))
    maps = torch.conv2d(maps, model.primary.weight, model.primary.bias)
    assert maps.shape == (2, 2 * 8, 5, 7)
    capsules = [
        maps[:, c * 8 : (c + 1) * 8, y, x] for c in range(2) for y in range(5) for x in range(7)
    ]
    capsules = squash(torch.stack(capsules, 1))
    torch.testing.assert_close(model(images), model.routing(capsules))
    found = torch.tensor([[[3.0, 4], [0, 1], [0, 2]], [[0, 0], [0.6, 0.8], [9, 0]]])
    torch.testing.assert_close(model.lengths(found), torch.tensor([[5.0, 1, 2], [0, 1, 9]]))
    capsules = model(images)
    longest = model.lengths(capsules).argmax(1)
    torch.testing.assert_close(model.reconstruct(capsules), model.reconstruct(capsules, longest))


def test_capsnet_learns():
    torch.manual_seed(0)
    model = CapsNet((1, 8, 8), 3, filters=16, kernel_size=3, primary=4, hidden=(16, 32))
    images = torch.rand(12, 1, 8, 8)
    labels = torch.arange(12) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        capsules = model(images)
        loss = MarginLoss()(model.lengths(capsules), labels)
        loss = loss + (model.reconstruct(capsules, labels) - images).square().mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]
    assert model.reconstruct(capsules).shape == images.shape
    with pytest.raises(ValueError, match="leave nothing of the image's height 8"):
        CapsNet((1, 8, 28))
    with pytest.raises(ValueError, match="leave nothing of the image's width 8"):
        CapsNet((1, 28, 8))
    with pytest.raises(
        ValueError, match=r"image must be \(channels, height, width\), got \(28, 28\)"
    ):
        CapsNet((28, 28))
    for options, match in (
        ({"stride": 0}, "stride .*got 0"),
        ({"kernel_size": (9, 9)}, "kernel_s"),
    ):
        with pytest.raises(ValueError, match=match):
            CapsNet(**options)
    with pytest.raises(ValueError, match="too many values"):
        CapsNet((1, 8, 8), 3, kernel_size=3, hidden=(16, 32, 64))
    with pytest.raises(ValueError, match="CapsNet: labels must be from 0 to 2, got 3 to 3"):
        model.reconstruct(capsules, torch.full_like(labels, 3))
