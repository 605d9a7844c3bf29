"""Trains and evaluates one retrieval experiment."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.evaluate import Recommender, measure, measure_slices, rank_catalogue
from ctrkit.retrieval.job import Job
from ctrkit.retrieval.methods import method_of, not_read
from ctrkit.retrieval.run import RetrievalResult, create_run, find_unfinished, read_result
from ctrkit.training.run import RESULT_FILE, write_json
from ctrkit.training.tracking import with_nan


def train(
    experiment: RetrievalExperiment,
    dataset: RetrievalDataset,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RetrievalResult:
    """Trains a method, measures it over the full catalogue and writes its run folder.

    Args:
        dataset: prepared from the same experiment.
        run_dir: folder of the run; default ``<output>/runs/<name>-<model>-<n>``.
        resume: go on after the last whole epoch of ``run_dir``, or of the experiment's newest unfinished run. A finished run is left as it
            is and its result returned.
        console: default standard error.

    Raises:
        CtrkitError: unknown method or setting, nothing to resume, a loss that is not finite.
    """
    method, settings = method_of(experiment.model)
    if experiment.training.threads:
        torch.set_num_threads(experiment.training.threads)
    started = time.perf_counter()
    folder = find_unfinished(experiment, dataset, run_dir) if resume else create_run(experiment, dataset, run_dir)
    if (finished := read_result(folder)) is not None:
        splits = {split: with_nan(finished[split]) for split in ("valid", "test")}
        return RetrievalResult(**{**finished, **splits, "run": folder})
    checkpoints = folder / "checkpoints"
    job = Job(experiment, dataset, folder, console or Console(stderr=True))
    if ignored := not_read(experiment):
        job.say(f"model '{method.name}' does not read {', '.join(ignored)}: the config sets them to no effect")
    torch.manual_seed(experiment.training.seed)
    try:
        fitted = method.fit(job, settings)
    except CtrkitError:
        if not any(checkpoints.glob("*")):  # nothing that could be resumed
            shutil.rmtree(folder)
        raise
    valid = evaluate(experiment, dataset, fitted.recommender, "valid")
    test = evaluate(experiment, dataset, fitted.recommender, "test")
    result = RetrievalResult(
        run=folder,
        model=method.name,
        seed=experiment.training.seed,
        valid=valid["metrics"],
        test=test["metrics"],
        slices=test["slices"],
        best_epoch=fitted.best_epoch,
        epochs=fitted.epochs,
        params=fitted.params,
        embedding_bytes=fitted.embedding_bytes,
        samples_per_s=fitted.samples_per_s,
        seconds=time.perf_counter() - started,
    )
    write_json(folder / RESULT_FILE, result.to_json())
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def evaluate(experiment: RetrievalExperiment, dataset: RetrievalDataset, recommender: Recommender, split: str) -> dict[str, Any]:
    """``{metrics, slices}`` of a split, over the full catalogue; validation asks ``evaluation.valid_queries``.

    Raises:
        CtrkitError: no queries are made of that split.
    """
    if split not in ("valid", "test"):
        raise CtrkitError(f"a retrieval run is not evaluated on '{split}'", "Name valid or test")
    at = experiment.evaluation.at
    queries = dataset.queries(split, experiment.evaluation.valid_queries if split == "valid" else None)
    ranked = rank_catalogue(recommender, queries, dataset, max(at))
    slices = measure_slices(ranked, queries, dataset.counts, dataset.user_counts, at)
    return {"metrics": measure(ranked, queries, dataset.counts, at), "slices": slices}
