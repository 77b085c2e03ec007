"""The classifiers that `lamina demo` trains, each in two hands: torch's layers and Lamina's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lamina
from lamina.bench.peers.dynamic_routing import einsum
from lamina.losses import MarginLoss
from lamina.models import CapsNet


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Plain descent with momentum: what differs between the layers is not scaled away."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a model that gives one score for each class."""
    return F.cross_entropy(model(x), y)


def scores(model: nn.Module, x: Tensor) -> Tensor:
    """[B, classes]: the class with the largest is the answer."""
    return model(x)


@dataclass(frozen=True)
class Experiment:
    """One classifier in two hands.

    shape: of one digit as the models take it. least_accuracy: of both, on the digits kept from the
    training. draw: what the trained model makes of some digits, for the picture.
    """

    name: str
    torch: Callable[[], nn.Module]
    lamina: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int = 256
    epochs: int = 30
    quick_epochs: int = 12
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = sgd
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = cross_entropy
    scores: Callable[[nn.Module, Tensor], Tensor] = scores
    least_accuracy: float = 0.95
    draw: Callable[[nn.Module, Tensor], Tensor] | None = None


def _torch_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.Threshold(0.01, 0.0),
        nn.Linear(1024, 10),
    )


def _lamina_mlp() -> nn.Module:
    return nn.Sequential(
        lamina.LinearReLU(64, 1024),
        lamina.Linear(1024, 1024),
        lamina.ThresholdReLU(0.01),
        lamina.Linear(1024, 10),
    )


def _torch_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )


def _lamina_cnn() -> nn.Module:
    return nn.Sequential(
        lamina.Conv2dReLU(1, 32, 3, padding=1),
        lamina.Conv2dReLU(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        lamina.Linear(1024, 10),
    )


class PlainRouting(nn.Module):
    """Dynamic routing as einsum and autograd write it, with the weight of a DynamicRouting."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, u: Tensor) -> Tensor:
        return einsum(u, self.weight)


def _lamina_capsnet() -> CapsNet:
    return CapsNet((1, 8, 8), filters=64, kernel_size=3, primary=32, hidden=(128, 256))


def _plain_capsnet() -> CapsNet:
    """The same network; the routing alone is plain PyTorch."""
    model = _lamina_capsnet()
    model.routing = PlainRouting(model.routing.weight)
    return model


def _adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=2e-3)


def _margin_and_reconstruction(model: CapsNet, x: Tensor, y: Tensor) -> Tensor:
    capsules = model(x)
    error = (model.reconstruct(capsules, y) - x).square().sum(dim=(1, 2, 3)).mean()
    return MarginLoss()(model.lengths(capsules), y) + 0.0005 * error  # The paper's share.


EXPERIMENTS = (
    Experiment("MLP 64-1024-1024-10", _torch_mlp, _lamina_mlp, (64,)),
    Experiment("CNN 1-32-64-10", _torch_cnn, _lamina_cnn, (1, 8, 8), epochs=15),
    Experiment(
        "CapsNet, plain routing and Lamina's",
        _plain_capsnet,
        _lamina_capsnet,
        (1, 8, 8),
        batch=64,
        epochs=12,
        quick_epochs=12,
        optimizer=_adam,
        loss=_margin_and_reconstruction,
        scores=lambda model, x: model.lengths(model(x)),
        least_accuracy=0.97,
        draw=lambda model, x: model.reconstruct(model(x)),
    ),
)
