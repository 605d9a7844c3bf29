"""``ctrkit data``: logs to work on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ctrkit.data.known import KNOWN_LOGS
from ctrkit.data.simulate import simulate
from pipelines.terminal import Terminal


def list_known(screen: Terminal) -> list[dict[str, Any]]:
    """Returns a list of ``{name, config, rows, what, licence, source, files, found}``."""
    rows = [(log.name, log.rows, log.what, log.source, "[green]yes[/]" if log.found else "no") for log in KNOWN_LOGS]
    screen.table(("name", "rows", "what", "where to get it", "here"), rows)
    screen.console.print(
        "Put the files below a folder and name it: export CTRKIT_DATA=<folder>. Then: ctrkit train configs/<name>.yaml", markup=False
    )
    return [{**asdict(log), "config": log.config, "found": log.found} for log in KNOWN_LOGS]


def simulate_log(rows: int, seed: int, out: Path, screen: Terminal, file_format: Literal["parquet", "csv"] = "parquet") -> dict[str, Any]:
    """Writes a simulated log as Parquet or CSV files in ``out``.

    Returns:
        ``{out, files, rows, users, items, ctr}``.
    """
    columns = (TextColumn("Simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with Progress(*columns, console=screen.console, transient=True) as bar:
        task = bar.add_task("", total=rows)
        done = simulate(rows, seed, out, file_format=file_format, progress=lambda written: bar.update(task, completed=written))
    screen.console.print(
        f"Simulated {done.rows:,} rows of {done.users:,} users and {done.items:,} items, click rate {done.ctr:.1%}: {out}",
        style="green",
        markup=False,
    )
    return {
        "out": str(done.folder),
        "files": [str(file) for file in done.files],
        "rows": done.rows,
        "users": done.users,
        "items": done.items,
        "ctr": done.ctr,
    }
