"""The rows of a benchmark as a picture: how many times as long each peer takes as Lamina."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamina.bench.report import LAMINA, best_peer, groups
from lamina.bench.row import Row

NEED_MATPLOTLIB = "plots need matplotlib: pip install 'lamina[cli]'"


def plot_rows(rows: Sequence[Row], path: Path) -> None:
    """Write one panel of bars for each op, dtype and mode. Raises RuntimeError without matplotlib.

    A bar to the right of 1 is a peer that Lamina beats; the whisker is the interquartile range.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(NEED_MATPLOTLIB) from None
    panels = groups(rows)
    providers = list(dict.fromkeys(r.provider for r in rows if r.provider != LAMINA))
    colors = {name: f"C{i % 10}" for i, name in enumerate(providers)}
    heights = [
        1.2 + 0.14 * sum(len(found) for found in shapes.values()) for shapes in panels.values()
    ]
    figure = Figure(figsize=(9, sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, ((op, dtype, mode), shapes) in zip(axes, panels.items(), strict=True):
        _draw(axis, shapes, colors)
        axis.set_title(f"{op}, {dtype}, {mode}", loc="left", fontsize=10)
    axes[-1].set_xlabel("time / Lamina's time   (beyond 1: Lamina is faster)")
    handles = {}
    for axis in axes:
        handles.update(zip(*reversed(axis.get_legend_handles_labels())))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, fontsize=8)
    first = rows[0]
    figure.supxlabel(f"{first.device}, threads: {first.threads}; {first.versions}", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw(axis: object, shapes: dict[str, list[Row]], colors: dict[str, str]) -> None:
    """Bars from 1 to the ratio on a logarithmic axis: as long for half as for twice."""
    position, ticks = 0.0, []
    low, high = 0.7, 1.4
    for found in shapes.values():
        peers = [r for r in found if r.provider != LAMINA and r.ratio_vs_lamina is not None]
        best = best_peer(found)
        start = position
        for row in peers:
            ratio = row.ratio_vs_lamina
            axis.barh(
                position,
                ratio - 1,
                left=1,
                xerr=[[min(row.spread / 2, 0.9 * ratio)], [row.spread / 2]],
                color=colors[row.provider],
                alpha=1.0 if row.counted else 0.4,
                height=0.85,
                label=row.provider,
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            )
            edge = max(1.0, ratio + row.spread / 2)
            weight = "bold" if row is best else "normal"
            axis.text(edge, position, f" {ratio:.2f}", va="center", fontsize=6, weight=weight)
            low, high = min(low, ratio), max(high, edge)
            position += 1
        ticks.append((start + position - 1) / 2)
        position += 0.8
    axis.set_yticks(ticks, shapes, fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlim(low * 0.85, high * 1.25)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.spines[["top", "right"]].set_visible(False)
