"""The gradients of conv2d's weight and bias are summed in shares (csrc/conv2d/segments.h)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import lamina
from lamina.functional import conv2d

# (input, weight, options): more images than shares, rows that the shares divide unevenly, parts
# that end within a vector or a lane set, an image in strips, a single share, in turns too.
CALLS = {
    "winograd": ((9, 20, 12, 13), (37, 20, 3, 3), {"padding": 1, "algorithm": "winograd"}),
    "winograd, groups": ((11, 34, 9, 8), (6, 17, 3, 3), {"groups": 2, "algorithm": "winograd"}),
    "winograd, strips": ((1, 16, 96, 200), (16, 16, 3, 3), {"algorithm": "winograd"}),
    "stride": ((13, 20, 15, 17), (37, 20, 3, 3), {"padding": 1, "stride": 2}),
    "one part, cut by rows": ((10, 7, 12, 12), (9, 7, 5, 3), {}),
    "dilation, groups": ((9, 12, 20, 11), (10, 6, 3, 2), {"dilation": 2, "groups": 2}),
    "depthwise": ((17, 21, 10, 14), (21, 1, 3, 3), {"padding": 1, "groups": 21}),
    "two images": ((2, 20, 14, 14), (24, 20, 3, 3), {"padding": 1}),
    "a large gradient": ((3, 200, 22, 20), (230, 200, 3, 3), {"algorithm": "winograd"}),
    "more sums than pixels": ((3, 40, 4, 4), (48, 40, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("wanted", ["weight and bias", "weight", "bias"])
@pytest.mark.parametrize("call", CALLS)
def test_shares(call, wanted, layout):
    """Against torch in float64; the same bits for fewer and for more threads than shares."""
    input, weight, options = CALLS[call]
    x = torch.randn(input, dtype=torch.float64).contiguous(memory_format=layout)
    w = torch.randn(weight, dtype=torch.float64, requires_grad="weight" in wanted)
    bias = torch.randn(weight[0], dtype=torch.float64, requires_grad="bias" in wanted)
    leaves = [t for t in (w, bias) if t.requires_grad]
    defined = {name: value for name, value in options.items() if name != "algorithm"}
    expected = torch.relu(F.conv2d(x, w, bias, **defined))
    grad = torch.randn_like(expected)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 3, 8, 9):
        torch.set_num_threads(count)
        got = conv2d(x, w, bias, activation="relu", backend="cpp", **options)
        found.append(torch.autograd.grad(got, leaves, grad))
    torch.set_num_threads(threads)
    torch.testing.assert_close(found[0], torch.autograd.grad(expected, leaves, grad))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("input", "weight", "stride"),
    [
        ((8, 64, 56, 56), (64, 64, 3, 3), 1),
        ((8, 128, 28, 28), (128, 128, 3, 3), 1),
        ((4, 512, 7, 7), (512, 512, 3, 3), 1),
        ((4, 64, 56, 56), (128, 64, 3, 3), 2),
    ],
)
def test_scratch_memory(input, weight, stride, threads):
    x = torch.randn(input, requires_grad=True)
    w = torch.randn(weight, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    lamina.release_workspace()
    conv2d(x, w, stride=stride, padding=1, activation="relu", backend="cpp").sum().backward()
    torch.set_num_threads(before)
    assert 0 < lamina.release_workspace() <= threads * (8 << 20)
