"""``ctrkit prepare``: the log as shards of ids, with what was found in it."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset, open_dataset
from ctrkit.data.prepare import prepare
from pipelines.terminal import Terminal

STAGES = {"read": "Reading the log", "fit": "Fitting transforms", "encode": "Writing shards"}


def prepare_log(experiment: Experiment, screen: Terminal) -> dict[str, Any]:
    """Prepares the log anew and prints its profile.

    Returns:
        ``{dataset, rows: {train, valid, test}, rows_per_s, peak_mb, seconds}``.
    """
    dataset = run_prepare(experiment, screen)
    print_profile(dataset, screen)
    return dataset.summary


def prepared(experiment: Experiment, screen: Terminal) -> Dataset:
    """The experiment's dataset, prepared now if its settings or its files have changed since it last was."""
    dataset = open_dataset(experiment)
    if dataset is None:
        dataset = run_prepare(experiment, screen)
    screen.console.print(f"Dataset {dataset.path}: {_rows(dataset)}", markup=False)
    return dataset


def run_prepare(experiment: Experiment, screen: Terminal) -> Dataset:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeElapsedColumn())
    with Progress(*columns, console=screen.console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(STAGES.get(stage, stage), total=total)
            bar.update(tasks[stage], completed=done, total=total)

        return prepare(experiment, progress=show)


def print_profile(dataset: Dataset, screen: Terminal) -> None:
    profile, summary = dataset.profile, dataset.summary
    rows = [
        (
            name,
            about["kind"],
            about["transform"],
            about.get("cardinality", "-"),
            about.get("table_rows", "-"),
            _percent(about["missing"].get("train")),
            _percent(about.get("out_of_vocabulary", {}).get("test")),
        )
        for name, about in profile["features"].items()
    ]
    screen.table(("feature", "kind", "transform", "values", "table rows", "missing", "unknown in test"), rows)
    splits = profile["splits"].items()
    rates = {name: [(split, about["rates"][name]) for split, about in splits] for name in dataset.inputs.tasks}
    for name, of_splits in (rates or {"Click": [(split, about["ctr"]) for split, about in splits]}).items():
        screen.console.print(f"{name} rate: {', '.join(f'{split} {rate:.2%}' for split, rate in of_splits)}", markup=False)
    screen.console.print(
        f"Prepared {dataset.path}: {_rows(dataset)}; {summary['rows_per_s']:,.0f} rows/s, peak memory {summary['peak_mb']:,.0f} MB.",
        style="green",
        markup=False,
    )


def _rows(dataset: Dataset) -> str:
    return ", ".join(f"{rows:,} {split}" for split, rows in dataset.rows.items()) + " rows"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
