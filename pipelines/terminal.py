"""Where a verb's words go: tables and progress for people, one JSON object for programs, one line for an error."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from ctrkit.errors import CtrkitError


class Terminal:
    """One verb's output. People read ``console``: stdout, or stderr when stdout is for the JSON.

    Under torchrun only the first process speaks.
    """

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console

        self.as_json = as_json
        self.first = os.environ.get("RANK", "0") == "0"
        self.console: Console = Console(stderr=as_json, quiet=not self.first, highlight=False, soft_wrap=True)

    def result(self, value: Any) -> None:
        """With ``--json``: ``value`` as the last line of stdout. NaN and infinities become null."""
        if self.as_json and self.first:
            self.console.file.flush()
            print(to_json(value), flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
        self.console.print(table)


@contextmanager
def terminal(as_json: bool) -> Iterator[Terminal]:
    """A verb's terminal: a CtrkitError becomes one red line on stderr and exit status 2, Ctrl-C exit status 130."""
    screen = Terminal(as_json)
    try:
        yield screen
    except CtrkitError as error:
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        screen.result({"error": str(error)})
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def training_terminal(as_json: bool) -> Iterator[Terminal]:
    """The terminal of a verb that trains: what training needs is installed, or the error says what is not."""
    with terminal(as_json) as screen:
        from ctrkit.doctor import require_training_stack

        require_training_stack()
        yield screen


def to_json(value: Any) -> str:
    """One line of strict JSON; numpy scalars and paths are taken, NaN becomes null."""
    import orjson

    return orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
