"""`lamina demo`: handwritten digits, learnt with torch's layers and with Lamina's.

The 1,797 digits of scikit-learn (8x8 pixels, real handwriting). Both models start from the same
seed, see the same batches, and take their steps in turn, so that what differs is the layers alone.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lamina
from lamina.bench.plot import NEED_MATPLOTLIB
from lamina.check import check
from lamina.console import Cell, print_table, progress

SEED = 0
TESTED = 360  # digits that are kept from the training
LEAST_ACCURACY = 0.95
# The two differ by roundings only, which training amplifies: a share of the first loss.
LOSS_TOLERANCE = 0.02


@dataclass(frozen=True)
class Experiment:
    """One classifier in two hands. `shape` is that of one digit as the models take it."""

    name: str
    torch: Callable[[], nn.Module]
    lamina: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int = 256
    epochs: int = 30
    quick_epochs: int = 12
    rate: float = 0.1
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


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


EXPERIMENTS = (
    Experiment("MLP 64-1024-1024-10", _torch_mlp, _lamina_mlp, (64,)),
    Experiment("CNN 1-32-64-10", _torch_cnn, _lamina_cnn, (1, 8, 8), epochs=15),
)


@dataclass
class Learner:
    """A model in training: its losses, and the seconds of its steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0

    def step(self, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        value = loss(self.model(x), y)
        value.backward()
        self.optimizer.step()
        self.losses.append(value.item())  # Waits for the GPU, too.
        self.seconds.append(time.perf_counter() - begin)


@dataclass(frozen=True)
class Outcome:
    """Both learners after an experiment."""

    experiment: Experiment
    torch: Learner
    lamina: Learner

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
        accurate = min(self.torch.accuracy, self.lamina.accuracy) >= LEAST_ACCURACY
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


def _learner(make: Callable[[], nn.Module], rate: float, device: torch.device) -> Learner:
    torch.manual_seed(SEED)
    model = make().to(device)
    return Learner(model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9))


def train(
    experiment: Experiment, epochs: int, device: torch.device, advance: Callable[[str], None]
) -> Outcome:
    """Train both models on the same batches, in turn, and measure their accuracy."""
    pixels, labels = (t.to(device) for t in digits())
    pixels = pixels.view(-1, *experiment.shape)
    learners = [
        _learner(make, experiment.rate, device) for make in (experiment.torch, experiment.lamina)
    ]
    for ours, theirs in zip(*(list(learner.model.parameters()) for learner in learners)):
        assert torch.equal(ours, theirs), "the same seed must give the same parameters"
    generator = torch.Generator().manual_seed(SEED)
    for epoch in range(epochs):
        advance(f"{experiment.name}: epoch {epoch + 1} of {epochs}")
        order = TESTED + torch.randperm(len(labels) - TESTED, generator=generator)
        for number, rows in enumerate(order.split(experiment.batch)):
            x, y = pixels[rows], labels[rows]
            for learner in learners[:: 1 if number % 2 else -1]:
                learner.step(experiment.loss, x, y)
    for learner in learners:
        learner.model.eval()
        with torch.no_grad():
            right = learner.model(pixels[:TESTED]).argmax(dim=1) == labels[:TESTED]
        learner.accuracy = right.float().mean().item()
    return Outcome(experiment, *learners)


def _print(outcomes: Sequence[Outcome]) -> None:
    rows = []
    for found in outcomes:
        torchs, ours = (statistics.median(x.seconds) * 1e3 for x in (found.torch, found.lamina))
        verdict = Cell("agree", "green") if found.agrees else Cell("DIFFER", "bold red")
        rows.append(
            [
                found.experiment.name,
                f"{found.torch.accuracy:.1%}",
                f"{found.lamina.accuracy:.1%}",
                f"{found.torch.losses[-1]:.5f}",
                f"{found.lamina.losses[-1]:.5f}",
                f"{found.loss_difference:.1e}",
                verdict,
                f"{torchs:.2f} ms",
                f"{ours:.2f} ms",
                f"{found.ratio:.2f}",
            ]
        )
    header = ["", "accuracy: torch", "lamina", "last loss: torch", "lamina", "apart", ""]
    header += ["step: torch", "lamina", "torch / lamina"]
    print_table("Handwritten digits", header, rows, right=1)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """One row for each experiment: its loss curves, and its step times as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4 * len(outcomes)), layout="constrained")
    axes = figure.subplots(len(outcomes), 2, width_ratios=(2, 1), squeeze=False)
    for (curves, bars), found in zip(axes, outcomes, strict=True):
        learners = {"torch": found.torch, "lamina": found.lamina}
        for style, (name, learner) in zip(("-", "--"), learners.items()):
            label = f"{name}, test accuracy {learner.accuracy:.1%}"
            curves.plot(learner.losses, style, label=label, linewidth=1.6)
        curves.set(yscale="log", xlabel="step", ylabel="training loss", title=found.experiment.name)
        curves.legend(fontsize=8)
        times = [statistics.median(learner.seconds) * 1e3 for learner in learners.values()]
        drawn = bars.bar(list(learners), times, color=["C0", "C1"])
        bars.bar_label(drawn, fmt="%.2f ms", fontsize=8)
        bars.set(ylabel="ms a training step", title=f"torch / lamina: {found.ratio:.2f}")
        bars.margins(y=0.12)
        for axis in (curves, bars):
            axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def demo(quick: bool = False, out: Path = Path("out"), device: torch.device | None = None) -> bool:
    """Check the kernels, train every experiment, print and plot; True if all is right.

    Raises RuntimeError if scikit-learn is not installed. Without matplotlib there is no plot.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = check(dtypes=[torch.float64, torch.float32], second=False)
    epochs = [e.quick_epochs if quick else e.epochs for e in EXPERIMENTS]
    with progress(sum(epochs)) as advance:
        outcomes = [
            train(experiment, count, device, advance)
            for experiment, count in zip(EXPERIMENTS, epochs)
        ]
    _print(outcomes)
    if importlib.util.find_spec("matplotlib"):
        path = out / "demo.png"
        plot(outcomes, path)
        print(f"loss curves and step times: {path.resolve()}")
    else:
        print(NEED_MATPLOTLIB)
    return right and all(found.agrees for found in outcomes)
