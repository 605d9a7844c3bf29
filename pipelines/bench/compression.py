"""``ctrkit bench compression``: methods x budgets x seeds of compressed embeddings against the uncompressed table.

One config, with the overrides applied, is written below the output folder; each run is a ``ctrkit train`` of it in a process of its own
(``pipelines.bench.trials``). The trainer keeps the weights that are best on validation; test metrics are reported only. When all runs have
ended, and nothing else keeps the processor busy, those of the first seed are exported and timed against the uncompressed one. Both stages
go on where they were stopped; the report is of all that the folder holds, so that methods may be given seeds of their own, call by call.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ctrkit.config import Compression, Experiment, UnifiedEmbedding
from ctrkit.config_file import load_config, to_yaml
from ctrkit.embeddings.compression.registry import check_compression, methods
from ctrkit.errors import CtrkitError
from ctrkit.training.run import read_result
from pipelines.bench.compression_report import write_report
from pipelines.bench.latency import Scale
from pipelines.bench.lookups import lookup_ratio
from pipelines.bench.settings_file import keep
from pipelines.bench.trials import Settings, Trial, Trials
from pipelines.prepare import prepared
from pipelines.terminal import Terminal

NONE = "none"
Cost = tuple[Settings, int]
"""What a trial's size and speed are kept by: its settings and its seed."""
_SETTING = "embedding.compression="
BUDGETS, QUICK_BUDGETS = (0.5, 0.1, 0.01, 0.001), (0.1, 0.01)
QUICK_SETTINGS = ("training.epochs=1",)
CALLS, QUICK_CALLS = 200, 20
QUICK_PROCESSES = 4

COLUMNS = {
    "data": pl.String,
    "method": pl.String,
    "kind": pl.String,
    "budget": pl.Float64,
    "seed": pl.Int64,
    "reached": pl.Boolean,
    "message": pl.String,
    **{f"{split}_{metric}": pl.Float64 for split in ("valid", "test") for metric in ("auc", "logloss")},
    "embedding_bytes": pl.Int64,
    "share": pl.Float64,
    "bundle_bytes": pl.Int64,
    **{f"latency_{what}_{rows}": pl.Float64 for what in ("ms", "ratio") for rows in (1, 1024)},
    "lookup_ratio": pl.Float64,
    "seconds": pl.Float64,
    "params": pl.Int64,
    "run": pl.String,
}
"""Of ``results.parquet``. ``reached``: whether the method can store its vectors in the budget, ``message`` saying why not; ``share``: of the
bytes of the uncompressed table; ``seconds``: of the training, a search included; ratios: the uncompressed table is 1. Bundle, latency and
look-up are of the first seed's run."""


@dataclass(frozen=True)
class Choice:
    """A method at a budget; ``none`` is the uncompressed table, at 1."""

    method: str
    kind: str
    budget: float

    @property
    def settings(self) -> tuple[str, ...]:
        return () if self.method == NONE else (f"{_SETTING}{{method: {self.method}, budget: {self.budget!r}}}",)

    @classmethod
    def of(cls, settings: tuple[str, ...]) -> "Choice":
        """The one whose ``settings`` these are."""
        if not settings:
            return cls(NONE, "the full table", 1.0)
        chosen = Compression.model_validate(yaml.safe_load(settings[0].removeprefix(_SETTING)))
        return next(cls(info.name, info.kind, chosen.budget) for info in methods() if info.name == chosen.method)


def bench_compression(
    config: Path,
    overrides: Sequence[str],
    names: Sequence[str],
    budgets: Sequence[float],
    seeds: int | None,
    processes: int | None,
    quick: bool,
    out: Path,
    screen: Terminal,
) -> list[dict[str, Any]]:
    """Runs what is missing, writes ``results.parquet``, ``report.md``, ``report.html`` and two pictures to ``out``.

    Args:
        names: methods, as ``ctrkit compressions`` lists them; none is all.
        budgets: of the bytes of the full table; none is 0.5, 0.1, 0.01 and 0.001.
        seeds: 1 .. seeds; None is 3.
        processes: runs side by side; each has its share of the cores. None is 1.
        quick: one seed, budgets 0.1 and 0.01, one epoch and a process a core up to 4, where the other arguments do not say otherwise; 20
            timed calls in place of 200.

    Returns:
        The report's figures: one row a method and budget, means over seeds.

    Raises:
        CtrkitError: an unknown method, a config with a unified embedding, an ``out`` of other settings, or an uncompressed run that fails.
    """
    experiment = _uncompressed(load_config(config, [*(QUICK_SETTINGS if quick else ()), *overrides]))
    choices = _choices(names, budgets or (QUICK_BUDGETS if quick else BUDGETS))
    prepared(experiment, screen)
    processes = processes or (min(QUICK_PROCESSES, os.cpu_count() or 1) if quick else 1)
    path = out / f"{experiment.name}.yaml"
    keep(to_yaml(experiment), path)
    plan = [
        (choice, Trial(str(path), experiment.model.name, choice.settings, seed))
        for seed in range(1, (seeds or (1 if quick else 3)) + 1)
        for choice in choices
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False, soft_wrap=True)) as progress:

        def say(text: str) -> None:
            progress.console.print(text, markup=False)

        trials = Trials(out, say, _threads(processes))
        bar = progress.add_task("Training", total=len(plan))
        trials.run_all([trial for _, trial in plan], processes, lambda: progress.advance(bar))
        references = [trials.results[trial] for choice, trial in plan if choice.method == NONE and trial in trials.results]
        if not references:
            raise CtrkitError("the uncompressed table could not be trained: there is nothing to compare with", "See the messages above")
        first = {trial.settings: trial for trial in sorted(trials.results, key=lambda trial: trial.seed, reverse=True)}
        weighed = {trial: trials.results[trial] for trial in first.values()}
        bar = progress.add_task("Exporting and timing", total=len(weighed))
        costs = _costs(weighed, references[0], out, QUICK_CALLS if quick else CALLS, say, lambda: progress.advance(bar))
    rows = [
        _row(experiment.name, Choice.of(trial.settings), trial, trials, costs, references[0]["embedding_bytes"])
        for trial in [*trials.results, *trials.refused]
    ]
    frame = pl.DataFrame(rows, schema=COLUMNS).sort(pl.col("method") != NONE, "method", -pl.col("budget"), "seed")
    frame.write_parquet(out / "results.parquet")
    return write_report(frame, f"Compressed embeddings of {experiment.model.name} on {experiment.name}", out)


def _uncompressed(experiment: Experiment) -> Experiment:
    if isinstance(experiment.embedding, UnifiedEmbedding):
        raise CtrkitError("compression is of tables, and embedding.kind is unified", "Set embedding.kind=tables")
    return experiment.model_copy(update={"embedding": experiment.embedding.model_copy(update={"compression": None})})


def _choices(names: Sequence[str], budgets: Sequence[float]) -> list[Choice]:
    """The uncompressed table, then every method at every budget."""
    kinds = {info.name: info.kind for info in methods()}
    chosen = list(dict.fromkeys(names)) or list(kinds)
    for name in chosen:
        check_compression(Compression(method=name, budget=budgets[0]))
    compressed = [Choice(name, kinds[name], budget) for budget in dict.fromkeys(budgets) for name in chosen]
    return [Choice(NONE, "the full table", 1.0), *compressed]


def _threads(processes: int) -> int | None:
    return None if processes == 1 else max(1, (os.cpu_count() or 1) // processes)


def _costs(
    weighed: Mapping[Trial, dict[str, Any]],
    reference: dict[str, Any],
    out: Path,
    calls: int,
    say: Callable[[str], object],
    ended: Callable[[], object],
) -> dict[Cost, dict[str, Any]]:
    """Size and speed of each trial; measured once, kept in ``costs.jsonl``. One that cannot be exported is said and left out."""
    file = out / "costs.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    costs: dict[Cost, dict[str, Any]] = {(tuple(line.pop("settings")), line.pop("seed")): line for line in lines}
    with TemporaryDirectory(dir=out) as folder:
        scale: Scale | None = None
        for trial, result in weighed.items():
            key = trial.settings, trial.seed
            if key not in costs:
                try:
                    scale = scale or Scale(_run_of(reference), Path(folder), calls)
                    run = _run_of(result)
                    costs[key] = {**scale.weigh(run), "lookup_ratio": lookup_ratio(run)}
                except CtrkitError as error:
                    choice = Choice.of(trial.settings)
                    say(f"{choice.method} at {choice.budget:g}: {error}")
                else:
                    with file.open("a") as lines_so_far:
                        lines_so_far.write(json.dumps({"settings": trial.settings, "seed": trial.seed, **costs[key]}) + "\n")
            ended()
    return costs


def _run_of(result: dict[str, Any]) -> Path:
    """The folder of a trial's run. Raises CtrkitError if it is gone, or holds another run by now: folders are numbered."""
    run = Path(result["run"])
    there = read_result(run)
    if there is None or (there.seed, there.seconds) != (result["seed"], result["seconds"]):
        raise CtrkitError(
            f"no size or speed without the run '{run}', which is gone or another one by now", "Keep the runs until the report is made"
        )
    return run


def _row(data: str, choice: Choice, trial: Trial, trials: Trials, costs: dict[Cost, dict[str, Any]], full_bytes: int) -> dict[str, Any]:
    row = {"data": data, "method": choice.method, "kind": choice.kind, "budget": choice.budget, "seed": trial.seed}
    if trial in trials.refused:
        return {**row, "reached": False, "message": trials.refused[trial]}
    result = trials.results[trial]
    return {
        **row,
        "reached": True,
        **{f"{split}_{metric}": result[split][metric] for split in ("valid", "test") for metric in ("auc", "logloss")},
        **{key: result[key] for key in ("embedding_bytes", "seconds", "params", "run")},
        "share": result["embedding_bytes"] / full_bytes,
        **costs.get((trial.settings, trial.seed), {}),
    }
