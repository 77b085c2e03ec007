"""CapsNet (Sabour, Frosst, Hinton 2017): convolution, primary and routed capsules, decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lamina.checks import one_hot
from lamina.layers.conv2d_modules import Conv2d, Conv2dReLU
from lamina.layers.dynamic_routing_modules import DynamicRouting
from lamina.layers.linear_modules import Linear, LinearReLU
from lamina.layers.squash import Squash


class CapsNet(nn.Module):
    """Images [B, C, H, W] to one capsule for each class.

    The defaults are the paper's for MNIST: 256 filters 9x9, 32 primary capsules of dimension 8 at
    each of 6x6 places (I = 1152), 10 capsules of dimension 16, a decoder of 512 and 1024 units.

    `forward` returns the capsules [B, classes, out_dim]; their lengths (`lengths`) say which class
    is present, and `reconstruct` draws an image from one of them.
    `routing` replaces the routed layer, in_capsules of in_dim to classes of out_dim, by another.
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        *,
        filters: int = 256,
        kernel_size: int = 9,
        stride: int = 2,
        primary: int = 32,
        in_dim: int = 8,
        out_dim: int = 16,
        iterations: int = 3,
        hidden: tuple[int, int] = (512, 1024),
        routing: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(image, Sequence) or len(image) != 3:
            raise ValueError(f"CapsNet: image must be (channels, height, width), got {image!r}")
        for name, value in (("kernel_size", kernel_size), ("stride", stride)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"CapsNet: {name} must be an int of at least 1, got {value!r}")
        channels, height, width = image
        self.image, self.classes, self.in_dim = tuple(image), classes, in_dim
        places = 1
        for name, size in (("height", height), ("width", width)):
            side = (size - 2 * kernel_size + 1) // stride + 1
            if side < 1:
                raise ValueError(
                    f"CapsNet: two convolutions of kernel_size {kernel_size} leave nothing of "
                    f"the image's {name} {size}"
                )
            places *= side
        self.conv = Conv2dReLU(channels, filters, kernel_size)
        self.primary = Conv2d(filters, primary * in_dim, kernel_size, stride)
        self.squash = Squash()
        in_capsules = primary * places
        self.routing = routing or DynamicRouting(in_capsules, classes, in_dim, out_dim, iterations)
        first, second = hidden
        self.decoder = nn.Sequential(
            LinearReLU(classes * out_dim, first),
            LinearReLU(first, second),
            Linear(second, channels * height * width, activation="sigmoid"),
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = self.primary(self.conv(images))
        # [B, primary * in_dim, H, W]: a capsule's in_dim numbers are neighbouring channels.
        capsules = maps.unflatten(1, (-1, self.in_dim)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        return self.routing(self.squash(capsules))

    @staticmethod
    def lengths(capsules: Tensor) -> Tensor:
        """[B, classes]: how present each class is, between 0 and 1."""
        return torch.linalg.vector_norm(capsules, dim=-1)

    def reconstruct(self, capsules: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in 0..1 from the capsule of each label, or from the longest one.

        labels: class numbers [B] (int64). Raises ValueError where they are out of range.
        """
        if labels is None:
            labels = self.lengths(capsules).argmax(1)
        chosen = one_hot("CapsNet", "labels", labels, self.classes).to(capsules.dtype)
        return self.decoder((capsules * chosen.unsqueeze(-1)).flatten(1)).unflatten(1, self.image)
