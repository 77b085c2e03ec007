"""`lamina check` must find what is planted, and say what it could not run."""

from dataclasses import replace
from functools import update_wrapper

import pytest
import torch
import torch.nn.functional as F

from lamina import check
from lamina.cli import main
from lamina.spec import specs

SPEC = specs()["threshold"]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, threshold):
        ctx.save_for_backward(input > threshold)
        return F.threshold(input, threshold, 0.0)

    @staticmethod
    def backward(ctx, grad):
        (kept,) = ctx.saved_tensors
        return grad * kept * 1.001, None


def drop_nan(input, threshold=0.0, inplace=False):
    return torch.where(input > threshold, input, 0.0)


def overwrite(input, threshold=0.0, inplace=False):
    output = F.threshold(input, threshold, 0.0)
    with torch.no_grad():
        input.clamp_(min=threshold)
    return output


def forget_an_element(input, threshold=0.0, inplace=False):
    output = F.threshold(input, threshold, 0.0)
    fresh = torch.empty_like(output)
    flat, values = fresh.view(-1), output.view(-1)
    flat[:-1] = values[:-1]
    return fresh


PLANTED = {
    "value": lambda input, threshold=0.0, inplace=False: (
        F.threshold(input, threshold, 0.0) * 1.0001
    ),
    "gradient": lambda input, threshold=0.0, inplace=False: WrongGradient.apply(input, threshold),
    "dropped NaN": drop_nan,
    "overwritten input": overwrite,
    "unwritten element": forget_an_element,
    "dtype": lambda input, threshold=0.0, inplace=False: F.threshold(input, threshold, 0.0).float(),
    "exception": lambda input, threshold=0.0, inplace=False: 1 / 0,
}


def planting(wrong, **others):
    """threshold's SPEC with a functional form in place of the right one, in its module."""
    return replace(SPEC, functional=update_wrapper(wrong, SPEC.functional), **others)


@pytest.mark.parametrize("wrong", PLANTED.values(), ids=PLANTED)
def test_planted_kernel_is_found(wrong):
    spec = planting(wrong)
    result = check.check_op(spec, "reference", torch.float64, torch.device("cpu"), second=False)
    assert result.problems


def test_gradcheck_finds_a_wrong_gradient_alone():
    spec = planting(PLANTED["gradient"], reference=PLANTED["gradient"])
    result = check.check_op(spec, "reference", torch.float64, torch.device("cpu"), second=False)
    assert all("gradcheck" in problem for problem in result.problems)
    assert result.problems


def test_command_fails_on_a_planted_kernel(monkeypatch, capsys):
    planted = {"threshold": planting(PLANTED["value"])}
    monkeypatch.setattr(check, "specs", lambda: planted)
    arguments = ["check", "threshold", "--backend", "reference", "--dtype", "f32"]
    assert main(arguments) == 1
    assert "FAILED threshold reference float32" in capsys.readouterr().out


def test_command_passes_and_says_what_did_not_run(capsys):
    assert main(["check", "threshold", "--dtype", "f32", "bf16", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "all " in out
    if not torch.cuda.is_available():
        assert "not run: cuda" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_backend_asked_for_that_cannot_run_fails(capsys):
    assert main(["check", "threshold", "--backend", "cuda", "--dtype", "f32"]) == 1
    assert "not run: cuda" in capsys.readouterr().out


def test_unknown_op_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["check", "tresh"])
    assert "is none of the ops" in capsys.readouterr().err
