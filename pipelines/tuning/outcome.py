"""What a search leaves for people: the best config, a table of the trials, and two pictures."""

import warnings
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from ctrkit.config_file import to_yaml
from ctrkit.errors import CtrkitError
from pipelines.tuning.plan import Plan
from pipelines.tuning.study import ERROR, stopped

BEST_FILE, HISTORY_FILE, IMPORTANCE_FILE = "best.yaml", "history.png", "importance.png"
SHOWN = 20
"""Parameters in the picture of importances."""


def write_outcome(study: optuna.Study, plan: Plan, folder: Path) -> dict[str, Any]:
    """Writes ``best.yaml``, ``trials.csv``, ``trials.parquet``, ``history.png`` and ``importance.png``.

    Returns:
        ``{study, config, best: {trial, valid_auc, features, parameters}, trials: {complete, pruned, failed, stopped}, importance}``.

    Raises:
        CtrkitError: no trial has ended.
    """
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    if not complete:
        failed = [t for t in trials if ERROR in t.user_attrs]
        why = f"; trial {failed[0].number}: {failed[0].user_attrs[ERROR]}" if failed else ""
        raise CtrkitError(f"no trial in '{folder}' has ended with a model{why}", "Mend the search space, or give a larger budget")
    best = study.best_trial
    path = folder / BEST_FILE
    _replace(path, to_yaml(plan.draw(FixedTrial(best.params))).encode())
    frame = trials_frame(trials)
    frame.write_csv(folder / "trials.csv")
    frame.write_parquet(folder / "trials.parquet")
    with warnings.catch_warnings(action="ignore"):  # of few trials it is rough, and Optuna says so at length
        importance = optuna.importance.get_param_importances(study) if len(complete) > 1 else {}
    _history(trials, folder / HISTORY_FILE)
    _importance(importance, folder / IMPORTANCE_FILE)
    return {
        "study": str(folder),
        "config": str(path),
        "best": {
            "trial": best.number,
            "valid_auc": best.value,
            "features": best.user_attrs["features"],
            "parameters": best.params,
        },
        "trials": {state: sum(_state(t) == state for t in trials) for state in ("complete", "pruned", "failed", "stopped")},
        "importance": importance,
    }


def trials_frame(trials: list[FrozenTrial]) -> pl.DataFrame:
    """One row a trial: state, valid AUC, evaluations, seconds since the first one began at which it began and ended, and its parameters."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    kinds = {name: {type(trial.params[name]) for trial in trials if name in trial.params} for name in names}
    mixed = {name for name, types in kinds.items() if len(types) > 1 and not types <= {int, float}}
    first = min(trial.datetime_start for trial in trials if trial.datetime_start is not None)

    def row(trial: FrozenTrial) -> dict[str, Any]:
        values = {name: str(value) if name in mixed else value for name, value in trial.params.items()}
        times = {"began": trial.datetime_start, "ended": trial.datetime_complete}
        return {
            "trial": trial.number,
            "state": _state(trial),
            "valid_auc": trial.value if trial.state is TrialState.COMPLETE else None,
            "evaluations": len(trial.intermediate_values),
            **{name: (moment - first).total_seconds() if moment is not None else None for name, moment in times.items()},
            **{name: trial.user_attrs.get(name) for name in ("cpu_seconds", "features", "epochs", "params", "as_trial", "worker", ERROR)},
            **{name: values.get(name) for name in names},
        }

    return pl.DataFrame([row(trial) for trial in trials], infer_schema_length=None)


def _state(trial: FrozenTrial) -> str:
    return "stopped" if stopped(trial) else "failed" if trial.state is TrialState.FAIL else trial.state.name.lower()


def _history(trials: list[FrozenTrial], path: Path) -> None:
    """AUC of each trial on validation, where a pruned one stood when it was pruned, and the best so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for state, color, label in ((TrialState.COMPLETE, "#2563eb", "trained to its end"), (TrialState.PRUNED, "#9ca3af", "pruned")):
        points = [(t.number, t.value) for t in trials if t.state is state and t.value is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), color=color, label=label, s=22)
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    best = [max(t.value for t in complete[: i + 1] if t.value is not None) for i in range(len(complete))]
    axes.step([t.number for t in complete], best, where="post", color="#ea580c", label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel="valid AUC")
    axes.set_title(f"best {best[-1]:.5f} after {len(trials)} trials", loc="left")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def _importance(importance: dict[str, float], path: Path) -> None:
    """PED-ANOVA (Watanabe et al., IJCAI 2023): how far each parameter's values in the best tenth of the trials differ from those in all."""
    from matplotlib.figure import Figure

    shown = list(importance.items())[:SHOWN][::-1]
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in shown], [value for _, value in shown], color="#2563eb")
    axes.set(xlabel="share of importance for being among the best tenth")
    axes.grid(alpha=0.3, linewidth=0.6, axis="x")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
