"""`lamina demo`: what it trains agrees with torch, and it would say if it did not."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

import lamina
from lamina import demo
from lamina.cli import main
from lamina.demo import training

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="the digits come with scikit-learn"
)
CPU = torch.device("cpu")


def train(experiment, epochs):
    return demo.train(experiment, epochs, CPU, lambda text: None)


@pytest.mark.parametrize("experiment", demo.EXPERIMENTS, ids=[e.name for e in demo.EXPERIMENTS])
def test_experiment_agrees(experiment, tmp_path, capsys):
    outcome = train(experiment, experiment.quick_epochs)
    assert outcome.agrees, (outcome.loss_difference, outcome.lamina.accuracy)
    demo.plot([outcome], tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    if experiment.draw:
        torch.testing.assert_close(outcome.lamina.drawn, outcome.torch.drawn, rtol=0, atol=1e-3)
        assert outcome.lamina.saved_bytes < outcome.torch.saved_bytes / 2


class Detached(nn.Module):
    """The bug of a layer whose weight is used through `.data`: it never learns."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        first, relu, last = self.inner
        return last(relu(nn.functional.linear(x, first.weight.data, first.bias.data)))


def test_a_wrong_layer_differs():
    right = replace(
        demo.EXPERIMENTS[0],
        torch=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        lamina=Detached,
    )
    assert not train(right, 3).agrees
    assert train(right, 3).loss_difference > training.LOSS_TOLERANCE


def test_digits_are_the_real_ones():
    pixels, labels = training.digits()
    assert pixels.shape == (1797, 64)
    assert labels.bincount().min() > 170
    assert pixels.max() == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend would run")
def test_a_backend_that_cannot_run_is_named(tmp_path, capsys):
    with lamina.use_backend("cuda"):
        assert main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert "backend 'cuda' was asked for" in capsys.readouterr().err
