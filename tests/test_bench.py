"""`lamina bench`: right rows, no speed for wrong results, and timing that is fair to all."""

import csv
import json
from dataclasses import replace
from functools import wraps

import pytest
import torch

from lamina.bench import case, memory, providers, suite, timing
from lamina.bench.peers import Peer, Setting, peers_of
from lamina.bench.report import best_peer
from lamina.cases import threshold as cases
from lamina.cli import main
from lamina.modules import missing
from lamina.spec import Sample, Workload, specs

CPU = torch.device("cpu")
SPEC = specs()["threshold"]


def small(dtype, device):
    input = torch.randn(1 << 14, dtype=dtype, device=device, requires_grad=True)
    return Sample("16k", (input, 0.1))


@pytest.fixture
def planted(monkeypatch):
    """One small shape, and peers of which one is wrong and one can't run."""
    monkeypatch.setattr(cases, "WORKLOADS", (Workload("16k", small, 1 << 14, 2 << 14, 1.0),))
    right = torch.nn.functional.threshold
    peers = (
        Peer("right", lambda *_: lambda x, t: right(x, t, 0.0)),
        Peer("wrong", lambda *_: lambda x, t: right(x, t, 0.0) * 1.01),
        Peer("broken", lambda *_: lambda x, t: 1 / 0),
        Peer("choosy", lambda *_: None, refuses=lambda sample: "not today"),
        Peer("elsewhere", lambda *_: None, device="cuda"),
        Peer("easier", lambda *_: lambda x, t: right(x, t, 0.0), apart="it cheats"),
    )
    for module in (case, providers):
        monkeypatch.setattr(module, "peers_of", lambda spec: peers)
    return SPEC


def test_rows_of_every_mode(planted, capsys):
    rows = suite.bench(["threshold"], modes=("forward", "backward", "both"), device=CPU, budget=60)
    by = {(r.mode, r.provider): r for r in rows}
    for mode in ("forward", "backward", "both"):
        ours = by[mode, "lamina"]
        assert ours.correct
        assert ours.ratio_vs_lamina == 1.0
        assert ours.rounds >= timing.LEAST_ROUNDS
        assert by[mode, "right"].ratio_vs_lamina > 0
        assert (mode, "elsewhere") not in by
    assert by["both", "right"].saved_bytes == 0  # It saves its input, which was there before.
    if by["both", "lamina"].backend == "cpp":
        assert by["both", "lamina"].saved_bytes == (1 << 14) // 8
    out = capsys.readouterr().out
    assert "broken: ZeroDivisionError" in out
    assert "choosy: not today" in out


def test_a_call_that_overwrites_its_input(monkeypatch):
    """Every call gets a copy, whose making is neither timed nor counted."""
    shape = cases.workload(2, inplace=True)
    monkeypatch.setattr(cases, "WORKLOADS", (shape,))
    sample = shape.build(torch.float32, CPU)
    before = sample.args[0].detach().clone()
    for mode in ("forward", "backward", "both"):
        with timing.mode_context(mode):
            step = timing.make_step(SPEC.functional, sample, mode, torch.ones_like(before))
            assert step.prepare is not None
            timing.cpu_timer(step)()
        assert torch.equal(sample.args[0], before)
    peers = [p for p in peers_of(SPEC) if p.name in ("F.threshold", "torch.where")]
    monkeypatch.setattr(providers, "peers_of", lambda spec: peers)
    rows = suite.bench(["threshold"], modes=("both",), device=CPU, budget=2)
    by = {row.provider: row for row in rows}
    assert "torch.where" not in by
    assert by["F.threshold"].correct
    assert by["F.threshold"].saved_bytes == 4 * before.numel()
    assert by["lamina"].correct
    if not missing["cpp"]:
        assert by["lamina"].backend == "cpp"
        assert by["lamina"].saved_bytes == before.numel() // 8
        assert by["lamina"].peak_bytes < by["F.threshold"].peak_bytes


def test_no_speed_for_a_wrong_result(planted, capsys):
    rows = suite.bench(["threshold"], modes=("forward",), device=CPU, budget=2)
    by = {row.provider: row for row in rows}
    assert not by["wrong"].correct
    assert by["wrong"].ratio_vs_lamina is None
    assert "wrong is WRONG" in capsys.readouterr().out
    assert best_peer(rows).provider == "right"


def test_no_speed_where_lamina_is_wrong(planted, monkeypatch, capsys):
    @wraps(SPEC.functional)
    def wrong(x, t, *, backend=None):
        return SPEC.functional(x, t) * 1.01

    monkeypatch.setattr(suite, "specs", lambda: {"threshold": replace(planted, functional=wrong)})
    rows = suite.bench(["threshold"], modes=("both",), device=CPU, budget=2, kernels=[])
    assert all(row.ratio_vs_lamina is None for row in rows)
    assert best_peer(rows) is None
    arguments = "bench threshold --mode forward --budget 2 --device cpu"
    assert main(arguments.split()) == 1


def test_files(planted, tmp_path, capsys):
    names = [tmp_path / "a" / name for name in ("rows.json", "rows.csv", "rows.png")]
    arguments = "bench threshold --device cpu --mode forward --peers right --budget 2"
    files = [f"--{name.suffix[1:].replace('png', 'plot')}={name}" for name in names]
    assert main([*arguments.split(), *files]) == 0
    rows = json.loads(names[0].read_text())
    with names[1].open() as file:
        table = list(csv.DictReader(file))
    assert [r["provider"] for r in rows] == [r["provider"] for r in table]
    assert {"op", "shape", "median_ms", "device", "threads", "versions", "commit"} <= set(rows[0])
    assert names[2].read_bytes().startswith(b"\x89PNG")


def test_unknown_shape_is_refused(capsys):
    assert main(["bench", "threshold", "--shapes", "7G"]) == 2
    assert "no shape matches 7G" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        ("--dtype bf16", "squash has no kernels in bfloat16: ask for float64, float32"),
        ("--peers nobody", "no peer matches nobody; there are {'squash': ['eager'"),
        ("--shapes 1280x16 7G", "no shape matches 7G"),
        ("--backend cuda", "backend cuda was asked for and cannot run"),
    ],
)
def test_what_is_not_there_is_named(wish, answer, capsys):
    assert main(["bench", "squash", "--device", "cpu", *wish.split()]) == 2
    assert answer in capsys.readouterr().err


def test_an_op_without_the_dtype_is_named_among_others(planted, capsys):
    rows = suite.bench(["squash", "threshold"], dtypes=[torch.bfloat16], device=CPU, budget=1)
    assert {row.op for row in rows} == {"threshold"}
    assert "squash has no kernels in bfloat16" in capsys.readouterr().out


def test_nothing_is_timed_twice(planted):
    wishes = {"dtypes": [torch.float32] * 2, "modes": ["forward"] * 2, "kernels": ["cpp"] * 2}
    rows = suite.bench(["threshold"] * 2, device=CPU, budget=1, **wishes)
    assert len({row.provider for row in rows}) == len(rows)


def test_no_peer_takes_compiled_code_from_a_cache(monkeypatch):
    """Inductor's cache does not tell instruction sets apart, of code and of packed weights."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda call, **kw: seen.append(kw["options"]) or call)
    for spec in specs().values():
        sample = spec.workloads_like("*", CPU)[0].build(torch.float32, CPU)
        for peer in peers_of(spec):
            if peer.device in (None, "cpu") and not peer.refuses(sample):
                peer.make(sample, Setting(CPU, 1))
    assert len(seen) > len(specs())
    assert all(options["fx_graph_cache"] is False for options in seen)


@pytest.mark.skipif(bool(missing["cpp"]), reason="the C++ module is not built")
@pytest.mark.parametrize(
    ("wrong_draws", "lamina_too", "right"), [(1, False, True), (1, True, False), (9, False, False)]
)
def test_a_peers_gradient_is_wrong_on_every_draw(monkeypatch, wrong_draws, lamina_too, right):
    """Another gradient on one draw is a kink's; Lamina is not given a second draw."""
    draws = iter(range(9))

    @wraps(SPEC.functional)
    def wrong(x, t, **options):
        return SPEC.functional(x, t, backend="cpp") + 0.5 * (x - x.detach())

    def make(sample, setting):
        return wrong if next(draws) < wrong_draws else SPEC.reference

    ours = wrong if lamina_too else SPEC.functional
    monkeypatch.setattr(cases, "WORKLOADS", (Workload("16k", small, 1 << 14, 2 << 14, 1.0),))
    monkeypatch.setattr(providers, "peers_of", lambda spec: (Peer("kink", make),))
    monkeypatch.setattr(suite, "specs", lambda: {"threshold": replace(SPEC, functional=ours)})
    rows = suite.bench(["threshold"], modes=("both",), device=CPU, budget=1)
    assert {row.provider: row.correct for row in rows}["kink"] is right


@pytest.mark.parametrize("op", specs())
def test_a_shape_of_ones_own(op, monkeypatch):
    """A name in the form of the list's makes its workload; sizes too many or too few make none."""
    spec = specs()[op]
    name = spec.workloads[-1].name
    for known in ("WORKLOADS", "MORE_WORKLOADS"):
        monkeypatch.setattr(spec._cases, known, (), raising=False)
    (made,) = spec.workloads_like(name, CPU)
    assert made.name == made.build(torch.float32, CPU).name == name
    assert not spec.workloads_like(f"{name}x9", CPU)
    assert not spec.workloads_like("x", CPU)


def test_lamina_is_shown_in_the_layouts_of_its_peers(capsys):
    rows = suite.bench(["conv2d"], shapes=["1x8x8²*"], modes=["both"], device=CPU, budget=1)
    given = {r.provider: r for r in rows}
    assert given["lamina channels_last"].correct
    assert not given["lamina channels_last"].counted


def test_shapes_beyond_the_default():
    spec = specs()["conv2d"]
    default, large = (spec.workloads_like(pattern, CPU) for pattern in ("*", "16x*"))
    assert default == spec.workloads
    assert not set(default) & set(large)
    everything = spec.workloads_like("?*", CPU)
    assert len({w.name for w in everything}) == len(everything) > len(default) + len(large)


def test_budget_names_what_it_did_not_reach(planted, capsys):
    assert suite.bench(["threshold"], device=CPU, budget=-1.0) == []
    assert "not run, the budget" in capsys.readouterr().out


def test_a_shape_too_large_for_the_memory_is_named(capsys):
    shapes = [f"{10**8}x1x{10**8}", "8x64x64"]  # The first takes more than addresses can name.
    rows = suite.bench(["linear"], modes=("forward",), device=CPU, shapes=shapes, budget=1)
    assert {row.shape for row in rows} == {"8x64x64"}
    assert f"linear {shapes[0]} float32 forward: not run" in capsys.readouterr().out


def test_interleaving_pairs_rounds_and_spares_the_budget():
    clock = iter(range(10**6))
    times = timing.interleave(
        {"lamina": lambda: float(next(clock)), "peer": lambda: float(next(clock))}, "lamina", 0.01
    )
    assert set(times["peer"]) <= set(times["lamina"])
    first = [times["lamina"][i] < times["peer"][i] for i in times["peer"]]
    assert any(first)
    assert not all(first)  # Neither is always the one that finds the caches cold.


def test_gradients_do_not_accumulate():
    sample = small(torch.float32, CPU)
    grad = torch.ones(1 << 14)
    step = timing.make_step(SPEC.functional, sample, "both", grad)
    step.run()
    step.run()
    torch.testing.assert_close(sample.args[0].grad, (sample.args[0] > 0.1).float())


def test_memory_counts_what_is_kept():
    sample = Sample("", (torch.randn(1000, requires_grad=True),))
    assert memory.saved_bytes(lambda x: x.exp(), sample) == 4000
    assert memory.saved_bytes(lambda x: x * x, sample) == 0
    grad = torch.ones(1000)
    with torch.no_grad():
        assert memory.peak_bytes(lambda x: x.exp(), sample, "forward", grad) == 0
        assert 4000 <= memory.peak_bytes(lambda x: (x + 1).exp(), sample, "forward", grad) <= 4200


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_every_op_has_peers(spec):
    assert peers_of(spec)
