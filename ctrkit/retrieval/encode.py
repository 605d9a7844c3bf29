"""Trained towers at work: vectors of items and of users, and the recommender they make."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ctrkit.retrieval.batch import TowerBatch, tower_batch
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.rows import Rows
from ctrkit.schema import Inputs

ROWS_AT_ONCE = 4096


class Encoder:
    """
    Args:
        model: ``TowerBatch -> (users, items)``, sharded or not; put into evaluation while it encodes.
    """

    def __init__(self, model: nn.Module, query_inputs: Inputs, item_inputs: Inputs, device: torch.device) -> None:
        self._model, self._device = model, device
        self._query_inputs, self._item_inputs = query_inputs, item_inputs

    def items(self, rows: Rows) -> np.ndarray:
        """float32 ``[items, width]``."""
        return self._encode(rows.count, lambda part: tower_batch(None, rows.take(part), self._query_inputs, self._item_inputs), 1)

    def queries(self, dataset: RetrievalDataset, events: np.ndarray) -> np.ndarray:
        """float32 ``[events, width]``: the users of these events, as they were before them."""

        def batch(part: np.ndarray) -> TowerBatch:
            return tower_batch(dataset.encoded_queries(events[part]), None, self._query_inputs, self._item_inputs)

        return self._encode(len(events), batch, 0)

    def _encode(self, count: int, batch: Callable[[np.ndarray], TowerBatch], side: int) -> np.ndarray:
        training = self._model.training
        self._model.eval()
        parts: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, count, ROWS_AT_ONCE):
                part = np.arange(start, min(start + ROWS_AT_ONCE, count))
                parts.append(self._model(batch(part).to(self._device))[side].cpu())
        self._model.train(training)
        return torch.cat(parts).numpy()


class TowerRecommender:
    """Scores by the product of vectors. Users are encoded when they are asked for."""

    def __init__(self, encoder: Encoder, dataset: RetrievalDataset) -> None:
        self._encoder, self._dataset = encoder, dataset
        self._items = encoder.items(dataset.encoded_items)

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        return self._encoder.queries(self._dataset, queries.event[which]) @ self._items.T
