"""``ctrkit tune``: searches models, settings and features for the best AUC on validation; the test split is never looked at."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.errors import CtrkitError
from ctrkit.training.monitor import undefined
from pipelines.prepare import prepared
from pipelines.terminal import Terminal
from pipelines.tuning.outcome import write_outcome
from pipelines.tuning.plan import PLAN_FILE, keep_plan, make_plan, read_plan, refuse_another
from pipelines.tuning.space import Space, default_space
from pipelines.tuning.study import Budget, held, open_study, stop_abandoned
from pipelines.tuning.worker import work


def tune(
    experiment: Experiment,
    screen: Terminal,
    *,
    space: Space | None = None,
    select: Path | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    workers: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Searches, or goes on with the search that ``out`` holds; see ``write_outcome`` for what it writes and returns, and ``seconds``.

    Args:
        space: default ``default_space``.
        select: a ranking; how many of its best features to keep is then searched, in place of whether to keep each.
        trials: of the study in all.
        minutes: of this call; the trials under way are stopped at their next evaluation.
        workers: processes that share the study and, if the config does not say otherwise, the cores.
        seed: of what is drawn.
        out: the study's folder; default ``<output>/tune/<name>``.

    Raises:
        CtrkitError: a bad ranking, or one that does not go with the space, a folder with a study of other settings, of another log or at work, no trial that ended, a worker that died.
    """
    started = time.time()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CtrkitError("ctrkit tune starts its own processes, and this is one of torchrun's", "Run it without torchrun, with --workers")
    folder = out or Path(experiment.output) / "tune" / experiment.name
    experiment = _with_threads(experiment, workers, folder)
    plan = make_plan(experiment, space or default_space(experiment), seed, select)
    refuse_another(plan, folder)
    budget = Budget(trials, None if minutes is None else started + 60 * minutes)
    with held(folder) as lock:
        dataset = prepared(experiment, screen)
        if (why := undefined("auc", dataset)) is not None:
            raise CtrkitError(
                f"a search is for the best AUC on the valid split, which has none: {why}", "Give it more rows, or check the label"
            )
        keep_plan(plan, folder)
        study = open_study(folder, plan)
        stop_abandoned(study)
        try:
            if workers == 1:
                work(folder, dataset, budget, lambda text: screen.console.print(text, markup=False))
            else:
                _work_together(folder, dataset, budget, workers, lock)
        except KeyboardInterrupt:
            screen.console.print("Interrupted. The same command goes on with it", markup=False)
            with suppress(CtrkitError):  # no trial may have ended
                write_outcome(study, plan, folder)
            raise
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        outcome = write_outcome(study, plan, folder)
    best = outcome["best"]
    counts = ", ".join(f"{count} {state}" for state, count in outcome["trials"].items() if count)
    screen.console.print(f"Trials: {counts}. Best valid auc {best['valid_auc']:.5f}, trial {best['trial']}.", markup=False)
    screen.console.print(f"Train it: ctrkit train {outcome['config']}", style="green", markup=False)
    return {**outcome, "seconds": time.time() - started}


def _with_threads(experiment: Experiment, workers: int, folder: Path) -> Experiment:
    """Several workers have their share of the cores each, for good: the number of threads may change a sum's last bits."""
    if experiment.training.threads is not None:
        return experiment
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    if (folder / PLAN_FILE).exists():
        threads = read_plan(folder).experiment.training.threads
    return experiment.model_copy(update={"training": experiment.training.model_copy(update={"threads": threads})})


def _work_together(folder: Path, dataset: Dataset, budget: Budget, workers: int, lock: int) -> None:
    limits = ["-" if limit is None else repr(limit) for limit in (budget.trials, budget.deadline)]
    command = [sys.executable, "-m", "pipelines.tuning.worker", str(folder), str(dataset.path), *limits]
    processes = [subprocess.Popen(command, pass_fds=(lock,)) for _ in range(workers)]
    try:
        died = [status for status in [process.wait() for process in processes] if status]
    except KeyboardInterrupt:  # the terminal has told the workers too
        for process in processes:
            process.wait()
        raise
    if died:
        raise CtrkitError(f"a worker ended with exit status {died[0]}, see above", "Run the same command again: it goes on")
