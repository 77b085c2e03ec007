"""Times every candidate configuration of the Triton kernels on this GPU, and names the best.

    python benchmarks/gpu_tune.py [--op linear conv2d] [--seconds 240] [--out out/gpu_tune]

Each candidate is captured in a CUDA graph that walks over copies of its operands larger than the
L2 cache, and replayed; candidates of a product take turns, and medians count. A candidate that does
not compile, or whose result differs from the first one's, is reported and left out. Writes
<out>.json and <out>.csv as it goes: whatever is done when the time is over stays.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from lamina.triton_kernels import (
    conv2d,
    conv2d_config,
    conv2d_gather,
    conv2d_product,
    conv2d_weight,
    gemm,
    gemm_config,
    threshold,
)
from lamina.triton_kernels.launch import target_of

CACHE = 64 << 20  # bytes that the operands of one graph exceed, so that none is found in the L2
ROUNDS = 5
DEVICE = "cuda"


@dataclass(frozen=True)
class Case:
    """One product: its candidates, and how to run one of them on the i-th copy of its operands."""

    op: str
    shape: str
    flops: float
    copies: int
    candidates: tuple[Any, ...]
    default: Any
    run: Callable[[int, Any], Tensor]


def copies_of(size: int) -> int:
    return max(2, min(16, CACHE // size + 1))


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=DEVICE)


def product(name: str, m: int, n: int, k: int, dtype: torch.dtype, *, fused: bool) -> Case:
    """a [m, k] @ b [k, n]; forward, dX and dW with the operands lying as they do there."""
    copies = copies_of((m * k + k * n + m * n) * dtype.itemsize)
    transposed = {"forward": (False, True), "dX": (False, False), "dW": (True, False)}[name]
    operands = []
    for _ in range(copies):
        a = drawn(k, m, dtype=dtype).t() if transposed[0] else drawn(m, k, dtype=dtype)
        b = drawn(n, k, dtype=dtype).t() if transposed[1] else drawn(k, n, dtype=dtype)
        operands.append((a, b, torch.empty(m, n, dtype=dtype, device=DEVICE)))
    extras = {}
    if fused:
        mask = torch.empty(m, (n + 7) // 8, dtype=torch.uint8, device=DEVICE)
        extras = {"bias": drawn(n, dtype=dtype), "saved": mask, "activation": "relu"}

    def run(i: int, config: Any) -> Tensor:
        a, b, c = operands[i]
        gemm.gemm(a, b, c, split=name == "dW", config=config, **extras)
        return c

    target = target_of(operands[0][0])
    precision = gemm_config.precision_of(dtype, target)
    return Case(
        f"linear {name} {str(dtype).removeprefix('torch.')}",
        f"{m}x{n}x{k}",
        2.0 * m * n * k,
        copies,
        gemm_config.candidates(target, dtype, precision),
        gemm_config.choose(
            target, dtype, precision, m, n, described=True, split_depth=k if name == "dW" else 0
        ),
        run,
    )


def linear_cases() -> Iterator[Callable[[], Case]]:
    for size in (1024, 2048, 4096, 8192):
        for name, m, n, k in (
            ("forward", 8192, size, size),
            ("dX", 8192, size, size),
            ("dW", size, size, 8192),
        ):
            fused = name == "forward"
            yield partial(product, name, m, n, k, torch.bfloat16, fused=fused)
    yield partial(product, "forward", 16, 4096, 4096, torch.bfloat16, fused=True)
    yield partial(product, "forward", 128, 4096, 4096, torch.bfloat16, fused=True)
    yield partial(product, "forward", 4096, 4096, 4096, torch.float32, fused=True)


def convolution(
    name: str, images: int, ins: int, outs: int, size: int, taps: int, stride: int
) -> Case:
    dtype, padding = torch.bfloat16, taps // 2
    x = drawn(images, ins, size, size, dtype=dtype)
    weight = drawn(outs, ins, taps, taps, dtype=dtype)
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    geometry = ([stride] * 2, [padding] * 2, [1, 1])
    y, _ = conv2d.conv2d_forward(
        x, weight, None, None, *geometry, 1, "none", 0.0, "auto", True, False
    )
    copies = copies_of((x.numel() + y.numel() + weight.numel()) * dtype.itemsize)
    inputs = [torch.randn_like(x) for _ in range(copies)]
    outputs = [torch.randn_like(y) for _ in range(copies)]
    gradient = torch.empty_like(weight)
    k, c, r, s = weight.stride()
    target = target_of(x)
    if name == "forward":
        gather = conv2d_gather.forward_gather(y.size(2), size, taps, stride, padding, 1)

        def run(i: int, config: Any) -> Tensor:
            conv2d_product.convolve(
                outputs[i], inputs[i], weight, (0, c, k, r, s), ins, outs, 1, gather, gather,
                config=config,
            )  # fmt: skip
            return outputs[i]

        rows, columns = y.numel() // outs, outs
    else:

        def run(i: int, config: Any) -> Tensor:
            conv2d_weight.weight_gradient(outputs[i], inputs[i], gradient, *geometry, 1, config)
            return gradient

        rows, columns = outs, ins * taps * taps
    return Case(
        f"conv2d {name} bfloat16",
        f"{images}x{ins}x{size}x{size} {outs}x{taps}x{taps}/{stride}",
        2.0 * y.numel() * ins * taps * taps,
        copies,
        conv2d_config.candidates(target, dtype, "ieee"),
        conv2d_config.choose(target, dtype, "ieee", rows, columns),
        run,
    )


def conv2d_cases() -> Iterator[Callable[[], Case]]:
    """The layers of ResNet-50, without repetitions."""
    layers = [(3, 64, 224, 7, 2)]
    for width, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        layers += [(width, width, size, 3, 1), (width, 4 * width, size, 1, 1)]
        layers += [(4 * width, width, size, 1, 1)]
    layers += [(128, 128, 56, 3, 2), (256, 512, 56, 1, 2)]
    for layer in layers:
        for name in ("forward", "dW"):
            yield partial(convolution, name, 32, *layer)


def elementwise(millions: int, dtype: torch.dtype) -> Case:
    """Threshold: its candidates are the elements that a program takes."""
    size = millions << 20
    copies = copies_of(size * dtype.itemsize)
    inputs = [drawn(size, dtype=dtype) for _ in range(copies)]

    def run(i: int, block: int) -> Tensor:
        before, threshold.BLOCK = threshold.BLOCK, block
        try:
            return threshold.threshold_forward(inputs[i], 0.1, True)[0]
        finally:
            threshold.BLOCK = before

    name = f"threshold forward {str(dtype).removeprefix('torch.')}"
    blocks = (1024, 2048, 4096, 8192)
    return Case(name, f"{millions}M", float(size), copies, blocks, threshold.BLOCK, run)


def threshold_cases() -> Iterator[Callable[[], Case]]:
    for millions in (16, 256):
        for dtype in (torch.float32, torch.bfloat16):
            yield partial(elementwise, millions, dtype)


CASES = {"linear": linear_cases, "conv2d": conv2d_cases, "threshold": threshold_cases}


def captured(case: Case, candidate: Any) -> torch.cuda.CUDAGraph:
    """A graph of one run on each copy of the operands; compiled and warmed up before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run(0, candidate)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(case.copies):
            case.run(i, candidate)
    return graph


def milliseconds(graph: torch.cuda.CUDAGraph, case: Case, replays: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / (replays * case.copies)


def timed(case: Case) -> list[dict[str, Any]]:
    """A row for every candidate of a case, best first."""
    wanted = None
    rows, graphs = [], {}
    for candidate in case.candidates:
        row = {
            "op": case.op,
            "shape": case.shape,
            "config": str(candidate),
            "default": candidate == case.default,
            "median_ms": None,
            "tflops": None,
            "problem": "",
        }
        rows.append(row)
        try:
            result = case.run(0, candidate).float()
            wanted = result.clone() if wanted is None else wanted
            error = (result - wanted).abs().max() / wanted.abs().max()
            if not error < 1e-2:
                raise ArithmeticError(f"differs from the first by {error:.2g} of the maximum")
            graphs[len(rows) - 1] = captured(case, candidate)
        except Exception as error:
            row["problem"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    times: dict[int, list[float]] = {index: [] for index in graphs}
    for _ in range(ROUNDS):
        for index, graph in graphs.items():
            times[index].append(milliseconds(graph, case, 1 if times[index] else 2))
    for index, measured in times.items():
        median = statistics.median(measured)
        rows[index]["median_ms"] = median
        rows[index]["tflops"] = case.flops / median / 1e9
    return sorted(rows, key=lambda r: r["median_ms"] or float("inf"))


def written(out: Path, rows: list[dict[str, Any]]) -> None:
    facts = {
        "device": torch.cuda.get_device_name(),
        "target": asdict(target_of(torch.empty(0, device=DEVICE))),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    out.with_suffix(".json").write_text(json.dumps({**facts, "rows": rows}, indent=1))
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--op", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--out", type=Path, default=Path("out/gpu_tune"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU is here: tests/triton_compile.py --every compiles the same candidates")
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    rows: list[dict[str, Any]] = []
    for op in arguments.op:
        for make in CASES[op]():
            if time.monotonic() > deadline:
                print(f"the {arguments.seconds:.0f} s are over; the rest was not timed")
                return 0
            case = make()
            found = timed(case)
            rows += found
            written(arguments.out, rows)
            best, default = found[0], next(r for r in found if r["default"])
            if best["median_ms"] is None:
                print(f"{case.op} {case.shape}: none ran: {best['problem']}")
                continue
            against = f", default failed: {default['problem']}"
            if default["median_ms"]:
                ratio = default["median_ms"] / best["median_ms"]
                against = f", default {default['config']} takes {ratio:.2f}x"
            speed = f"{best['median_ms']:.4f} ms, {best['tflops']:.0f} TFLOP/s"
            print(f"{case.op} {case.shape}: {best['config']} {speed}{against}", flush=True)
            del case
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
