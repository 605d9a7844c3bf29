"""A search's decision: process 0 takes it, and all processes together score the forms of the model that it wants to compare."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.models.base import Decision
from ctrkit.models.search import Search
from ctrkit.training.distributed import Worker
from ctrkit.training.evaluate import predict_batches
from ctrkit.training.monitor import monitored


def decide(
    search: Search, weights: Mapping[str, Any], model: DistributedModelParallel, valid: Loader, monitor: str, worker: Worker
) -> Decision | None:
    """The decision, in process 0; every process calls it.

    Args:
        weights: of the search, in process 0.
        model: of the search. Its buffers, but for the tables', are made the same in all processes before each scoring.
        valid: not shuffled.
        monitor: ``training.monitor``.

    Raises:
        CtrkitError: the monitored metric is not defined on the rows that it is asked for.
    """
    batches = cache(lambda rows: spread(valid, rows))

    def score(rows: int) -> float:
        for buffer in search.model.buffers():
            dist.broadcast(buffer, src=0)
        return monitored(predict_batches(model, batches(rows), worker).metrics(), monitor)

    def ask(rows: int) -> float:
        _tell(rows)
        return score(rows)

    if worker.rank == 0:
        decision = search.decide(weights, ask)
        _tell(None)
        return decision
    while (rows := _tell(None)) is not None:
        score(rows)
    return None


def spread(loader: Loader, rows: int) -> list[Batch]:
    """Batches of about so many rows, at least one, evenly spread over a split."""
    count = min(math.ceil(rows / loader.batch_rows(0)), len(loader))
    chosen = {k * len(loader) // count for k in range(count)}
    return [batch for number, batch in enumerate(loader.iter()) if number in chosen]


def _tell(rows: int | None) -> int | None:
    """What process 0 tells the others: how many rows to score, or None at the end."""
    told = [rows]
    dist.broadcast_object_list(told, src=0)
    return told[0]
