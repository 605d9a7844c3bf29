"""The study: trials in SQLite, shared by the workers, gone on with after a stop.

What the n-th trial draws depends on the seed, on n and on the trials before it alone, so that a search of one worker is the same whether
or not it was stopped on the way. A trial that was stopped before its end is tried again with the parameters it had.
"""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ctrkit.errors import CtrkitError
from pipelines.tuning.plan import Plan

STUDY_FILE = "study.db"
ERROR = "error"
"""A trial's attribute: why it failed. One that was stopped has none."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Budget:
    """When no further trial is started.

    Attributes:
        trials: of the study in all, failed ones included; None is no limit.
        deadline: seconds since 1970 at which even a trial under way is stopped, at its next evaluation; None is no limit.
    """

    trials: int | None
    deadline: float | None

    def out_of_time(self) -> bool:
        return self.deadline is not None and time() >= self.deadline


def open_study(folder: Path, plan: Plan) -> optuna.Study:
    """The folder's study, made if there is none. Trials whose AUC is below the median of the others' at the same evaluation are pruned."""
    path = folder / STUDY_FILE
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"creator": lambda: _connect(path)})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=plan.space.startup)
    study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True, pruner=pruner)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(plan.own())
    return study


def _connect(path: Path) -> sqlite3.Connection:
    """A trial of 40 parameters is as many commits: with a log written ahead they need not wait for the disk."""
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def claim(study: optuna.Study, plan: Plan, budget: Budget, folder: Path) -> Trial | None:
    """The next trial, this worker's alone; None once the budget is spent."""
    with locked(folder / ".next.lock"):
        begun = len(counted(study))
        if budget.out_of_time() or (budget.trials is not None and begun >= budget.trials):
            return None
        seed = int(np.random.SeedSequence([plan.seed, begun]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=plan.space.startup, multivariate=True, seed=seed)
        return study.ask()


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were begun, without those that were stopped."""
    return [t for t in study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING and not stopped(t)]


def stopped(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and ERROR not in trial.user_attrs


def stop(study: optuna.Study, number: int) -> None:
    """Ends a trial that is under way; its parameters are the next to be tried."""
    parameters = study.trials[number].params
    study.tell(number, state=TrialState.FAIL)
    study.enqueue_trial(parameters)


def stop_abandoned(study: optuna.Study) -> None:
    """Stops the trials that killed workers left; nobody else may be at work on the study."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        stop(study, trial.number)


def twin(study: optuna.Study, number: int) -> FrozenTrial | None:
    """A trial that has ended with the very parameters of this one: its outcome would be the same."""
    parameters = study.trials[number].params
    return next((t for t in study.get_trials(deepcopy=False, states=ENDED) if t.params == parameters), None)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """The folder is this call's alone, and its workers', who inherit the descriptor.

    Raises:
        CtrkitError: another call, or a worker it left, is at work there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise CtrkitError(f"the study's folder '{folder}' cannot be made: {error.strerror}", "Give an --out that can be written") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CtrkitError(f"another search is at work in '{folder}'", "Wait until it has ended, or give another --out") from error
        yield file.fileno()
