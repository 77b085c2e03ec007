"""Tables and progress bars in the terminal: rich's where it is installed, plain text where not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

HAVE_RICH = importlib.util.find_spec("rich") is not None
ASK_FOR_RICH = "Colours and progress bars need rich: pip install 'lamina[cli]'"
WIDTH_OF_A_FILE = 200


class Cell(NamedTuple):
    """A text and its style in rich's words ("bold red"); plain text drops the style."""

    text: str
    style: str = ""


def _cell(value: str | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _plain_table(title: str, header: Sequence[str], rows: list[list[Cell]]) -> None:
    texts = [list(header), *([cell.text for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    print(title)
    for row in texts:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    print()


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    right: int | None = None,
) -> None:
    """Print a table; columns from number `right` on are aligned to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not HAVE_RICH:
        _plain_table(title, header, cells)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.show_header = any(header)
    for i, name in enumerate(header):
        justify = "right" if right is not None and i >= right else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE).print(table)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr. Yields advance(what comes next), called before each step."""
    if not HAVE_RICH:
        if sys.stderr.isatty():
            print(ASK_FOR_RICH, file=sys.stderr)
        done = iter(range(1, total + 1))
        yield lambda text: print(f"[{next(done)}/{total}] {text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = False

        def advance(text: str) -> None:
            nonlocal started
            bar.update(task, description=text, advance=1 if started else 0)
            started = True

        yield advance
