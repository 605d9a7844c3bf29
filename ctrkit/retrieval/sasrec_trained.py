"""SASRec with its best weights: a user is what his history says of the next item, an item is its vector."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctrkit.export.lookup import Bag, Places
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import Catalogue, RetrievalDataset
from ctrkit.retrieval.rows import Rows
from ctrkit.retrieval.sasrec import SasRec, SasRecRecommender, SasRecSettings, history_of, item_of, user_vectors
from ctrkit.retrieval.trained import Side
from ctrkit.schema import PADDING_ID, IdField, Inputs


class TrainedSasRec:
    """
    Args:
        weights: the model's ``state_dict``.
    """

    def __init__(self, experiment: RetrievalExperiment, catalogue: Catalogue, weights: Mapping[str, Any], settings: SasRecSettings) -> None:
        self.width = settings.factors
        self._item, self._history = item_of(catalogue), history_of(catalogue)
        self._model = SasRec(self._item.rows, self._history.length, settings).eval()
        self._model.load_state_dict(weights)

    def recommender(self, dataset: RetrievalDataset) -> SasRecRecommender:
        return SasRecRecommender(self._model, dataset)

    def sides(self) -> tuple[Side, Side]:
        table = self._model.items.weight.detach()

        def users(rows: Rows) -> np.ndarray:
            return user_vectors(self._model, rows.bags[self._history.name], self._history.length)

        def items(rows: Rows) -> np.ndarray:
            return table[torch.tensor(rows.ids[self._item.name])].numpy()

        return (
            Side(Inputs(id_fields=(self._history,), numeric_fields=()), UserTwin(self._model, self._history), users),
            Side(Inputs(id_fields=(self._item,), numeric_fields=()), ItemTwin(table, self._item), items),
        )


class UserTwin(nn.Module):
    """A history in, the user's vector out."""

    crossed = 0

    def __init__(self, model: SasRec, history: IdField) -> None:
        super().__init__()
        self.model, self.history = model, history
        self.inputs = Inputs(id_fields=(history,), numeric_fields=())
        self.input_names = [f"{history.name}@ids", f"{history.name}.lengths"]

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """
        Args:
            encoded: ids of all histories ``[total]``, 0 for a dropped value, and how many are each row's ``[rows]``.
        """
        ids, lengths = (encoded[name] for name in self.input_names)
        right = Places(Bag(self.history, ids, lengths)).ids
        kept = (right != PADDING_ID).sum(1)
        place = torch.arange(self.history.length)
        left = right.gather(1, (place + self.history.length - kept.unsqueeze(1)).clamp(max=self.history.length - 1))
        return self.model.users(left * (place < kept.unsqueeze(1)), kept)


class ItemTwin(nn.Module):
    """An item's id in, its vector out."""

    crossed = 0
    table: Tensor

    def __init__(self, table: Tensor, item: IdField) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.inputs = Inputs(id_fields=(item,), numeric_fields=())
        self.input_names = [f"{item.name}@id"]

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        return nn.functional.embedding(encoded[self.input_names[0]], self.table)
