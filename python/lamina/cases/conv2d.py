"""The calls that tests, `lamina check` and `lamina bench` make of conv2d."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lamina.activations import ACTIVATIONS
from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    def sample(
        name: str, input: Tensor, weight: tuple[int, ...], bias: bool = True, **kwargs: Any
    ) -> Sample:
        filters = draw(*weight) / math.prod(weight[1:]) ** 0.5
        tensors = (leaf(input), leaf(filters), leaf(draw(weight[0])) if bias else None)
        return Sample(name, tensors, {"activation": "relu", **kwargs})

    def image(*shape: int) -> Tensor:
        return draw(*shape).contiguous(memory_format=torch.channels_last)

    for made, layout in ((draw, "contiguous"), (image, "channels_last")):
        yield sample(f"3x3, {layout}", made(2, 3, 5, 4), (2, 3, 3, 3), padding=1)
        yield sample(
            f"all arguments, {layout}",
            made(2, 4, 9, 8),
            (6, 2, 3, 2),
            stride=(2, 1),
            padding=(2, 1),
            dilation=(1, 2),
            groups=2,
        )
        # Which taps meet which pixels: strides above 2, with and without a factor in common.
        yield sample(
            f"stride and dilation, {layout}",
            made(1, 2, 12, 11),
            (3, 2, 3, 3),
            stride=(4, 3),
            padding=2,
            dilation=2,
        )
        yield sample(f"depthwise, {layout}", made(1, 5, 6, 7), (5, 1, 3, 3), padding=1, groups=5)
        # Groups wide enough for matrix products, whose masks begin with a byte or do not.
        for outs in (32, 40):
            wide = made(1, 32, 4, 3), (outs, 16, 2, 2)
            yield sample(f"groups of {outs // 2}, {layout}", *wide, groups=2)
        # The gradients of the weights are summed over more than one part of the pixels.
        yield sample(f"many pixels, {layout}", made(2, 2, 13, 14), (3, 2, 2, 2))
        yield sample(
            f"many pixels, depthwise, {layout}", made(2, 3, 13, 13), (3, 1, 1, 2), groups=3
        )
        yield sample(f"1x1, {layout}", made(2, 9, 3, 5), (11, 9, 1, 1))
        yield sample(f"1x1 stride 2, {layout}", made(2, 4, 5, 5), (3, 4, 1, 1), stride=2)
        yield sample(f"more than a block, {layout}", made(3, 37, 9, 9), (67, 37, 3, 3), padding=1)
        yield sample(f"first layer, {layout}", made(2, 3, 23, 23), (8, 3, 7, 7), stride=2)
        yield sample(f"stride past kernel, {layout}", made(1, 2, 9, 9), (3, 2, 2, 2), stride=3)
        yield sample(f"padding past kernel, {layout}", made(1, 2, 3, 3), (2, 2, 2, 2), padding=3)
        yield sample(f"batch 0, {layout}", made(0, 3, 5, 5), (2, 3, 3, 3))
        for activation in ACTIVATIONS:
            yield sample(
                f"{activation}, {layout}", made(1, 2, 5, 5), (3, 2, 3, 3), activation=activation
            )
        residual = leaf(made(2, 3, 4, 4))
        for activation in ("relu", "silu", "none"):
            yield sample(
                f"residual {activation}, {layout}",
                made(2, 2, 4, 4),
                (3, 2, 3, 3),
                padding=1,
                activation=activation,
                residual=residual,
            )
        for activation in ("none", "leaky_relu", "gelu", "tanh"):
            yield sample(
                f"library {activation}, {layout}",
                made(2, 4, 7, 6),
                (6, 2, 3, 2),
                activation != "none",
                stride=(1, 2),
                padding=1,
                groups=2,
                activation=activation,
                algorithm="library",
                residual=leaf(made(2, 6, 7, 4)) if activation == "leaky_relu" else None,
            )
        wild = made(1, 2, 8, 8)
        wild[0, 0, 0, 0], wild[0, 1, 2, 6], wild[0, 1, 5, 2] = float("nan"), float("inf"), 1e4
        for activation in ("relu", "leaky_relu"):
            fixed = {"algorithm": "im2col", "activation": activation}
            yield sample(f"non-finite {activation}, {layout}", wild, (2, 2, 3, 3), **fixed)
    # Rows of more bits than a vector has lanes, which begin in the middle of a byte.
    yield sample("wide rows", draw(1, 5, 4, 21), (3, 5, 3, 3), padding=1)
    yield sample("winograd", draw(2, 3, 7, 6), (5, 3, 3, 3), padding=1, algorithm="winograd")
    rough = sample("winograd4", draw(2, 3, 7, 6), (5, 3, 3, 3), padding=1, algorithm="winograd4")
    yield replace(rough, bar=8)  # what docs/conv.md promises of it
    yield sample("same", draw(1, 2, 5, 6), (2, 2, 1, 3), padding="same")
    yield sample("valid, no bias", draw(1, 2, 5, 6), (2, 2, 3, 3), False, padding="valid")
    yield sample("unbatched", draw(3, 5, 5), (2, 3, 3, 3))
    yield sample("callable", draw(1, 2, 4, 4), (2, 2, 3, 3), activation=torch.sin)
    yield sample("strided input", draw(2, 2, 8, 12)[..., ::2, ::3], (3, 2, 2, 2))
    yield sample("expanded input", draw(1, 1, 4, 4).expand(3, 2, 4, 4), (3, 2, 2, 2))
    weight = leaf(draw(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    for activation in ("relu", "leaky_relu"):
        tensors = (leaf(draw(2, 3, 5, 5)), weight)
        yield Sample(f"channels_last weight, {activation}", tensors, {"activation": activation})
    frozen, relu = draw(4, 3, 3, 3), {"activation": "relu"}
    yield Sample("frozen weight", (leaf(draw(2, 3, 5, 5)), frozen), relu)
    yield Sample("frozen input", (draw(2, 3, 5, 5), leaf(frozen), leaf(draw(4))), relu)
    yield Sample("only bias", (draw(2, 3, 5, 5), frozen, leaf(draw(4))), relu)
    for name in ("relu", "none"):
        added = {"activation": name, "residual": leaf(draw(2, 4, 3, 3))}
        yield Sample(f"only residual {name}", (draw(2, 3, 5, 5), frozen), added)


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, w, b = ones(1, 3, 5, 5), ones(4, 3, 3, 3), ones(4)

    def bad(name: str, match: str, *args: Any, error: type = ValueError, **kwargs: Any) -> BadInput:
        return BadInput(name, args or (x, w, b), error, match, kwargs)

    yield bad("channels", r"\(1, 2, 5, 5\) must have 3 channels", ones(1, 2, 5, 5), w)
    yield bad("2-D input", r"must be \[N, C, H, W\]", ones(5, 5), w)
    yield bad("3-D weight", "weight must have 4 dimensions", x, ones(4, 3, 3))
    yield bad("bias size", r"bias must have shape \(4,\).*\(3,\)", x, w, ones(3))
    yield bad("groups", "groups must divide the 4", groups=3)
    yield bad("no groups", "groups must be at least 1, got 0", groups=0)
    yield bad("groups type", "groups must be an int", groups=1.0, error=TypeError)
    for other in (True, torch.tensor(1)):  # torch takes a tensor of one number for an int
        yield bad(f"groups {other!r}", "groups must be an int, got", groups=other, error=TypeError)
    yield bad("stride", "stride must be at least 1, got 0", stride=0)
    yield bad("dilation", r"dilation must be at least 1, got \(1, -1\)", dilation=(1, -1))
    yield bad("padding", "padding must be at least 0, got -1", padding=-1)
    yield bad("three strides", "stride must be an int or two ints", stride=(1, 1, 1))
    yield bad("float stride", "stride must be an int or two", stride=1.5, error=TypeError)
    yield bad("stride of bools", "stride must be an int or", stride=(True, 1), error=TypeError)
    yield bad("padding name", "padding is 'full'; it must be 'same'", padding="full")
    yield bad("same, stride", "padding 'same' needs stride 1", padding="same", stride=2)
    yield bad("large kernel", r"kernel of size \(3, 3\) with dilation \[3, 3\]", dilation=3)
    for name, image, filters in (
        ("no filters", x, w[:0]),
        ("no taps", x, w[:, :, :0]),
        ("no pixels", x[:, :, :0], w),
    ):
        yield bad(name, "filters of at least 1x1, and", image, filters, padding=2)
    residual = ones(1, 4, 5, 5)
    yield bad("residual", r"shape of the result, \(1, 4, 3, 3\), got", residual=residual)
    yield bad("dtypes", "weight is torch.float64 and input", x, w.double(), error=TypeError)
    yield bad("bias dtype", "bias is torch.float16", x, w, b.half(), error=TypeError)
    yield bad("integers", "input must be of a floating", x.long(), w, error=TypeError)
    yield bad("devices", "weight is on meta and input on", x, w.to("meta"))
    yield bad("bias device", "bias is on meta and input on", x, w, b.to("meta"))
    yield bad("list", "input must be a Tensor, got list", [1.0], w, error=TypeError)
    yield bad("name", "activation is 'rleu'; the fused ones are", activation="rleu")
    fixed = {"algorithm": "winograd", "stride": 2}
    yield bad("winograd", r"'winograd' needs a 3x3 kernel.*stride \[2, 2\]", **fixed)
    fixed = {"algorithm": "winograd4", "dilation": 2}
    yield bad("winograd4", r"'winograd4' needs a 3x3 kernel.*dilation \[2, 2\]", **fixed)
    yield bad("algorithm", "algorithm is 'fft'; it must be one of auto", algorithm="fft")


def workload(
    images: int, ins: int, size: int, rows: int, columns: int, outs: int, stride: int = 1
) -> Workload:
    """Filters of rows x columns and ReLU, padded by half of them; size x size pixels."""
    name = f"{images}x{ins}x{size}² {rows}x{columns} -> {outs}"
    name += f" stride {stride}" if stride > 1 else ""
    padding = (rows // 2, columns // 2)

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        # As networks are run there: the tensor cores want channels together.
        on_gpu = device.type == "cuda"
        layout = torch.channels_last if on_gpu else torch.contiguous_format

        def draw(*shape: int) -> Tensor:
            made = torch.randn(shape, dtype=dtype, device=device)
            return made.contiguous(memory_format=layout) if len(shape) == 4 else made

        scale = (ins * rows * columns) ** -0.5
        tensors = (draw(images, ins, size, size), draw(outs, ins, rows, columns) * scale)
        tensors = tuple(t.requires_grad_() for t in (*tensors, draw(outs)))
        tensors[0].requires_grad_(ins != 3)  # Nothing trains the pixels of an image.
        return Sample(name, tensors, {"stride": stride, "padding": padding, "activation": "relu"})

    side = (size - 1) // stride + 1
    outputs = images * outs * side * side
    products = ins * rows * columns
    elements = images * ins * size * size + outs * products + outputs
    return Workload(name, build, flops=2 * outputs * products, elements=elements)


# (channels, pixels a side, filters' rows, columns, filters, stride): the distinct convolutions of
# ResNet-18 and, beyond them, of ResNet-50 at 224² (He et al. 2016), and of Inception's modules
# (Szegedy et al. 2015, 3a; 2016, 1x7).
RESNET18 = (
    (3, 224, 7, 7, 64, 2),
    (64, 56, 3, 3, 64),
    (64, 56, 3, 3, 128, 2),
    (64, 56, 1, 1, 128, 2),
    (128, 28, 3, 3, 128),
    (128, 28, 3, 3, 256, 2),
    (128, 28, 1, 1, 256, 2),
    (256, 14, 3, 3, 256),
    (256, 14, 3, 3, 512, 2),
    (256, 14, 1, 1, 512, 2),
    (512, 7, 3, 3, 512),
)
RESNET50 = (
    (64, 56, 1, 1, 64),
    (64, 56, 1, 1, 256),
    (256, 56, 1, 1, 64),
    (256, 56, 1, 1, 128),
    (128, 56, 3, 3, 128, 2),
    (256, 56, 1, 1, 512, 2),
    (128, 28, 1, 1, 512),
    (512, 28, 1, 1, 128),
    (512, 28, 1, 1, 256),
    (256, 28, 3, 3, 256, 2),
    (512, 28, 1, 1, 1024, 2),
    (256, 14, 1, 1, 1024),
    (1024, 14, 1, 1, 256),
    (1024, 14, 1, 1, 512),
    (512, 14, 3, 3, 512, 2),
    (1024, 14, 1, 1, 2048, 2),
    (512, 7, 1, 1, 2048),
    (2048, 7, 1, 1, 512),
)
INCEPTION = (
    (192, 28, 1, 1, 64),
    (192, 28, 1, 1, 96),
    (96, 28, 3, 3, 128),
    (192, 28, 1, 1, 16),
    (16, 28, 5, 5, 32),
    (192, 28, 1, 1, 32),
    (128, 17, 1, 7, 128),
)
# Each kind of layer once: what `lamina bench` times unasked.
EACH_KIND = (
    *(shape for shape in RESNET18 if shape[2] > 1),
    (64, 56, 1, 1, 256),
    (256, 56, 1, 1, 512, 2),
    (512, 28, 1, 1, 128),
    (1024, 14, 1, 1, 256),
    (512, 7, 1, 1, 2048),
    (16, 28, 5, 5, 32),
    (128, 17, 1, 7, 128),
)

WORKLOADS = (*(workload(8, *shape) for shape in EACH_KIND), workload(1, 8, 8, 3, 3, 8))

# All of them, for whoever names them: --shapes '8x*', --shapes '16x*'.
MORE_WORKLOADS = tuple(
    workload(images, *shape)
    for images in (8, 16)
    for shape in (*RESNET18, *RESNET50, *INCEPTION)
    if images != 8 or shape not in EACH_KIND
)

GPU_WORKLOADS = (
    *(workload(32, *shape) for shape in RESNET18 if shape[2] == 3 and len(shape) == 5),
    *(workload(32, *shape) for shape in RESNET50 if shape[2] == 1),
    workload(256, 64, 56, 3, 3, 64),
    workload(256, 256, 56, 1, 1, 64),
    workload(256, 512, 7, 3, 3, 512),
    workload(32, 3, 224, 7, 7, 64, 2),
)
