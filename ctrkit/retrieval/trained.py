"""A trained method that keeps its weights: what evaluates and exports it.

Whatever the method, it is served as two graphs: of a user, and of an item, each to a vector, whose product is the score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ctrkit.embeddings.tables import Group
from ctrkit.export.graph import Exportable
from ctrkit.export.twin import Twin
from ctrkit.retrieval.batch import tower_batch
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import Catalogue, RetrievalDataset
from ctrkit.retrieval.encode import Encoder, TowerRecommender
from ctrkit.retrieval.evaluate import Recommender
from ctrkit.retrieval.rows import Rows
from ctrkit.retrieval.towers import TwoTowers, reload
from ctrkit.schema import Inputs

Vectors = Callable[[Rows], np.ndarray]
"""The trained model: encoded rows of a side -> float32 ``[rows, width]``."""


@dataclass(frozen=True)
class Side:
    """Users or items, as they are exported.

    Attributes:
        inputs: fields that the model reads of them.
        twin: encoded features -> their vectors, in plain tensors.
        reference: the trained model, which it must agree with.
    """

    inputs: Inputs
    twin: Exportable
    reference: Vectors


class Trained(Protocol):
    """A method with its best weights."""

    @property
    def width(self) -> int:
        """Of a user's and an item's vector."""
        ...

    def recommender(self, dataset: RetrievalDataset) -> Recommender: ...

    def sides(self) -> tuple[Side, Side]:
        """Of the user and of the item."""
        ...


class TrainedTowers:
    """Towers of any method.

    Args:
        towers: of the method's form; they get the trained weights.
        weights: ``{"towers": state_dict, "tables": {"embedding/<field>": [rows, dim]}}``.
    """

    def __init__(
        self, towers: TwoTowers, width: int, experiment: RetrievalExperiment, catalogue: Catalogue, weights: Mapping[str, Any]
    ) -> None:
        self.width = width
        self._towers, self._tables, self._dim = towers, weights["tables"], experiment.embedding.dim
        self._inputs = catalogue.query_inputs, catalogue.item_inputs
        self._model = reload(towers, weights, *self._inputs, experiment.embedding)

    def recommender(self, dataset: RetrievalDataset) -> TowerRecommender:
        return TowerRecommender(Encoder(self._model, *self._inputs, torch.device("cpu")), dataset)

    def sides(self) -> tuple[Side, Side]:
        def users(rows: Rows) -> np.ndarray:
            with torch.no_grad():
                return self._model(tower_batch(rows, None, *self._inputs))[0].numpy()

        def items(rows: Rows) -> np.ndarray:
            with torch.no_grad():
                return self._model(tower_batch(None, rows, *self._inputs))[1].numpy()

        queries, catalogue = self._inputs
        return (
            Side(queries, self._twin(queries, self._towers.user), users),
            Side(catalogue, self._twin(catalogue, self._towers.item), items),
        )

    def _twin(self, inputs: Inputs, tower: nn.Module) -> Twin:
        """A history has a copy of the item's table in its tower's graph: the item's feature itself is not there."""
        own = {f"embedding/{field.name}": self._tables[f"embedding/{field.table}"] for field in inputs.id_fields}
        fields = tuple(field.model_copy(update={"of": None, "length": 0}) for field in inputs.id_fields)
        plain = inputs.model_copy(update={"id_fields": fields})
        return Twin(plain, own, _DenseArch(tower), (Group("embedding", self._dim),), last=nn.Identity())


class _DenseArch(nn.Module):
    """A tower as a dense arch."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.tower(embeddings["embedding"], dense)
