"""The command line, with its extras and without them."""

import os
import re
import subprocess
import sys

import pytest
import torch

from lamina import console, demo, info
from lamina.bench import roofline
from lamina.cli import main
from lamina.modules import _C

needs_module = pytest.mark.skipif(_C is None, reason="the C++ module was not built")


@pytest.fixture(params=["rich", "plain"])
def output(request, monkeypatch):
    """Both ways to print."""
    if request.param == "plain":
        monkeypatch.setattr(console, "HAVE_RICH", False)
    else:
        pytest.importorskip("rich")


def test_info(output, capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "threshold" in out
    if _C is not None:
        assert _C.isa() in out
    if not torch.cuda.is_available():
        assert "no GPU is here" in out or "without CUDA" in out


def test_info_tells_how_to_get_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(info.missing, "cpp", "the C++ module was not built: reinstall")
    find = info.importlib.util.find_spec
    monkeypatch.setattr(
        info.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    info.info()
    out = capsys.readouterr().out
    assert "the C++ module was not built: reinstall" in out
    assert "pip install 'lamina[cli]'" in out


def test_table_and_progress(output, capsys):
    with console.progress(2) as advance:
        advance("one")
        advance("two")
    rows = [[console.Cell("a", "bold red"), "1.0"], ["b [x]", "22.0"]]
    console.print_table("Title", ["name", "value"], rows, right=1)
    out = capsys.readouterr().out
    for text in ("Title", "name", "a", "b [x]", "22.0"):
        assert text in out


def test_check_and_bench_without_rich(monkeypatch, capsys):
    monkeypatch.setattr(console, "HAVE_RICH", False)
    assert main(["check", "threshold", "--dtype", "f32", "--backend", "reference"]) == 0
    shapes = "--shapes 1M --mode forward --peers F.threshold --budget 1 --device cpu"
    assert main(f"bench threshold {shapes}".split()) == 0
    assert "F.threshold" in capsys.readouterr().out


def test_demo_without_the_digits(monkeypatch, capsys):
    monkeypatch.setattr(demo, "check", lambda **_: True)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'lamina[demo]'" in capsys.readouterr().err


def test_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "lamina", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "check" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "bench --mode sideways",
        "check --dtype f8",
        "bench nothing",
        "",
        "check --backend x",
        "bench --device tpu",
        "bench --threads 0",
        "bench --threads 1000000",
        "bench --budget nan",
        "bench --budget -1",
        "bench --json /dev/null/rows.json",
        "bench --csv .",
        "bench --plot rows.docx",
        "demo --out /dev/null/out",
        pytest.param(
            "demo --device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    assert "lamina" in capsys.readouterr().err


def test_interrupt_leaves_without_a_traceback(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "info", interrupted)
    assert main(["info"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["rich", "nothing"])
def test_a_reader_that_left_is_no_error(extra):
    """As of `lamina info | head -1`."""
    code = "import sys; from lamina import cli, console\n"
    code += f"console.HAVE_RICH &= {extra == 'rich'}\nsys.exit(cli.main(['info']))"
    here, there = os.pipe()
    os.close(here)
    done = subprocess.run([sys.executable, "-c", code], stdout=there, stderr=subprocess.PIPE)
    os.close(there)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_narrow_terminal_loses_no_letter(monkeypatch, capsys):
    monkeypatch.setattr(console, "WIDTH_OF_A_FILE", 20)
    console.print_table("Title", ["name", "value"], [["0123456789abcdef", "0123456789abcdef"]])
    printed = "".join(re.findall("[0-9a-f]", capsys.readouterr().out.split("value")[1]))
    assert sorted(printed) == sorted(2 * "0123456789abcdef")


def test_check_says_that_nothing_ran(capsys):
    assert main(["check", "squash", "--dtype", "bf16"]) == 1
    out = capsys.readouterr().out
    assert "not run: squash: its kernels take float64, float32" in out
    assert "nothing ran" in out


@needs_module
def test_probes_measure_something():
    peaks = roofline.measure(torch.device("cpu"), 1)
    assert peaks.flops[torch.float32] > 1.3 * peaks.flops[torch.float64] > 1e8
    assert peaks.bandwidth > 1e8
    assert peaks.least_seconds(torch.float32, 1e9, 0) == 1e9 / peaks.flops[torch.float32]


@needs_module
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has no other to talk to")
def test_two_cores_are_some_nanoseconds_apart():
    """Further than one's own cache; how far is the machine's matter, and changes."""
    (nanoseconds,) = re.fullmatch(r"(\d+) ns", roofline.core_to_core()).groups()
    assert int(nanoseconds) > 5
