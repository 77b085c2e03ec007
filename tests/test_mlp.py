"""models.MLP: what it computes, that it trains, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina.models import MLP


def test_is_linear_layers_with_activations_between():
    torch.manual_seed(0)
    ours = MLP(6, (5, 4), 3)
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    names = [f"{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    assert list(ours.state_dict()) == names


@pytest.mark.parametrize("activation", ["relu", "gelu", ("leaky_relu", 0.2), torch.sin])
def test_trains(activation):
    model = MLP(8, (64, 64), 2, activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(128, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_reset_parameters_as_the_articles_do():
    model = MLP(300, (200,), 2)
    model.reset_parameters("normal")
    assert 0.9 < model[0].weight.std() < 1.1
    assert (model[1].bias == 0.01).all()


def test_arguments_reach_every_layer():
    model = MLP(4, (3,), 2, bias=False, device="meta", dtype=torch.float64)
    assert list(model.state_dict()) == ["0.weight", "1.weight"]
    for parameter in model.parameters():
        assert (parameter.device.type, parameter.dtype) == ("meta", torch.float64)


@pytest.mark.parametrize("hidden", [5, None, "5", ("5",), (2.0,)])
def test_hidden_must_be_ints(hidden):
    with pytest.raises(TypeError, match=r"MLP: hidden must be a sequence of ints|must be an int"):
        MLP(4, hidden, 2)


def test_no_hidden_layer_is_one_linear():
    assert [layer.activation for layer in MLP(4, (), 2)] == [None]
