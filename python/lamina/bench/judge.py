"""Whether what a provider computes is right: a wrong result has no speed."""

from __future__ import annotations

import torch

from lamina import backends
from lamina.accuracy import Expected, double, run
from lamina.bench.case import Case
from lamina.bench.providers import Provider
from lamina.spec import Sample

PEER_SLACK = 10  # A peer is wrong where its error is so many times what our kernels are allowed.
UNJUDGED = 1e-3  # of the largest element: the error allowed where float64 has no room


class Judge:
    """Compares a provider's output, and its gradients where the mode has some, with float64."""

    def __init__(self, case: Case, sample: Sample) -> None:
        self.case = case
        with backends.use_backend("reference"), torch.random.fork_rng():
            plain, plain_grads, self.grad = run(case.spec.reference, sample)
            try:
                exact, exact_grads, _ = run(case.spec.reference, sample, double, grads=self.grad)
            except torch.OutOfMemoryError:
                exact = None
        self.note = None
        if exact is None:
            self.note = f"float64 does not fit: compared with torch's own, within {UNJUDGED:g}"
            exact, exact_grads = plain.double(), [g.double() for g in plain_grads]
        self.output = Expected(exact, plain)
        self.grads = [Expected(e, p) for e, p in zip(exact_grads, plain_grads, strict=True)]
        if self.note:
            for expected in (self.output, *self.grads):
                expected.limit = UNJUDGED * float(expected.exact.abs().max())

    def problem(self, provider: Provider) -> str | None:
        if self.case.mode == "forward":
            with torch.no_grad():
                sample = provider.sample.fresh()
                got = provider.call(*sample.args, **sample.kwargs)
            grads = ()
        else:
            got, grads, _ = run(provider.call, provider.sample, grads=self.grad)
        found = [self.output.compare("output", got)]
        for i, (expected, grad) in enumerate(zip(self.grads, grads)):
            found.append(expected.compare(f"gradient {i}", grad))
        slack = 1 if provider.ours else PEER_SLACK
        return next((c.problem for c in found if not c.error <= slack * c.limit), None)
