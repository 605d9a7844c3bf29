"""Two towers: a user at a moment and an item, each a vector; their product, over a temperature, is the score.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019::

    u(x) = normalise(MLP(concat(vectors of the user's, the history's and the context's fields)))
    v(y) = normalise(MLP(concat(vectors of the item's fields)))
    s(x, y) = <u(x), v(y)> / temperature

The ids' vectors come from TorchRec tables; a history is looked up in the item's table and is its items' mean.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit import schema
from ctrkit.config import Embedding
from ctrkit.embeddings.tables import Group, Tables, own_outputs, own_tables
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import Tower
from ctrkit.models.base import TabledModel
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.retrieval.batch import TowerBatch
from ctrkit.retrieval.negatives import NegativeSettings
from ctrkit.schema import Inputs


class TowerSettings(schema.Settings):
    """Of both towers and of what they are trained for."""

    hidden: Hidden = (128,)
    width: int = Field(default=64, ge=1, description="of a user's and an item's vector")
    dropout: Dropout = 0.0
    normalise: bool = Field(default=True, description="vectors of length 1, so that a score is a cosine over the temperature")
    temperature: float = Field(default=0.15, gt=0, description="scores are divided by it in the loss")
    loss: Literal["softmax", "infonce", "bpr"] = Field(
        default="softmax", description="sampled softmax with logQ correction; infonce: without it; bpr: pairs"
    )
    negatives: Annotated[
        NegativeSettings, Field(description="in_batch, uniform, popularity, memory: see ctrkit/retrieval/negatives.py")
    ] = Field(default_factory=NegativeSettings)


class FeatureTower(nn.Module):
    """Fields -> a vector. ``[rows, id fields, dim]``, ``[rows, numeric fields]`` -> ``[rows, width]``.

    Args:
        inputs: the side's fields.
        maskable: whether fields may be masked: each then has a vector that is learned for when it is (Yao et al., CIKM 2021, call it the
            default embedding).
    """

    def __init__(self, inputs: Inputs, dim: int, settings: TowerSettings, maskable: bool = False) -> None:
        super().__init__()
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.tower = Tower(inputs.count * dim, settings.hidden, outputs=settings.width, dropout=settings.dropout)
        self.normalise = settings.normalise
        self.default = nn.Parameter(torch.randn(inputs.count, dim) * 0.01) if maskable else None

    def forward(self, embeddings: Tensor, dense: Tensor, masked: Tensor | None = None) -> Tensor:
        """
        Args:
            masked: bool ``[rows, fields]``, id fields first: these fields' vectors are not read.
        """
        x = self.vectors(embeddings, dense)
        if self.default is not None:
            seen = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if masked is None else masked
            x = torch.where(seen.unsqueeze(2), self.default, x)
        out = self.tower(x.flatten(1))
        return functional.normalize(out, dim=1) if self.normalise else out


class TwoTowers(nn.Module):
    """The dense arch: a tower a side.

    Args:
        user: ``(embeddings, dense, masked)`` of the query fields -> ``[queries, width]``.
        item: ``(embeddings, dense, masked)`` of the item fields -> ``[items, width]``.
    """

    user: nn.Module
    item: nn.Module

    def __init__(self, user: nn.Module, item: nn.Module) -> None:
        super().__init__()
        self.user = user
        self.item = item


class RetrievalModel(TabledModel):
    """Tables and towers. ``TowerBatch -> (users [queries, width], items [items, width])``.

    Args:
        device: ``meta`` until the tables are sharded.
    """

    dense_arch: TwoTowers

    def __init__(
        self, towers: TwoTowers, query_inputs: Inputs, item_inputs: Inputs, settings: Embedding, device: torch.device | str = "meta"
    ) -> None:
        super().__init__()
        inputs = both(query_inputs, item_inputs)
        groups = (Group("embedding", settings.dim),)
        self.tables = Tables(own_tables(inputs, groups), own_outputs(inputs, groups), settings, device=device)
        self.dense_arch = towers
        self.query_fields = len(query_inputs.id_fields)

    def forward(self, batch: TowerBatch) -> tuple[Tensor, Tensor]:
        vectors = self.tables(batch.sparse)["embedding"]
        users = self.dense_arch.user(vectors[: batch.queries, : self.query_fields], batch.query_dense, batch.query_mask)
        items = self.dense_arch.item(vectors[: batch.items, self.query_fields :], batch.item_dense, batch.item_mask)
        return users, items


def reload(towers: TwoTowers, weights: Mapping[str, Any], query_inputs: Inputs, item_inputs: Inputs, settings: Embedding) -> RetrievalModel:
    """The trained model in one process, on the CPU, its tables not sharded.

    Args:
        towers: of the method's form; they get the trained weights.
        weights: of a run, see ``ctrkit.retrieval.run.read_weights``.
    """
    towers.load_state_dict(weights["towers"])
    model = RetrievalModel(towers, query_inputs, item_inputs, settings, "cpu")
    with torch.no_grad():
        for name, bag in model.tables.collection.embedding_bags.items():
            full = weights["tables"][model.tables.weight_names[name]]
            cast(nn.EmbeddingBag, bag).weight.zero_()[:, : full.shape[1]].copy_(full)
    return model.eval()


def both(query_inputs: Inputs, item_inputs: Inputs) -> Inputs:
    """The fields of both towers."""
    return Inputs(
        id_fields=(*query_inputs.id_fields, *item_inputs.id_fields),
        numeric_fields=(*query_inputs.numeric_fields, *item_inputs.numeric_fields),
    )
