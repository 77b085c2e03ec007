"""One version of Lamina, in a process of its own: answers compare.py's questions.

A question and its answer are one line of JSON each. `threads` comes first; `patterns` asks for an
op's shapes, `shape` makes a call ready and asks for the bits of its results, and an empty question
for the seconds that it takes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lamina.bench import timing
from lamina.spec import Sample, Spec, specs
from passes import fresh, keep_memory, passes, timer

CPU = torch.device("cpu")
# libgomp's idle threads spin for some milliseconds before they sleep; the other process must not
# be measured against them.
UNTIL_ASLEEP = 0.01

Measured = tuple[Callable[[], float], list[Tensor]]  # seconds a call, and its results


def _mode(spec: Spec, sample: Sample, mode: str) -> Measured:
    call, once = spec.functional, fresh(sample)
    output = call(*once.args, **once.kwargs)
    grad = torch.randn_like(output)
    results = [output]
    if mode != "forward":
        once = fresh(sample)
        call(*once.args, **once.kwargs).backward(grad)
        inputs = (t for t in sample.args if isinstance(t, Tensor))
        results += [t.grad for t in inputs if t.grad is not None]
    with timing.mode_context(mode):
        measure = timing.cpu_timer(timing.make_step(call, sample, mode, grad))

    def seconds() -> float:
        with timing.mode_context(mode):
            return measure()

    return seconds, results


def _pass(spec: Spec, sample: Sample, name: str) -> Measured:
    found = passes(spec, sample)
    if name not in found:
        raise ValueError(f"{spec.name} {sample.name} has no pass {name}: {', '.join(found)}")
    keep_memory()
    one_thread = torch.get_num_threads() == 1
    run = found[name].run
    return timer(run, time.thread_time if one_thread else time.perf_counter), run()


def _bits(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def serve() -> None:
    """Answer each question from stdin until it is closed."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # so that nothing that is printed on the way is taken for an answer
    seconds = None
    for line in sys.stdin:
        question = json.loads(line)
        if "threads" in question:
            if question["threads"]:
                torch.set_num_threads(question["threads"])
            answer = {"threads": torch.get_num_threads()}
        elif "patterns" in question:
            spec = specs()[question["op"]]
            found = [w.name for p in question["patterns"] for w in spec.workloads_like(p, CPU)]
            answer = {"shapes": list(dict.fromkeys(found))}
        elif "shape" in question:
            spec = specs()[question["op"]]
            (workload,) = spec.workloads_like(question["shape"], CPU)
            torch.manual_seed(0)
            sample = workload.build(getattr(torch, question["dtype"]), CPU)
            if question["backend"]:
                sample.kwargs["backend"] = question["backend"]
            measured = _pass if question["alone"] else _mode
            try:
                seconds, results = measured(spec, sample, question["mode"])
                answer = {"bits": _bits(results)}
            except ValueError as error:
                answer = {"refused": str(error)}
        else:
            time.sleep(UNTIL_ASLEEP)
            answer = {"seconds": seconds()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
