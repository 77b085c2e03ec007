"""Float32 errors of dynamic routing where votes are large.

There one draw says nothing: the softmax is nearly one-hot and routing amplifies a rounding as it
will, so that plain torch misses twice its own error in one draw of five when only its capsules are
put in another order. What can be held is the typical error over many draws.
"""

from __future__ import annotations

import pytest
import torch

from lamina.backends import missing
from lamina.functional import dynamic_routing
from lamina.layers.dynamic_routing import reference

pytestmark = pytest.mark.skipif(bool(missing["cpp"]), reason="the C++ module is not built")

CASES = {
    "few samples": {"batch": 2},
    "a tile of samples": {"batch": 20},
    "three iterations": {"iterations": 3},
    "smaller votes": {"std": 0.3},
    "small votes": {"std": 0.05},
    "over the in-capsules": {"coupling_dim": "in"},
    "detached votes": {"detach_votes": True},
    "leaky": {"leaky": True},
    "replaced logits": {"accumulate": False, "scale": 0.7},
    "sqrt_eps": {"squash": "sqrt_eps", "eps": 1e-3},
    "norm_eps": {"squash": "norm_eps", "eps": 1e-3},
    "exp": {"squash": "exp"},
    "shared weight": {"weight_layout": "oed"},
    "extras": {"extras": True},
}


def gradients(route, dtype, tensors, grad, extras, options):
    """v and every gradient."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in tensors.items()}
    v = route(**leaves, **extras, **options)
    return (v.detach(), *torch.autograd.grad(v, tuple(leaves.values()), grad.to(dtype)))


def errors(seed, batch=4, std=1.0, extras=False, **options):
    """Root mean square errors of (v, gradients): [ours, torch's]."""
    torch.manual_seed(seed)
    ins, outs, in_dim, out_dim = 40, 10, 8, 16
    shape = (outs, ins, out_dim, in_dim)
    if options.get("weight_layout") == "oed":
        shape = (outs, out_dim, in_dim)
    tensors = {"u": torch.randn(batch, ins, in_dim), "weight": std * torch.randn(shape)}
    constants = {}
    if extras:
        tensors["bias"], tensors["prior"] = torch.randn(outs, out_dim), torch.randn(ins, outs)
        constants["mask"] = torch.rand(batch, ins) < 0.8
    options = {"iterations": 5, **options}
    grad = torch.randn(batch, outs, out_dim)

    def run(route, dtype, **more):
        return gradients(route, dtype, tensors, grad, constants, {**options, **more})

    exact = run(reference, torch.float64)
    found = (run(dynamic_routing, torch.float32, backend="cpp"), run(reference, torch.float32))
    return torch.tensor(
        [[(x - y).square().mean().sqrt() for x, y in zip(some, exact)] for some in found]
    )


@pytest.mark.parametrize("name", CASES)
def test_typical_error_is_torchs(name):
    """By geometric means over draws. <s, sbar> for the mean of x (routing_step.h) gives 1.7."""
    found = torch.stack([errors(seed, **CASES[name]) for seed in range(32)]).log().mean(0).exp()
    ours, torchs = found
    assert (ours <= 1.4 * torchs).all(), ours / torchs
