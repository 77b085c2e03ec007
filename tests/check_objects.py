"""Reads the built objects: `python tests/check_objects.py [build folder]`; needs binutils.

1. Objects compiled for one instruction set hold no weak symbol: the linker keeps one copy of a weak
   function, and it could be the one with AVX-512 inside.
2. The inner loop of every GEMM micro-kernel stays in registers: no access to the stack.
Exits with 1 where either fails, or where there was nothing to check.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ISAS = ("baseline", "avx2", "avx512")


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def weak_symbols(listing: str) -> list[str]:
    """Names that nm marks W, V or u (defined and mergeable); an undefined w is only a reference."""
    return re.findall(r"^[0-9a-f]+ [WVu] (.*)$", listing, re.MULTILINE)


def inner_loop(disassembly: list[tuple[int, str]]) -> list[str]:
    """The instructions of the loop with the most multiplications: from its target to its jump."""
    multiply = re.compile(r"v?f?n?m(ul|add|la)\w*\s")
    best: list[str] = []
    most = 0
    for i, (address, text) in enumerate(disassembly):
        jump = re.match(r"(?:j\w+|b\.\w+|cbn?z\s+\w+,)\s+([0-9a-f]+)\b", text)
        if not jump or int(jump[1], 16) > address:
            continue
        target = int(jump[1], 16)
        body = [t for a, t in disassembly[: i + 1] if a >= target]
        count = sum(bool(multiply.match(t)) for t in body)
        if count > most:
            best, most = body, count
    return best


def micro_kernels(object_file: Path) -> dict[str, list[tuple[int, str]]]:
    """Disassembly of each micro-kernel: pairs of address and instruction."""
    functions: dict[str, list[tuple[int, str]]] = {}
    lines = None
    for line in output("objdump", "-dC", "--no-show-raw-insn", object_file).splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            is_kernel = re.search("::(plane_)?micro_kernel(_by_row)?<", header[1])
            lines = functions.setdefault(header[1], []) if is_kernel else None
        elif lines is not None and (found := re.match(r"\s*([0-9a-f]+):\s+(.*)", line)):
            lines.append((int(found[1], 16), found[2]))
    return functions


def main(build: Path) -> int:
    objects = [o for o in build.rglob("*.o") if any(f"_{isa}.dir" in str(o) for isa in ISAS)]
    kernels = 0
    problems = []
    for file in objects:
        problems += [f"{file}: weak symbol {s}" for s in weak_symbols(output("nm", "-C", file))]
        for name, lines in micro_kernels(file).items():
            loop = inner_loop(lines)
            kernels += 1
            stack = [text for text in loop if re.search(r"\(?%[er]sp|%[er]bp|\[sp", text)]
            if not loop:
                problems.append(f"{file}: {name}: no inner loop found")
            problems += [f"{file}: {name}: stack access in the inner loop: {s}" for s in stack]
    print(f"{len(objects)} objects of {'/'.join(ISAS)}, {kernels} micro-kernels")
    if not objects or not kernels:
        problems.append(f"{build}: found no per-ISA objects with micro-kernels")
    print("\n".join(problems) or "no weak symbols, no spills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build")))
