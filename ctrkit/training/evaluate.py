"""Predictions of a model on a whole split, and their metrics."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from ctrkit.config import Experiment
from ctrkit.data.batch import Batch
from ctrkit.data.dataset import Dataset
from ctrkit.data.loader import Loader
from ctrkit.errors import CtrkitError
from ctrkit.models.base import CTRModel, RankingModel
from ctrkit.models.registry import rebuild, stored_form
from ctrkit.training.distributed import Worker, distribute, load_full_weights, process_group
from ctrkit.training.metrics import evaluate_metrics
from ctrkit.training.run import dataset_of_run, load_run


@dataclass(frozen=True)
class Predictions:
    """A split's rows in the order of its shards.

    Attributes:
        labels: ``[rows]`` float32; ``[rows, tasks]`` of several labels.
        probabilities: float32, as ``labels``.
        groups: ``[rows]`` int64, None without a group column.
        tasks: names of several labels.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray | None
    tasks: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Of one label ``{auc, logloss, ..}``; of several also ``{<task>/auc, ..}`` for each, those without a name being the main label's."""
        if not self.tasks:
            return evaluate_metrics(self.labels, self.probabilities, self.groups)
        of_tasks = {
            task: evaluate_metrics(labels, probabilities, self.groups)
            for task, labels, probabilities in zip(self.tasks, self.labels.T, self.probabilities.T, strict=True)
        }
        named = {f"{task}/{name}": value for task, metrics in of_tasks.items() for name, value in metrics.items()}
        return of_tasks[self.tasks[0]] | named


def predict(model: DistributedModelParallel, loader: Loader, device: torch.device) -> Predictions:
    """Scores a split. Each process scores its part; all of them get all predictions.

    Args:
        model: ``Batch -> logits [batch]`` or ``[batch, tasks]``; left in the mode it was in.
        loader: not shuffled.
        device: of the model.

    Raises:
        CtrkitError: a prediction is not a number.
    """
    tasks = cast(CTRModel, model.module).tasks
    parts = _scored(model, loader.iter(), device, loader.world)
    shape = (loader.rows, len(tasks)) if tasks else (loader.rows,)
    predictions = Predictions(
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
        np.empty(loader.rows, np.int64) if parts[0].groups is not None else None,
        tasks,
    )
    for rank, part in enumerate(parts):
        positions = loader.positions(rank)
        predictions.labels[positions] = part.labels
        predictions.probabilities[positions] = part.probabilities
        if predictions.groups is not None:
            predictions.groups[positions] = part.groups
    bad = np.flatnonzero(np.isnan(predictions.probabilities.reshape(loader.rows, -1)).any(axis=1))
    if len(bad):
        raise CtrkitError(
            f"the model predicts NaN for {len(bad):,} of {loader.rows:,} rows, the first of them row {bad[0]:,} of the split",
            "Training diverged: lower training.learning_rate and embedding.learning_rate, or set training.precision to fp32",
        )
    return predictions


def predict_batches(model: DistributedModelParallel, batches: Sequence[Batch], worker: Worker) -> Predictions:
    """Scores each process' batches; all of them get all predictions, those of process 0 first.

    Args:
        model: as of ``predict``.
        batches: equally many in each process, at least one.
    """
    parts = _scored(model, batches, worker.device, worker.world)
    groups = [part.groups for part in parts if part.groups is not None]
    return Predictions(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(groups) if groups else None,
        parts[0].tasks,
    )


def _scored(model: DistributedModelParallel, batches: Iterable[Batch], device: torch.device, world: int) -> list[Predictions]:
    """Of each process its part."""
    trained = cast(CTRModel, model.module)
    was_training = model.training
    model.eval()
    labels, logits, groups = [], [], []
    with torch.no_grad():
        for batch in batches:
            logits.append(model(batch.to(device)).float())
            labels.append(trained.targets(batch.labels).numpy())
            groups.append(batch.groups)
    model.train(was_training)
    probabilities = torch.cat(logits).sigmoid().cpu().numpy()
    mine = Predictions(np.concatenate(labels), probabilities, None if groups[0] is None else np.concatenate(groups), trained.tasks)
    if world == 1:
        return [mine]
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, mine)
    return parts


def predict_split(run_dir: Path, split: str, batch_size: int = 8192) -> Predictions:
    """Scores a split with the best weights of a finished run, in this process.

    Args:
        run_dir: what ``train`` wrote.
        split: ``train``, ``valid`` or ``test``.
        batch_size: rows scored at a time.

    Raises:
        CtrkitError: no such run or split, an unfinished run, or its dataset is gone.
    """
    dataset = dataset_of_run(run_dir)
    require_split(dataset, split, run_dir)
    with trained_model(run_dir, batch_size) as (model, worker):
        return predict(model, Loader(dataset, split, batch_size, rank=worker.rank, world=worker.world), worker.device)


def require_split(dataset: Dataset, split: str, run_dir: Path) -> None:
    """Raises CtrkitError if a run's dataset has no rows in a split of that name."""
    if not dataset.rows.get(split):
        known = ", ".join(name for name, rows in dataset.rows.items() if rows)
        raise CtrkitError(f"the dataset of '{run_dir}' has no rows in a split '{split}'", f"Name one of {known}")


@contextmanager
def trained_model(run_dir: Path, batch_size: int = 8192) -> Iterator[tuple[DistributedModelParallel, Worker]]:
    """A finished run's model with its best weights, ``Batch -> logits [batch]``, and the process it lives in; raises as ``load_run``."""
    experiment, inputs, weights = load_run(run_dir)
    with process_group() as worker:
        dense_arch = rebuild(weights, inputs)
        stored = stored_form(dense_arch, weights["tables"])
        model = model_without_optimizer(dense_arch, experiment, worker, stored, batch_size)
        load_full_weights(model, weights["tables"])
        yield model, worker


def model_without_optimizer(
    dense_arch: RankingModel, experiment: Experiment, worker: Worker, stored: nn.ModuleDict | None, batch_size: int = 8192
) -> DistributedModelParallel:
    """``Batch -> logits [batch]``, for predictions alone; its tables are yet to be loaded.

    Args:
        stored: of ``stored_form``.
        batch_size: rows scored at a time, for the planner.
    """
    stateless = experiment.embedding.model_copy(update={"optimizer": "sgd"})
    moved = deepcopy(stored).to(worker.device) if stored is not None else None
    model = CTRModel(dense_arch, stateless, experiment.training.precision, moved)
    return distribute(model, stateless, worker, seed=0, batch_size=batch_size).model


def evaluate_run(run_dir: Path, split: str = "test") -> dict[str, Any]:
    """``{"split": ..., "metrics": ...}`` of a finished run's best weights; raises as ``predict_split``."""
    return {"split": split, "metrics": predict_split(run_dir, split).metrics()}
