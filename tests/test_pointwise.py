"""1x1 convolutions whose images are read in place and whose tiles the micro-kernel finishes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lamina
from lamina.functional import conv2d

pytestmark = pytest.mark.skipif(
    bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built"
)

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.01),
    "silu": F.silu,
}
# images, channels, height, width, outs
SHAPES = {
    "panels across images": (3, 7, 13, 11, 5),
    "rows at lines": (2, 140, 14, 16, 61),
    "rows within lines": (2, 9, 17, 17, 33),
    "rows 4 KB apart": (2, 130, 32, 32, 36),
    "two passes": (2, 300, 20, 20, 70),
    "many outs": (2, 20, 16, 16, 300),
    "images below a panel": (9, 4, 3, 5, 6),
    "short passes": (32, 64, 4, 4, 72),
}


def results(function, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def draw(shape, dtype=torch.float32, layout=torch.contiguous_format):
    """Input, weight, bias and residual, and the output's gradient."""
    images, channels, height, width, outs = shape

    def image(count: int) -> Tensor:
        return torch.randn(images, count, height, width, dtype=dtype).to(memory_format=layout)

    weight = torch.randn(outs, channels, 1, 1, dtype=dtype) / channels**0.5
    return [image(channels), weight, torch.randn(outs, dtype=dtype), image(outs)], image(outs)


def ours(activation: str):
    def call(x, weight, bias=None, residual=None):
        given = {"activation": activation, "residual": residual, "backend": "cpp"}
        return conv2d(x, weight, bias, **given)

    return call


def torchs(activation: str):
    def call(x, weight, bias=None, residual=None):
        z = F.conv2d(x, weight, bias)
        return ACTIVATIONS[activation](z if residual is None else z + residual)

    return call


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("given", [2, 4], ids=["weight alone", "bias and residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results(shape, layout, dtype, given, activation):
    tensors, grad = draw(shape, dtype, layout)
    tensors = tensors[:given]
    got = results(ours(activation), tensors, grad)
    plain = results(torchs(activation), tensors, grad)
    exact = results(torchs(activation), [t.double() for t in tensors], grad)
    for i, name in enumerate(("output", "input")):
        g, p, e = got[i], plain[i], exact[i]
        errors = [(t.double() - e).square().mean().sqrt().item() for t in (g, p)]
        # Of sums of a few terms the last rounding is most; and what is exact here is float64.
        floor = max(torch.finfo(dtype).eps / 4, 64 * torch.finfo(torch.float64).eps)
        floor *= e.square().mean().sqrt().item()
        assert errors[0] <= 2 * errors[1] + floor, f"{name}: {errors[0]:.3g}, {errors[1]:.3g}"
    if given == 4:
        scale = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(got[4].double(), exact[4], rtol=scale, atol=scale)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [(4, 6), (16, 16), (64, 64)])
@pytest.mark.parametrize(
    ("images", "height", "width"),
    [
        *((9, 3, 5), (64, 2, 2), (8, 4, 4), (32, 4, 4), (2, 7, 7), (8, 7, 7), (4, 9, 9)),
        *((4, 14, 14), (2, 28, 28), (2, 33, 31)),
    ],
)
def test_gradients_over_few_pixels(images, height, width, channels, layout):
    """One chain through all pixels would round up to 2.7 times as much as torch's shorter ones."""
    squares = {"weight": [0.0, 0.0, 0.0], "bias": [0.0, 0.0, 0.0]}
    for _ in range(160 // channels[0]):
        (x, weight, bias, _), grad = draw((images, channels[0], height, width, channels[1]))
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
        got, plain = (results(f("none"), [x, weight, bias], grad) for f in (ours, torchs))
        exact = results(torchs("none"), [t.double() for t in (x, weight, bias)], grad)
        for i, name in enumerate(squares, start=2):
            errors = got[i] - exact[i], plain[i] - exact[i], exact[i]
            squares[name] = [
                s + e.square().sum() for s, e in zip(squares[name], errors, strict=True)
            ]
    for name, sums in squares.items():
        error, torchs_error, size = (s.sqrt().item() for s in sums)
        floor = torch.finfo(torch.float32).eps / 16 * size
        assert error <= 2 * torchs_error + floor, f"{name}: {error:.3g}, torch's {torchs_error:.3g}"


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("name", ["panels across images", "rows within lines", "two passes"])
def test_an_image_has_the_bits_that_it_has_alone(name, activation):
    """Whether its panels are read in place or packed, and whoever finishes its tiles."""
    (x, weight, bias, residual), grad = draw(SHAPES[name])
    together = results(ours(activation), [x, weight, bias, residual], grad)
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone = results(ours(activation), [x[one], weight, bias, residual[one]], grad[one])
        assert torch.equal(together[0][one], alone[0])
        assert torch.equal(together[1][one], alone[1])
        assert torch.equal(together[4][one], alone[4])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["panels across images", "rows at lines", "rows within lines"])
def test_what_is_not_finite_stays_in_its_image(name, value):
    (x, weight, bias, _), grad = draw(SHAPES[name])
    before = results(ours("relu"), [x, weight, bias], grad)
    x[1], grad[1] = value, value
    after = results(ours("relu"), [x, weight, bias], grad)
    rest = [i for i in range(len(x)) if i != 1]
    assert torch.equal(before[0][rest], after[0][rest])
    assert torch.equal(before[1][rest], after[1][rest])
    assert torch.equal(after[0][1].isnan(), F.conv2d(x[1:2], weight, bias)[0].isnan())


@pytest.mark.parametrize("name", SHAPES)
def test_any_number_of_threads_gives_the_same_bits(name):
    tensors, grad = draw(SHAPES[name])
    threads = torch.get_num_threads()
    got = results(ours("relu"), tensors, grad)
    torch.set_num_threads(1)
    alone = results(ours("relu"), tensors, grad)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(got, alone, strict=True))


# Each tensor of the call ends where memory that nobody may read begins.
GUARDED = """
import ctypes, mmap, sys
import torch
import lamina

page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)

def guarded(tensor):
    size = tensor.numel() * tensor.element_size()
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc.mprotect(ctypes.c_void_p(address + room), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - size)
    return flat.view(tensor.shape).copy_(tensor)

images, channels, height, width, outs = map(int, sys.argv[1:])
x = guarded(torch.randn(images, channels, height, width))
weight, bias = guarded(torch.randn(outs, channels, 1, 1)), guarded(torch.randn(outs))
residual = guarded(torch.randn(images, outs, height, width))
for activation in ("none", "relu"):
    given = {"activation": activation, "residual": residual, "backend": "cpp"}
    lamina.functional.conv2d(x, weight, bias, **given)
    leaf = x.detach().requires_grad_()
    y = lamina.functional.conv2d(leaf, weight, bias, **given)
    y.backward(guarded(torch.randn(y.shape)))
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_behind_a_tensor_is_read(name):
    shape = [str(size) for size in SHAPES[name]]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *shape], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
