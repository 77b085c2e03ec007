"""Who runs a case of the benchmark: Lamina, in all the ways that are shown, and its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial

import torch
from torch import Tensor

from lamina import backends
from lamina.bench import timing
from lamina.bench.case import Case
from lamina.bench.peers import Setting, peers_of
from lamina.bench.row import LAMINA
from lamina.spec import Sample, Spec


@dataclass(frozen=True)
class Provider:
    """Lamina, or one of its peers, ready to be called on its sample."""

    name: str
    call: Callable[..., Tensor]
    sample: Sample
    backend: str = ""
    counted: bool = True
    layout: torch.memory_format | None = None

    @property
    def ours(self) -> bool:
        """Whether kernels of Lamina run; ATen's errors differ between memory formats."""
        return self.backend not in ("", "reference")


def _chosen(spec: Spec, sample: Sample, mode: str) -> str:
    with backends.record_decisions() as decisions, timing.mode_context(mode):
        given = sample.fresh()
        spec.functional(*given.args, **given.kwargs)
    return decisions[0].backend


def lamina_providers(
    spec: Spec, sample: Sample, mode: str, wanted: Sequence[str] | None
) -> list[Provider]:
    """Lamina as it chooses for itself, then in the peers' layouts and on its other backends."""
    chosen = _chosen(spec, sample, mode)
    providers = [Provider(LAMINA, spec.functional, sample, chosen)]
    for layout in dict.fromkeys(peer.layout for peer in peers_of(spec) if peer.layout):
        given = _in_layout(sample, layout)
        name = f"{LAMINA} {str(layout).removeprefix('torch.')}"
        runs_on = _chosen(spec, given, mode)
        providers.append(
            Provider(name, spec.functional, given, runs_on, counted=False, layout=layout)
        )
    for name in spec.order if wanted is None else dict.fromkeys(wanted):
        if name == chosen:
            continue
        call = partial(spec.functional, backend=name)
        try:
            with timing.mode_context(mode):
                given = sample.fresh()
                call(*given.args, **given.kwargs)
        except ValueError:
            continue  # The kernel refuses the shape; `lamina.explain` says why.
        providers.append(Provider(f"{LAMINA} {name}", call, sample, name, counted=False))
    return providers


def to_layout(value: object, layout: torch.memory_format | None) -> object:
    if layout is None or not isinstance(value, Tensor) or value.dim() != 4:
        return value
    return value.detach().to(memory_format=layout).requires_grad_(value.requires_grad)


def _in_layout(sample: Sample, layout: torch.memory_format | None) -> Sample:
    if layout is None:
        return sample
    kwargs = {name: to_layout(value, layout) for name, value in sample.kwargs.items()}
    args = tuple(to_layout(a, layout) for a in sample.args)
    return replace(sample, args=args, kwargs=kwargs)


def peer_providers(
    case: Case, sample: Sample, setting: Setting, wanted: Sequence[str] | None
) -> tuple[list[Provider], list[str]]:
    """The peers that can run the case, and what to tell of those that can't."""
    providers, notes = [], []
    for peer in peers_of(case.spec):
        if wanted is not None and not any(fnmatch(peer.name, pattern) for pattern in wanted):
            continue
        if case.mode not in peer.modes or peer.device not in (None, setting.device.type):
            continue
        if reason := peer.refuses(sample):
            notes.append(f"{peer.name}: {reason}")
            continue
        given = _in_layout(sample, peer.layout)
        try:
            with timing.mode_context(case.mode):
                call = peer.make(given, setting)
                once = given.fresh()
                call(*once.args, **once.kwargs)
        except Exception as error:
            notes.append(f"{peer.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        counted = peer.apart is None
        providers.append(Provider(peer.name, call, given, counted=counted, layout=peer.layout))
    return providers, notes
