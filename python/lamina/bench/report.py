"""The rows of a benchmark as tables for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from lamina.bench import roofline
from lamina.bench.peers import Setting
from lamina.bench.row import LAMINA, Row
from lamina.console import Cell, print_table
from lamina.info import device_name


def best_peer(rows: Iterable[Row]) -> Row | None:
    """The fastest correct peer of one shape, if Lamina is correct too."""
    peers = [r for r in rows if r.counted and r.provider != LAMINA and r.ratio_vs_lamina]
    return min(peers, key=lambda row: row.ratio_vs_lamina, default=None)


def groups(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, list[Row]]]:
    """{(op, dtype, mode): {shape: rows}}, in the order of the rows."""
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.group, {}).setdefault(row.shape, []).append(row)
    return found


def print_rows(rows: Sequence[Row], setting: Setting, notes: Sequence[str]) -> None:
    """One table for each op, dtype and mode; then what is wrong or missing."""
    for (op, dtype, mode), shapes in groups(rows).items():
        _print_group(f"{op}, {dtype}, {mode}", shapes)
    print(f"{device_name(setting.device)}, threads: {setting.threads}")
    if peaks := roofline.measure(setting.device, setting.threads):
        print("measured peaks: {}; copy {}".format(*peaks.described()))
    print(
        "Each peer's column is its time over Lamina's in the same round, median and interquartile "
        "range: above 1 Lamina is faster. (In brackets: shown, not counted as best.)"
    )
    for note in notes:
        print(note)


def _print_group(title: str, shapes: dict[str, list[Row]]) -> None:
    peers = list(dict.fromkeys(r.provider for rows in shapes.values() for r in rows[1:]))
    best = {shape: best_peer(rows) for shape, rows in shapes.items()}
    ratios = {shape: row.ratio_vs_lamina for shape, row in best.items() if row}
    worst = min(ratios, key=ratios.get, default=None) if len(shapes) > 1 else None
    table = []
    for shape, rows in shapes.items():
        ours, found = rows[0], {row.provider: row for row in rows}
        style = "bold red" if shape == worst and ratios[shape] < 1 else ""
        style = style or ("bold yellow" if shape == worst else "")
        label = f"{shape} (worst)" if shape == worst else shape
        cells = [
            Cell(label, style),
            ours.backend,
            _milliseconds(ours.median_ms) if ours.correct else Cell("WRONG", "bold red"),
            f"{ours.roofline:.0%}" if ours.roofline else "-",
            _bytes(ours.peak_bytes),
            _bytes(ours.saved_bytes),
            Cell(f"{ratios[shape]:.2f}" if shape in ratios else "-", style or "bold"),
        ]
        table.append([*cells, *(_ratio(found.get(peer), best[shape]) for peer in peers)])
    if len(shapes) > 1:
        table.append(_median_row(shapes, ratios, peers))
    header = ["shape", "runs on", "lamina ms", "of peak", "extra", "saved", "best peer", *peers]
    print_table(title, header, table, right=2)


def _median_row(
    shapes: dict[str, list[Row]], ratios: dict[str, float], peers: list[str]
) -> list[Cell]:
    def median(values: list[float]) -> str:
        return f"{statistics.median(values):.2f}" if values else "-"

    cells = ["median", "", "", "", "", "", median(list(ratios.values()))]
    for peer in peers:
        rows = [r for found in shapes.values() for r in found if r.provider == peer]
        cells.append(median([r.ratio_vs_lamina for r in rows if r.ratio_vs_lamina]))
    return [Cell(text, "bold") for text in cells]


def _ratio(row: Row | None, best: Row | None) -> Cell:
    if row is None:
        return Cell("-", "dim")
    if not row.correct:
        return Cell("WRONG", "bold red")
    if row.ratio_vs_lamina is None:
        return Cell("-", "dim")
    text = f"{row.ratio_vs_lamina:.2f} ±{row.spread:.2f}"
    if not row.counted:
        return Cell(f"({text})", "dim")
    return Cell(text, "cyan" if row is best else "")


def _milliseconds(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
