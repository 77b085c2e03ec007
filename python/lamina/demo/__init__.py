"""`lamina demo`: handwritten digits, learnt with torch's layers and with Lamina's.

The 1,797 digits of scikit-learn (8x8 pixels, real handwriting). Both models start from the same
seed, see the same batches, and take their steps in turn, so that what differs is the layers alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from lamina.bench.plot import NEED_MATPLOTLIB
from lamina.check import check
from lamina.console import progress
from lamina.demo.experiments import EXPERIMENTS
from lamina.demo.report import plot, print_outcomes
from lamina.demo.training import train


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
    print_outcomes(outcomes)
    if importlib.util.find_spec("matplotlib"):
        path = out / "demo.png"
        plot(outcomes, path)
        print(f"loss curves, step times, memory and reconstructions: {path.resolve()}")
    else:
        print(NEED_MATPLOTLIB)
    return right and all(found.agrees for found in outcomes)
