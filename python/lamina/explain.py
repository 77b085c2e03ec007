"""Says which backend runs each Lamina op of a call, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamina.backends import Decision, record_decisions


def explain(module_or_function: Callable, *inputs: Any, **kwargs: Any) -> list[Decision]:
    """Run the call once, as the caller would, and tell how each of its Lamina ops was run.

    Prints one block for each op, in the order of the calls, and returns the decisions. With
    gradients wanted the choice can be another one: ask under torch.no_grad() about inference. A
    model in training mode is run as one: its batch norms see the input.
    """
    with record_decisions() as decisions:
        module_or_function(*inputs, **kwargs)
    for decision in decisions:
        how = f", {decision.how}" if decision.how else ""
        print(f"{decision.op}: {decision.backend}{how}")
        for name, reasons in decision.reasons.items():
            print(f"  not {name}: {'; '.join(reasons)}")
    if not decisions:
        print("no Lamina op was called, or a compiled model called it: explain the model itself")
    return decisions
