"""Installs Lamina in every way a user may, each in a fresh virtual environment: `make wheels`.

Prints a line for each way and exits 1 if one fails. A second torch (2.10 or newer) to run the wheel
on is named by --other-python, an interpreter that has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import torch, lamina
from lamina.backends import BACKENDS
x = torch.randn(300, 300, requires_grad=True)
layer = lamina.LinearReLU(300, 300)
y = lamina.ThresholdReLU(0.1)(layer(x)); y.sum().backward()
want = torch.relu(torch.nn.functional.linear(x, layer.weight, layer.bias))
torch.testing.assert_close(y, torch.nn.functional.threshold(want, 0.1, 0.0))
print("torch", torch.__version__, "| C++:", BACKENDS["cpp"].missing or "loaded", "| CUDA:",
      BACKENDS["cuda"].missing or "loaded")
"""


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def environment(folder: Path) -> Path:
    """A new venv that sees this interpreter's packages (torch, the build tools), not Lamina."""
    run(sys.executable, "-m", "venv", folder)
    site = next(folder.glob("lib/python*/site-packages"))
    homes = {Path(find_spec(name).origin).parent.parent for name in ("torch", "scikit_build_core")}
    (site / "torch.pth").write_text("".join(f"{home}\n" for home in homes))
    return folder / "bin/python"


def pip(python: Path, *arguments: object, **env: str) -> None:
    quiet = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    run(python, *quiet, "--force-reinstall", "--no-build-isolation", *arguments, **env)


def without_compiler(folder: Path) -> dict[str, str]:
    """An environment whose PATH holds no C++ compiler."""
    folder.mkdir()
    for tool in ("git", "sh", "uname"):
        (folder / tool).symlink_to(shutil.which(tool))
    return {"PATH": str(folder), "CXX": ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other-python", help="an interpreter with another torch, 2.10 or newer")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheels = folder / "wheels"

        def built(python: Path, *settings: str) -> Path:
            run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w",
                wheels, *settings, ROOT)  # fmt: skip
            return next(wheels.glob("*.whl"))

        def wheel() -> str:
            python = environment(folder / "wheel")
            pip(python, built(python))
            return run(python, "-c", PROBE)

        def source() -> str:
            python = environment(folder / "sdist")
            run(python, "-m", "build", "--no-isolation", "--sdist", "-o", folder / "sdists", ROOT)
            pip(python, next((folder / "sdists").glob("*.tar.gz")))
            return run(python, "-c", PROBE)

        def editable() -> str:
            python = environment(folder / "editable")
            pip(python, "-e", ROOT)
            return run(python, "-c", PROBE)

        def cuda() -> str:
            python = environment(folder / "cuda")
            # A build folder of its own: CMake remembers LAMINA_CUDA in its cache.
            own = ("-C", "cmake.define.LAMINA_CUDA=ON", "-C", f"build-dir={folder}/cuda-build")
            pip(python, built(python, *own))
            (module,) = (folder / "cuda").glob("lib/python*/site-packages/lamina/_cuda*.so")
            return f"{module.name} is in the wheel | {run(python, '-c', PROBE)}"

        def pure() -> str:
            python = environment(folder / "pure")
            pip(python, ROOT, **without_compiler(folder / "bin"))
            out = run(python, "-c", PROBE)
            assert "was not built" in out, out
            return out

        def other() -> str:
            target = folder / "other"
            run(options.other_python, "-m", "pip", "install", "-q", "--no-deps", "--target", target,
                next(wheels.glob("*.whl")))  # fmt: skip
            return run(options.other_python, "-c", PROBE, PYTHONPATH=str(target))

        ways = [wheel, source, editable, pure]
        ways += [cuda] if shutil.which("nvcc") else []
        ways += [other] if options.other_python else []
        for way in ways:
            try:
                print(f"{way.__name__:9} ok    {way()}", flush=True)
            except (AssertionError, RuntimeError, StopIteration) as error:
                failed = True
                print(f"{way.__name__:9} FAIL  {error}", flush=True)
        if cuda not in ways:
            print("cuda      not run: no nvcc on this machine")
        if other not in ways:
            print("other     not run: name an interpreter with another torch by --other-python")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
