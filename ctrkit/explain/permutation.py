"""Permutation importance (Breiman, Random Forests, 2001): how much worse a model predicts when a field's values are shuffled.

All that a field brings is shuffled together among the rows, before it is looked up: a bag or a history as a whole, and with it whatever
the model makes of it and other fields. Each value stays one that the log holds; of two fields that say the same neither is missed much.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.explain.lookups import Lookups
from ctrkit.explain.subject import Subject
from ctrkit.schema import Inputs
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
    subject: Subject,
    look_up: Callable[[Batch], Lookups],
    batch: Batch,
    repeats: int,
    seed: int,
    progress: Callable[[], object] = lambda: None,
) -> Importance:
    """Shuffles every field's values, ``repeats`` times.

    Args:
        batch: the sample; rows of label 1 and of label 0 both among them.
        progress: called after every field of every repeat.
    """
    rows = look_up(batch)
    labels = rows.labels.cpu().numpy()
    draw = torch.Generator().manual_seed(seed)
    untouched = probabilities(subject, rows)
    before = auc(labels, untouched), logloss(labels, untouched)
    drop, rise = np.empty((2, repeats, len(subject.fields)))
    for repeat in range(repeats):
        for number, field in enumerate(subject.fields):
            after = probabilities(subject, look_up(permuted(batch, subject.arch.inputs, field, torch.randperm(batch.rows, generator=draw))))
            drop[repeat, number] = before[0] - auc(labels, after)
            rise[repeat, number] = logloss(labels, after) - before[1]
            progress()
    return Importance(*before, drop, rise)


def permuted(batch: Batch, inputs: Inputs, field: str, order: Tensor) -> Batch:
    """``batch`` with row i's values of a field replaced by those of row ``order[i]``."""
    if field in inputs.numeric_fields:
        dense = batch.dense.clone()
        number = inputs.numeric_fields.index(field)
        dense[:, number] = dense[order, number]
        return replace(batch, dense=dense)
    bags = {name: (jagged.values(), jagged.lengths()) for name, jagged in batch.sparse.to_dict().items()}
    bags[field] = _in_order(*bags[field], order)
    values, lengths = (torch.cat(parts) for parts in zip(*bags.values(), strict=True))
    sparse = KeyedJaggedTensor(keys=list(bags), values=values, lengths=lengths, stride=batch.rows)
    return replace(batch, sparse=sparse)


def _in_order(values: Tensor, lengths: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Bags ``order[0], order[1], ..``: their values and lengths."""
    bags = values.split(lengths.tolist())
    return torch.cat([bags[i] for i in order.tolist()]), lengths[order]


def probabilities(subject: Subject, rows: Lookups) -> np.ndarray:
    """``[rows]`` float32."""
    with torch.no_grad():
        logits = [subject(part.embeddings, part.dense) for part in rows.split(_BATCH_ROWS)]
    return torch.cat(logits).float().sigmoid().cpu().numpy()
