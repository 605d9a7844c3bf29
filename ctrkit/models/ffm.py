"""Field-aware factorization machine: a field has another vector for each field it meets::

    logit = w_0 + sum_j w_j x_j + sum_{i<j} <v_{i,j}, v_{j,i}> x_i x_j         v_{i,j}: field i's vector towards field j

The n - 1 vectors of a value lie side by side in one table a field, ``(n - 1) dim`` wide: one look-up brings them all, and a table
stays one table to shard. Memory is n - 1 times that of FM at the same ``embedding.dim``; the paper uses a dim of 4.
"""

import torch
from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.models.base import RankingModel, at_least_two_fields
from ctrkit.models.registry import register
from ctrkit.schema import Inputs


@register("ffm", kind="ranking", paper="Juan et al., Field-aware Factorization Machines for CTR Prediction, RecSys 2016")
class FFM(RankingModel):
    left: Tensor
    right: Tensor

    def __init__(self, inputs: Inputs, dim: int, settings: schema.Settings) -> None:
        super().__init__(inputs, dim, settings)
        others = at_least_two_fields("ffm", inputs) - 1
        self.vectors = FieldVectors(len(inputs.numeric_fields), others * dim)
        self.first_order = FirstOrder(len(inputs.numeric_fields))
        i, j = torch.triu_indices(inputs.count, inputs.count, offset=1)
        self.register_buffer("left", i * others + j - 1, persistent=False)  # a field's own place is left out: j stands at j - 1
        self.register_buffer("right", j * others + i, persistent=False)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("field_aware", (self.inputs.count - 1) * dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["field_aware"], dense).unflatten(2, (-1, self.dim)).flatten(1, 2)
        products = vectors.index_select(1, self.left) * vectors.index_select(1, self.right)
        return self.first_order(embeddings["linear"], dense) + products.sum((1, 2))
