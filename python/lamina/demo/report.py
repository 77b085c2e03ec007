"""What `lamina demo` shows: one table, and one picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lamina.console import Cell, print_table
from lamina.demo.training import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """The table: torch beside Lamina."""
    rows = []
    for found in outcomes:
        both = (found.torch, found.lamina)
        verdict = Cell("agree", "green") if found.agrees else Cell("DIFFER", "bold red")
        rows.append(
            [
                found.experiment.name,
                *(f"{learner.accuracy:.1%}" for learner in both),
                *(f"{learner.losses[-1]:.5f}" for learner in both),
                f"{found.loss_difference:.1e}",
                verdict,
                *(f"{statistics.median(learner.seconds) * 1e3:.2f} ms" for learner in both),
                f"{found.ratio:.2f}",
                *(f"{learner.saved_bytes / 1e6:.2f} MB" for learner in both),
            ]
        )
    header = ["", "accuracy: torch", "lamina", "last loss: torch", "lamina", "apart", ""]
    header += ["step: torch", "lamina", "torch / lamina", "saved: torch", "lamina"]
    print_table("Handwritten digits", header, rows, right=1)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """One row for each experiment: loss curves, step times, what is saved; then the drawings."""
    from matplotlib.figure import Figure

    drawings = [found for found in outcomes if found.lamina.drawn is not None]
    rows = len(outcomes) + len(drawings)
    figure = Figure(figsize=(11.5, 3.2 * len(outcomes) + 2.4 * len(drawings)), layout="constrained")
    heights = [3.2] * len(outcomes) + [2.4] * len(drawings)
    grid = figure.add_gridspec(rows, 3, width_ratios=(2, 1, 1), height_ratios=heights)
    for row, found in enumerate(outcomes):
        curves, times, saved = (figure.add_subplot(grid[row, column]) for column in range(3))
        learners = {"torch": found.torch, "lamina": found.lamina}
        for style, (name, learner) in zip(("-", "--"), learners.items()):
            label = f"{name}, test accuracy {learner.accuracy:.1%}"
            curves.plot(learner.losses, style, label=label, linewidth=1.6)
        curves.set(yscale="log", xlabel="step", ylabel="training loss", title=found.experiment.name)
        curves.legend(fontsize=8)
        steps = [statistics.median(learner.seconds) * 1e3 for learner in learners.values()]
        _bars(times, steps, "ms", "ms a training step", f"torch / lamina: {found.ratio:.2f}")
        kept = [learner.saved_bytes / 1e6 for learner in learners.values()]
        _bars(saved, kept, "MB", "MB kept for the backward pass", "memory")
        for axis in (curves, times, saved):
            axis.spines[["top", "right"]].set_visible(False)
    for row, found in enumerate(drawings, len(outcomes)):
        _draw(figure.add_subplot(grid[row, :]), found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _bars(axis: Axes, values: list[float], unit: str, label: str, title: str) -> None:
    drawn = axis.bar(["torch", "lamina"], values, color=["C0", "C1"])
    axis.bar_label(drawn, fmt=f"%.2f {unit}", fontsize=8)
    axis.set(ylabel=label, title=title)
    axis.margins(y=0.12)


def _draw(axis: Axes, found: Outcome) -> None:
    """Test digits; below them what torch's and Lamina's model redraw from the capsule alone."""
    rows = {"digit": found.digits, "torch": found.torch.drawn, "lamina": found.lamina.drawn}
    side = found.digits.shape[-1]
    image = torch.cat([torch.cat(list(images.squeeze(1)), dim=1) for images in rows.values()])
    axis.imshow(image.numpy(), cmap="gray")
    axis.set_yticks([side * (i + 0.5) - 0.5 for i in range(len(rows))], list(rows))
    axis.set_xticks([])
    axis.set_title(f"{found.experiment.name}: test digits and their reconstructions")
