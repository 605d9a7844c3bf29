"""What the console shows while a run trains."""

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ctrkit.training.distributed import PlannedTable

SHOWN_TABLES = 10


class Report:
    """A progress bar on a terminal, one plain line an evaluation anywhere else.

    Args:
        console: a quiet one on all processes but the first.
        epochs: planned.
        steps: of an epoch.
    """

    def __init__(self, console: Console, epochs: int, steps: int) -> None:
        self._console, self._epochs, self._steps = console, epochs, steps
        self._metrics = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}  {task.fields[loss]}  {task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=steps, speed="", loss="", metrics="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, step: int, loss: float, samples_per_s: float) -> None:
        """After this many steps of the whole training, at least one."""
        epoch, batch = divmod(step - 1, self._steps)
        self._bar.update(
            self._task,
            completed=batch + 1,
            description=f"epoch {epoch + 1}/{self._epochs}",
            loss=f"loss {loss:.4f}",
            speed=f"{samples_per_s:,.0f} samples/s",
            metrics=self._metrics,
        )

    def evaluated(self, epoch: float, step: int, loss: float, metrics: dict[str, float], samples_per_s: float, best: bool) -> None:
        names = [name for name in metrics if name.endswith("/auc")] or ["auc", "gauc", "logloss"]
        self._metrics = "  ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
        line = (
            f"epoch {epoch:g}/{self._epochs}  step {step:,}  train loss {loss:.4f}  valid {self._metrics}  {samples_per_s:,.0f} samples/s"
        )
        self._console.print(line + ("  best" if best else ""), highlight=False, soft_wrap=True)

    def stopped_early(self, waited: int, monitor: str) -> None:
        evaluations = "1 evaluation" if waited == 1 else f"{waited} evaluations"
        self._console.print(f"Stopped: {monitor} did not improve in {evaluations} (training.patience)", highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self._console.print(f"Warning: {message}", style="yellow", highlight=False, soft_wrap=True)


def print_plan(console: Console, plan: Sequence[PlannedTable], dense_parameters: int, world: int) -> None:
    """The tables, the largest first, where they lie and the memory they take."""
    total = {rank: sum(t.bytes_per_rank.get(rank, 0) for t in plan) for rank in range(world)}
    shown = sorted(plan, key=lambda t: -sum(t.bytes_per_rank.values()))[:SHOWN_TABLES]
    table = Table("table", "rows", "dim", "sharding", "kernel", "memory", title="Sharding plan", title_justify="left")
    for column in table.columns[1:3] + table.columns[5:]:
        column.justify = "right"
    for row in shown:
        table.add_row(Text(row.name), f"{row.rows:,}", str(row.dim), row.sharding, row.kernel, size_words(sum(row.bytes_per_rank.values())))
    console.print(table)
    if len(plan) > len(shown):
        rest = sum(sum(t.bytes_per_rank.values()) for t in plan) - sum(sum(t.bytes_per_rank.values()) for t in shown)
        console.print(f"and {len(plan) - len(shown)} smaller tables, {size_words(rest)}", highlight=False)
    memory = ", ".join(f"{size_words(size)} on process {rank}" for rank, size in total.items())
    tables = "1 table" if len(plan) == 1 else f"{len(plan)} tables"
    console.print(f"{tables} with optimizer state: {memory}; dense arch: {dense_parameters:,} parameters", highlight=False, soft_wrap=True)


def size_words(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
