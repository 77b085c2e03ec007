"""The README's table and picture of figures, made from the stored results: `make figures`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lamina.bench.row import Row, read_csv

ROOT = Path(__file__).resolve().parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs/figures.png"
BEGIN, END = "<!-- made by `make figures` -->", "<!-- until here -->"
RESULTS = {
    "AVX-512": ROOT / "benchmarks/results/amd-epyc-zen4-2-cores.csv",
    "AVX2": ROOT / "benchmarks/results/amd-epyc-zen4-2-cores-avx2.csv",
}
MODES = {"forward": "forward", "both": "and backward"}


@dataclass(frozen=True)
class Line:
    """Shapes of one op that are summed up in one line, and whom they are compared with.

    shapes, peers: patterns of names.
    """

    op: str
    what: str
    shapes: tuple[str, ...]
    against: str
    peers: tuple[str, ...] = ("*",)
    dtype: str = "float32"

    def ratios(self, rows: Sequence[Row], mode: str) -> list[float]:
        """Of each shape, the time of the best of these peers over Lamina's."""
        best: dict[str, float] = {}
        for row in rows:
            fits = (row.op, row.dtype, row.mode) == (self.op, self.dtype, mode) and row.counted
            fits = fits and any(fnmatch(row.shape, pattern) for pattern in self.shapes)
            fits = fits and any(fnmatch(row.provider, pattern) for pattern in self.peers)
            if fits and row.provider != "lamina" and row.ratio_vs_lamina is not None:
                best[row.shape] = min(row.ratio_vs_lamina, best.get(row.shape, float("inf")))
        return list(best.values())


LARGE = ("128x1024x*", "256x1024x*", "512x2048x*", "1024x4096x*", "2048x2048x*", "4096x3072x*")
FEW = ("1x1024x1024", "8x512x512", "16x4096x4096", "32x2048x2048")
PLAIN = ("eager*", "channels_last*")

LINES = (
    Line(
        "linear",
        "+ relu, 128x1024x1024 to 4096x3072x768",
        LARGE,
        "eager, compiled",
        ("eager*",),
    ),
    Line(
        "linear",
        "+ relu, the same against oneDNN",
        LARGE,
        "oneDNN's fused linear (inference only)",
        ("oneDNN*",),
    ),
    Line("linear", "+ relu, 1 to 32 rows", FEW, "eager, compiled, oneDNN fused"),
    Line(
        "linear",
        "+ relu, 8x64x64 (run by ATen)",
        ("8x64x64",),
        "eager",
        ("eager",),
    ),
    Line(
        "conv2d",
        "+ relu, 3x3 stride 1, 64 to 512 channels",
        ("8x64x56² 3x3 -> 64", "8x128x28² 3x3 -> 128", "8x256x14² 3x3 -> 256", "8x512x7² 3x3*"),
        "eager, channels_last, both compiled",
        PLAIN,
    ),
    Line("conv2d", "+ relu, 1x1", ("8x* 1x1 *",), "the same", PLAIN),
    Line("conv2d", "+ relu, 7x7 stride 2 of 3 channels", ("8x3x224²*",), "the same", PLAIN),
    Line(
        "conv2d",
        "+ relu, 3x3 stride 2, 64 and 128 channels",
        ("8x64x* 3x3 * stride 2", "8x128x* 3x3 * stride 2"),
        "the same",
        PLAIN,
    ),
    Line(
        "conv2d",
        "+ relu, 3x3 stride 2 of 256 channels, 5x5, 1x7 (run by ATen)",
        ("8x256x* 3x3 * stride 2", "8x* 5x5 *", "8x* 1x7 *"),
        "the same",
        PLAIN,
    ),
    Line("conv2d", "+ relu, all, against unfold", ("8x*",), "unfold + matmul", ("unfold*",)),
    Line(
        "dynamic_routing",
        "128x1152x10x8x16",
        ("128x1152x10x8x16",),
        "einsum and the usual public layer, eager and compiled",
    ),
    Line("dynamic_routing", "32x2048x32x16x16", ("32x2048x32x16x16",), "the same"),
    Line("dynamic_routing", "8x64x10x8x16", ("8x64x10x8x16",), "the same"),
    Line("dynamic_routing", "one sample, 1x1152x10x8x16", ("1x1152x10x8x16",), "the same"),
    Line("threshold", "64 million elements", ("64M",), "`F.threshold`, `torch.where`, compiled"),
    Line("threshold", "16 million", ("16M",), "the same"),
    Line("threshold", "16 million, in place", ("16M in place",), "`F.threshold` in place"),
    Line("threshold", "1 and 4 million", ("1M", "4M"), "the same"),
)


def _cell(ratios: list[float]) -> str:
    if not ratios:
        return "—"
    worst = f" ({min(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{worst}"


def table(results: dict[str, list[Row]]) -> str:
    """Markdown: a line for each of LINES, two columns for each instruction set."""
    columns = [(isa, mode) for isa in results for mode in MODES]
    header = ["op", "peers", *(f"{isa}: {MODES[mode]}" for isa, mode in columns)]
    body = [
        [
            f"`{line.op}` {line.what}",
            line.against,
            *(_cell(line.ratios(results[isa], mode)) for isa, mode in columns),
        ]
        for line in LINES
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body))


def readme(text: str, results: dict[str, list[Row]]) -> str:
    """The README's text with the table of these results in its place."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def draw(results: dict[str, list[Row]], path: Path) -> None:
    """A panel for each instruction set: bars from 1 to the median, a tick at the worst shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.42 * len(LINES) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True, sharex=True)
    for axis, (isa, rows) in zip(axes, results.items(), strict=True):
        for offset, (mode, color) in enumerate(zip(MODES, ("C0", "C1"), strict=True)):
            for position, line in enumerate(LINES):
                if not (ratios := line.ratios(rows, mode)):
                    continue
                median, place = statistics.median(ratios), position + 0.38 * offset
                axis.barh(place, median - 1, 0.36, left=1, color=color)
                axis.plot([min(ratios)] * 2, [place - 0.18, place + 0.18], color="black", lw=1)
                axis.text(max(1, median), place, f" {median:.2f}", va="center", fontsize=6)
            axis.bar(0, 0, color=color, label="forward" if mode == "forward" else "with backward")
        axis.set_title(isa, loc="left", fontsize=10)
        axis.axvline(1, color="black", lw=1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("best peer's time / Lamina's (beyond 1: Lamina is faster)", fontsize=8)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xlim(0.25, 16)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    labels = [f"{line.op} {line.what.removeprefix('+ relu, ')}" for line in LINES]
    axes[0].set_yticks([i + 0.19 for i in range(len(LINES))], labels, fontsize=7)
    axes[0].set_ylim(len(LINES), -0.6)
    axes[-1].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def stored() -> dict[str, list[Row]]:
    """The rows of each instruction set."""
    return {isa: read_csv(path) for isa, path in RESULTS.items()}


def main() -> None:
    """Write the table into the README and the picture beside the other documents."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    results = stored()
    README.write_text(readme(README.read_text(), results))
    draw(results, PICTURE)
    print(f"{README}\n{PICTURE}")


if __name__ == "__main__":
    main()
