"""One process of a search: takes trials until the budget is spent. ``python -m pipelines.tuning.worker`` is one of several."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import optuna
from optuna.trial import Trial, TrialState
from rich.console import Console

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.narrow import narrow
from ctrkit.errors import CtrkitError
from ctrkit.training.run import RunResult
from ctrkit.training.trainer import train
from pipelines.tuning.plan import Plan, read_plan
from pipelines.tuning.study import ERROR, Budget, claim, open_study, stop, twin

Say = Callable[[str], object]


class OutOfTime(Exception):
    """The budget's minutes are over in the middle of a trial."""


def work(folder: Path, dataset: Dataset, budget: Budget, say: Say) -> None:
    """Runs trials of the folder's study until its budget is spent.

    Args:
        dataset: of the plan's experiment, with all features.
        say: told of each trial that has ended.
    """
    gc.freeze()  # the garbage collection at each training's end need not look through all that was imported
    plan = read_plan(folder)
    study = open_study(folder, plan)
    while (trial := claim(study, plan, budget, folder)) is not None:
        try:
            _run(study, trial, plan, dataset, budget, folder / "scratch" / f"trial-{trial.number}")
        except (OutOfTime, KeyboardInterrupt) as interruption:
            stop(study, trial.number)
            if isinstance(interruption, KeyboardInterrupt):
                raise
        else:
            say(_line(study, trial.number))


def _run(study: optuna.Study, trial: Trial, plan: Plan, dataset: Dataset, budget: Budget, scratch: Path) -> None:
    """One trial, from its parameters to its end; what it wrote is removed."""
    started = process_time()
    value = None
    try:
        experiment = plan.draw(trial)
        trial.set_user_attr("features", len(experiment.features))
        trial.set_user_attr("worker", os.getpid())
        if (earlier := twin(study, trial.number)) is not None:
            _repeat(study, trial, earlier)
            return
        result = _train(experiment, dataset, scratch, lambda step, auc: _look(trial, step, auc, budget))
        trial.set_user_attr("epochs", result.epochs)
        trial.set_user_attr("params", result.params)
        value, state = result.valid["auc"], TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (CtrkitError, RuntimeError) as error:  # such as settings that do not go together, or too little memory for them
        trial.set_user_attr(ERROR, str(error))
        state = TrialState.FAIL
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    trial.set_user_attr("cpu_seconds", process_time() - started)
    study.tell(trial, value, state=state)


def _train(experiment: Experiment, dataset: Dataset, scratch: Path, look: Callable[[int, float], None]) -> RunResult:
    evaluations = 0

    def watch(epochs: float, metrics: dict[str, float]) -> None:
        nonlocal evaluations
        if epochs:  # else it is of trained weights that a training starts from: not to be measured against others
            evaluations += 1
            look(evaluations, metrics["auc"])

    shutil.rmtree(scratch, ignore_errors=True)
    if len(experiment.features) < len(dataset.features):
        dataset = narrow(dataset, experiment, scratch / "dataset")
    return train(experiment, dataset, run_dir=scratch / "run", console=Console(quiet=True), watch=watch, pictures=False)


def _look(trial: Trial, step: int, auc: float, budget: Budget) -> None:
    """After an evaluation."""
    trial.report(auc, step)
    if budget.out_of_time():
        raise OutOfTime
    if trial.should_prune():
        raise optuna.TrialPruned


def _repeat(study: optuna.Study, trial: Trial, earlier: optuna.trial.FrozenTrial) -> None:
    """Ends a trial as its twin ended."""
    trial.set_user_attr("as_trial", earlier.number)
    for step, auc in earlier.intermediate_values.items():
        trial.report(auc, step)
    value = earlier.value if earlier.state is TrialState.COMPLETE else None
    study.tell(trial, value, state=earlier.state)


def _line(study: optuna.Study, number: int) -> str:
    trial = study.trials[number]
    if trial.state is TrialState.FAIL:
        return f"trial {number}: failed: {trial.user_attrs[ERROR]}"
    values = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in _telling(trial).items())
    outcome = f"valid auc {trial.value:.5f}" if trial.state is TrialState.COMPLETE else f"pruned after {len(trial.intermediate_values)}"
    same = f" (as trial {trial.user_attrs['as_trial']})" if "as_trial" in trial.user_attrs else ""
    return f"trial {number}: {outcome}{same}, {trial.user_attrs['features']} features, {values}"


def _telling(trial: optuna.trial.FrozenTrial) -> dict[str, object]:
    return {name: value for name, value in trial.params.items() if not name.startswith("feature.")}


def main(arguments: Sequence[str]) -> None:
    """``FOLDER DATASET TRIALS DEADLINE``, the last two ``-`` for no limit."""
    folder, dataset, trials, deadline = arguments
    budget = Budget(None if trials == "-" else int(trials), None if deadline == "-" else float(deadline))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    work(Path(folder), Dataset.open(dataset), budget, lambda text: console.print(text, markup=False))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
