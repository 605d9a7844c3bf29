"""The verbs for a retrieval experiment: the same commands, for a config with ``task: retrieval`` and its runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrkit.config_file import task_of
from ctrkit.errors import CtrkitError
from pipelines.terminal import Terminal

if TYPE_CHECKING:
    from ctrkit.retrieval.config import RetrievalExperiment

TASK = "retrieval"


def is_retrieval(config: Path) -> bool:
    """Whether a config, or the config of a run, is of a retrieval experiment.

    Raises:
        CtrkitError: of another task that there is not, no file, or no YAML.
    """
    task = task_of(config)
    if task == "funnel":
        raise CtrkitError(f"'{config}' is of task: funnel, which trains two models", f"Run ctrkit funnel {config}")
    if task not in (None, TASK):
        raise CtrkitError(f"'{config}' is of task: {task}", f"Write task: {TASK}, or leave it out of a config that predicts clicks")
    return task == TASK


def run_is_retrieval(run: Path) -> bool:
    """Whether a folder is a run of a retrieval experiment; a folder that is none is left for others to judge."""
    from ctrkit.training.run import CONFIG_FILE

    return (run / CONFIG_FILE).is_file() and is_retrieval(run / CONFIG_FILE)


def validate_retrieval(config: Path, overrides: Sequence[str], screen: Terminal) -> dict[str, Any]:
    """Checks files, columns and settings; reads the beginnings of files only."""
    from ctrkit.retrieval.config import load_retrieval

    return validate_loaded(load_retrieval(config, overrides), screen)


def validate_loaded(experiment: "RetrievalExperiment", screen: Terminal) -> dict[str, Any]:
    """The same for settings that have been read."""
    from ctrkit.retrieval.methods import method_of
    from ctrkit.retrieval.prepare import check_columns

    columns = check_columns(experiment)
    method, _ = method_of(experiment.model)
    sides = (("user", experiment.user_features), ("context", experiment.context_features), ("item", experiment.item_features))
    screen.table(("side", "feature", "kind"), [(side, f.name, f.kind.value) for side, features in sides for f in features])
    screen.console.print(f"'{experiment.name}' fits its files: model {method.name}.", style="green", markup=False)
    return {"ok": True, "name": experiment.name, "features": len(experiment.features), "columns": columns}


def prepare_retrieval(config: Path, overrides: Sequence[str], screen: Terminal) -> dict[str, Any]:
    """Prepares the log anew. Returns ``{dataset, rows, users, items, trained_users, trained_items, ..}``."""
    from ctrkit.retrieval.config import load_retrieval
    from ctrkit.retrieval.prepare import prepare

    dataset = prepare(load_retrieval(config, overrides))
    about = {"dataset": str(dataset.path), "rows": dataset.rows, **dataset.profile}
    screen.console.print(
        f"Prepared {dataset.path}: {', '.join(f'{rows:,} {split}' for split, rows in dataset.rows.items())} events, "
        f"{about['users']:,} users, {about['items']:,} items of which {about['trained_items']:,} are trained on.",
        style="green",
        markup=False,
    )
    return about


def train_retrieval(config: Path, overrides: Sequence[str], run: Path | None, resume: bool, screen: Terminal) -> dict[str, Any]:
    """Trains and measures over the full catalogue; prepares the log first if that has not been done."""
    from ctrkit.retrieval.config import load_retrieval

    return train_loaded(load_retrieval(config, overrides), run, resume, screen)


def train_loaded(experiment: "RetrievalExperiment", run: Path | None, resume: bool, screen: Terminal) -> dict[str, Any]:
    """The same for settings that have been read."""
    from ctrkit.retrieval.dataset import open_dataset
    from ctrkit.retrieval.methods import method_of
    from ctrkit.retrieval.prepare import prepare
    from ctrkit.retrieval.trainer import train

    method_of(experiment.model)
    dataset = open_dataset(experiment) or prepare(experiment)
    result = train(experiment, dataset, run_dir=run, resume=resume, console=screen.console)
    _print_metrics({"valid": result.valid, "test": result.test}, result.slices, screen)
    screen.console.print(f"Run: {result.run}", style="green", markup=False)
    return result.to_json()


def evaluate_retrieval(run: Path, split: str, screen: Terminal) -> dict[str, Any]:
    """Measures a run of towers on a split anew. Returns ``{split, metrics, slices}``."""
    from ctrkit.retrieval.evaluate_run import evaluate_run

    found = evaluate_run(run, split)
    _print_metrics({split: found["metrics"]}, found["slices"], screen)
    return {"split": split, **found}


def export_retrieval(run: Path, to: Path, name: str | None, screen: Terminal) -> dict[str, Any]:
    """Writes both towers as a bundle. Returns ``{bundle, max_abs_diff, bytes}``."""
    from ctrkit.retrieval.export import export_towers
    from ctrkit.training.report import size_words

    done = export_towers(run, to, name)
    screen.console.print(f"wrote {done.bundle} ({size_words(done.bytes)})", markup=False)
    screen.console.print(f"trained towers (reloaded), serving twins and ONNX graphs differ by at most {done.max_abs_diff:.1e}")
    return {"bundle": str(done.bundle), "max_abs_diff": done.max_abs_diff, "bytes": done.bytes}


def index_run(run: Path, to: Path, name: str | None, screen: Terminal) -> dict[str, Any]:
    """Builds the indexes of an exported run. Returns what ``build_index`` says."""
    from ctrkit.retrieval.build_index import build_index, find_bundle

    built = build_index(find_bundle(run, to, name))
    screen.console.print(
        f"indexed {built['items']:,} items in {built['seconds']:.1f} s: {built['index']}; the approximate index finds "
        f"{built['recall']:.1%} of the exact one's first ten",
        markup=False,
    )
    return built


def _print_metrics(splits: dict[str, dict[str, float]], slices: dict[str, dict[str, Any]], screen: Terminal) -> None:
    """A row a metric, a column a split; then the slices by the shortest list's figures."""
    names = list(next(iter(splits.values())))
    screen.table(("metric", *splits), [(name, *(f"{metrics[name]:.4f}" for metrics in splits.values())) for name in names])
    shown = [name for name in next(iter(slices.values())) if name != "queries"]
    shown = [name for name in shown if name == "mrr" or name.endswith(shown[0][shown[0].index("@") :])]
    rows = [(name, part["queries"], *(f"{part[metric]:.4f}" for metric in shown)) for name, part in slices.items()]
    screen.table(("test slice" if "test" in splits else "slice", "queries", *shown), rows)
