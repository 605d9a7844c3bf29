"""Permutation importance (Breiman, Random Forests, 2001): how much worse a model predicts when a field's values are shuffled.

All that a field brings is shuffled together among the rows: its vectors in every group of tables, a bag or a history as a whole. Each
value stays one that the log holds; of two fields that say the same neither is missed much.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ctrkit.explain.lookups import Lookups
from ctrkit.explain.subject import Subject
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
    subject: Subject, rows: Lookups, repeats: int, seed: int, progress: Callable[[], object] = lambda: None
) -> Importance:
    """Shuffles every field's values, ``repeats`` times.

    Args:
        rows: the sample; rows of label 1 and of label 0 both among them.
        progress: called after every field of every repeat.
    """
    labels = rows.labels.cpu().numpy()
    draw = torch.Generator().manual_seed(seed)
    untouched = probabilities(subject, rows)
    before = auc(labels, untouched), logloss(labels, untouched)
    drop, rise = np.empty((2, repeats, len(subject.fields)))
    for repeat in range(repeats):
        for field in range(len(subject.fields)):
            order = torch.randperm(rows.rows, generator=draw).to(rows.dense.device)
            after = probabilities(subject, permuted(subject, rows, field, order))
            drop[repeat, field] = before[0] - auc(labels, after)
            rise[repeat, field] = logloss(labels, after) - before[1]
            progress()
    return Importance(*before, drop, rise)


def permuted(subject: Subject, rows: Lookups, field: int, order: Tensor) -> Lookups:
    """``rows`` with row i's values of a field replaced by those of row ``order[i]``."""
    number = field - len(subject.id_fields)
    if number >= 0:
        return replace(rows, dense=_exchanged(rows.dense, torch.tensor([number]), order))
    own = {name: (columns == field).nonzero().squeeze(1) for name, columns in subject.columns.items()}
    return replace(rows, embeddings={name: _exchanged(e, own[name], order) for name, e in rows.embeddings.items()})


def probabilities(subject: Subject, rows: Lookups) -> np.ndarray:
    """``[rows]`` float32."""
    with torch.no_grad():
        logits = [subject(part.embeddings, part.dense) for part in rows.split(_BATCH_ROWS)]
    return torch.cat(logits).float().sigmoid().cpu().numpy()


def _exchanged(x: Tensor, columns: Tensor, order: Tensor) -> Tensor:
    if not len(columns):
        return x
    changed, columns = x.clone(), columns.to(x.device)
    changed[:, columns] = x[order][:, columns]
    return changed
