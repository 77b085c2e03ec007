"""Trains an experiment's two models side by side, and keeps what is to be compared."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lamina.bench.memory import saved_bytes
from lamina.demo.experiments import Experiment
from lamina.spec import Sample

SEED = 0
TESTED = 360  # digits that are kept from the training
DRAWN = 10  # of them, for the picture
# The two differ by roundings only, which training amplifies: a share of the first loss.
LOSS_TOLERANCE = 0.02


@dataclass
class Learner:
    """A model in training: its losses, the seconds of its steps, what a step keeps for backward."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    saved_bytes: int = 0
    drawn: Tensor | None = None

    def step(self, experiment: Experiment, x: Tensor, y: Tensor) -> None:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        value = experiment.loss(self.model, x, y)
        value.backward()
        self.optimizer.step()
        self.losses.append(value.item())  # Waits for the GPU, too.
        self.seconds.append(time.perf_counter() - begin)

    def judge(self, experiment: Experiment, x: Tensor, y: Tensor) -> None:
        """Measure the accuracy on digits not seen, and what one batch of them would save."""
        self.model.eval()
        with torch.no_grad():
            right = experiment.scores(self.model, x).argmax(dim=1) == y
            if experiment.draw:
                self.drawn = experiment.draw(self.model, x[:DRAWN]).cpu()
        self.accuracy = right.float().mean().item()
        batch = (x[: experiment.batch], y[: experiment.batch])

        def call(x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
            return experiment.loss(self.model, x, y)

        self.saved_bytes = saved_bytes(call, Sample("", (*batch, *self.model.parameters())))


@dataclass(frozen=True)
class Outcome:
    """Both learners after an experiment, and the digits they were asked to draw."""

    experiment: Experiment
    torch: Learner
    lamina: Learner
    digits: Tensor

    @property
    def loss_difference(self) -> float:
        """The largest distance of the two loss curves, as a share of the first loss."""
        pairs = zip(self.torch.losses, self.lamina.losses)
        return max(abs(a - b) for a, b in pairs) / self.torch.losses[0]

    @property
    def ratio(self) -> float:
        """Torch's step time over Lamina's, median over steps that followed each other."""
        pairs = list(zip(self.torch.seconds, self.lamina.seconds))
        return statistics.median(a / b for a, b in pairs[len(pairs) // 10 :])

    @property
    def agrees(self) -> bool:
        """Same losses, and both have learnt to read."""
        accuracy = min(self.torch.accuracy, self.lamina.accuracy)
        accurate = accuracy >= self.experiment.least_accuracy
        return accurate and self.loss_difference <= LOSS_TOLERANCE


def digits() -> tuple[Tensor, Tensor]:
    """(pixels [1797, 64] in 0..1, labels [1797]), in one fixed random order.

    Raises RuntimeError if scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise RuntimeError("the digits come with scikit-learn: pip install 'lamina[demo]'")
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(SEED))
    pixels = torch.from_numpy(data.data).float()[order] / 16
    return pixels, torch.from_numpy(data.target).long()[order]


def train(
    experiment: Experiment, epochs: int, device: torch.device, advance: Callable[[str], None]
) -> Outcome:
    """Train both models on the same batches, in turn, and judge them."""
    pixels, labels = (t.to(device) for t in digits())
    pixels = pixels.view(-1, *experiment.shape)
    learners = []
    for make in (experiment.torch, experiment.lamina):
        torch.manual_seed(SEED)
        model = make().to(device)
        learners.append(Learner(model, experiment.optimizer(model.parameters())))
    theirs, ours = (learner.model.state_dict().values() for learner in learners)
    assert all(map(torch.equal, theirs, ours)), "the same seed must give the same parameters"
    generator = torch.Generator().manual_seed(SEED)
    for epoch in range(epochs):
        advance(f"{experiment.name}: epoch {epoch + 1} of {epochs}")
        order = TESTED + torch.randperm(len(labels) - TESTED, generator=generator)
        for number, rows in enumerate(order.split(experiment.batch)):
            x, y = pixels[rows], labels[rows]
            for learner in learners[:: 1 if number % 2 else -1]:
                learner.step(experiment, x, y)
    for learner in learners:
        learner.judge(experiment, pixels[:TESTED], labels[:TESTED])
    return Outcome(experiment, *learners, pixels[:DRAWN].cpu())
