"""What torch.jit.script is told."""

from __future__ import annotations

from typing import NoReturn

from torch import nn


def refuse_scripting(module: nn.Module) -> NoReturn:
    """`__prepare_scriptable__` of every layer: torch.jit.script calls it before it compiles."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__}, which chooses its kernels in "
        "Python: record the model with torch.jit.trace, or use torch.export or torch.compile"
    )
