"""Permutation importance (Breiman, Random Forests, 2001): how much worse a model predicts when a field's values are shuffled.

All that a field brings is shuffled together among the rows: its vectors in every group of tables, a bag as a whole. Each value
stays one that the log holds; of two fields that say the same neither is missed much.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ctrkit.explain.lookups import Lookups
from ctrkit.models.base import RankingModel
from ctrkit.training.metrics import auc, logloss

_BATCH_ROWS = 2048


@dataclass(frozen=True)
class Importance:
    """``auc_drop`` and ``logloss_rise`` ``[repeats, fields]`` against the metrics of the untouched rows."""

    auc: float
    logloss: float
    auc_drop: np.ndarray
    logloss_rise: np.ndarray


def permutation_importance(
    model: RankingModel, rows: Lookups, repeats: int, seed: int, progress: Callable[[], object] = lambda: None
) -> Importance:
    """Shuffles every field's values, ``repeats`` times.

    Args:
        rows: the sample; clicks and other rows both among them.
        progress: called after every field of every repeat.
    """
    labels = rows.labels.cpu().numpy()
    draw = torch.Generator().manual_seed(seed)
    untouched = probabilities(model, rows)
    before = auc(labels, untouched), logloss(labels, untouched)
    drop, rise = np.empty((2, repeats, model.inputs.count))
    for repeat in range(repeats):
        for field in range(model.inputs.count):
            order = torch.randperm(rows.rows, generator=draw).to(rows.dense.device)
            after = probabilities(model, permuted(rows, field, order))
            drop[repeat, field] = before[0] - auc(labels, after)
            rise[repeat, field] = logloss(labels, after) - before[1]
            progress()
    return Importance(*before, drop, rise)


def permuted(rows: Lookups, field: int, order: Tensor) -> Lookups:
    """``rows`` with row i's values of a field replaced by those of row ``order[i]``."""
    id_fields = next(iter(rows.embeddings.values())).shape[1] if rows.embeddings else 0
    if field >= id_fields:
        return replace(rows, dense=_column_permuted(rows.dense, field - id_fields, order))
    return replace(rows, embeddings={name: _column_permuted(e, field, order) for name, e in rows.embeddings.items()})


def probabilities(model: RankingModel, rows: Lookups) -> np.ndarray:
    """``[rows]`` float32."""
    with torch.no_grad():
        logits = [model(part.embeddings, part.dense) for part in rows.split(_BATCH_ROWS)]
    return torch.cat(logits).float().sigmoid().cpu().numpy()


def _column_permuted(x: Tensor, column: int, order: Tensor) -> Tensor:
    changed = x.clone()
    changed[:, column] = x[order, column]
    return changed
