"""What the towers are given: users at some moments, and items, each with rows of their own, in one batch of ids.

Users and items are looked up together, so that a table that both use - of an item's id and of histories - gets one gradient a step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.retrieval.rows import Rows, offsets_of
from ctrkit.schema import Inputs


@dataclass
class TowerBatch:
    """
    Attributes:
        sparse: ids of the query fields, then of the item fields; as many rows as the larger side has, the other's last ones being empty.
        queries, items: rows of each side.
        query_dense: float32 ``[queries, numeric fields]``; NaN is missing.
        item_dense: ``[items, numeric fields]``.
        item_mask: bool ``[items, item fields]``, id fields first: what the item tower may not see. None: it sees all.
        query_mask: the same of the user tower, ``[queries, query fields]``.
    """

    sparse: KeyedJaggedTensor
    queries: int
    items: int
    query_dense: Tensor
    item_dense: Tensor
    item_mask: Tensor | None = None
    query_mask: Tensor | None = None

    def to(self, device: torch.device) -> "TowerBatch":
        masks = (None if mask is None else mask.to(device) for mask in (self.item_mask, self.query_mask))
        dense = (self.query_dense.to(device), self.item_dense.to(device))
        return TowerBatch(self.sparse.to(device), self.queries, self.items, *dense, *masks)


def tower_batch(
    queries: Rows | None,
    items: Rows | None,
    query_inputs: Inputs,
    item_inputs: Inputs,
    item_mask: np.ndarray | None = None,
    query_mask: np.ndarray | None = None,
) -> TowerBatch:
    """Rows of both sides -> a batch. A masked id is not in it at all, and a masked number is missing.

    Args:
        queries, items: None is no rows of that side.
        item_mask: bool ``[items, item fields]``, id fields first.
        query_mask: bool ``[queries, query fields]``.
    """
    query_rows, item_rows = queries.count if queries else 0, items.count if items else 0
    total = max(query_rows, item_rows)
    parts = _parts(queries, query_inputs, query_mask) + _parts(items, item_inputs, item_mask)
    lengths = [np.concatenate([own, np.zeros(total - len(own), np.int32)]) for _, own in parts]
    sparse = KeyedJaggedTensor(
        keys=[field.name for field in (*query_inputs.id_fields, *item_inputs.id_fields)],
        values=torch.from_numpy(np.concatenate([values for values, _ in parts]) if parts else np.empty(0, np.int64)),
        lengths=torch.from_numpy(np.concatenate(lengths) if lengths else np.empty(0, np.int32)),
        stride=total,
    )
    return TowerBatch(
        sparse,
        query_rows,
        item_rows,
        torch.from_numpy(_dense(queries, query_inputs, query_mask)),
        torch.from_numpy(_dense(items, item_inputs, item_mask)),
        None if item_mask is None else torch.from_numpy(item_mask),
        None if query_mask is None else torch.from_numpy(query_mask),
    )


def _parts(rows: Rows | None, inputs: Inputs, masked: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(values, lengths int32 ``[rows]``) of each id field."""
    if rows is None:
        return [(np.empty(0, np.int64), np.empty(0, np.int32))] * len(inputs.id_fields)
    parts = []
    for number, field in enumerate(inputs.id_fields):
        if field.multi_valued:
            values, offsets = rows.bags[field.name]
        else:
            values, offsets = rows.ids[field.name], offsets_of(np.ones(rows.count, np.int64))
        lengths = np.diff(offsets)
        if masked is not None:
            kept = ~masked[:, number]
            values, lengths = values[np.repeat(kept, lengths)], lengths * kept
        parts.append((values, lengths.astype(np.int32)))
    return parts


def _dense(rows: Rows | None, inputs: Inputs, masked: np.ndarray | None) -> np.ndarray:
    if rows is None:
        return np.zeros((0, len(inputs.numeric_fields)), np.float32)
    dense = rows.dense(inputs)
    return dense if masked is None else np.where(masked[:, len(inputs.id_fields) :], np.float32(np.nan), dense)
