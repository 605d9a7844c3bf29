"""Field-weighted factorization machine: FM with a weight for every pair of fields::

    logit = w_0 + sum_j <v_j, w_j> x_j + sum_{i<j} r_ij <v_i, v_j> x_i x_j

The first-order weights are one vector a field (the paper's FiLV, which it recommends), or ``first_order: id`` one number an id, as in
FM. With ``first_order: id`` and all r at 1, where they start, it is FM.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.interaction import PairwiseDots
from ctrkit.layers.tower import linear
from ctrkit.models.base import RankingModel, at_least_two_fields
from ctrkit.models.registry import register
from ctrkit.schema import Inputs


@register("fwfm", kind="ranking", paper="Pan et al., Field-weighted Factorization Machines, WWW 2018")
class FwFM(RankingModel):
    class Settings(schema.Settings):
        first_order: Literal["field", "id"] = Field("field", description="weights of a field's vector, or one weight an id as in FM")

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.dots = PairwiseDots(at_least_two_fields("fwfm", inputs))
        self.weights = nn.Parameter(torch.ones(self.dots.outputs))
        by_id = settings.first_order == "id"
        self.first_order = FirstOrder(len(inputs.numeric_fields)) if by_id else linear(inputs.count * dim, 1)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), *((Group("linear", 1),) if isinstance(self.first_order, FirstOrder) else ()))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        second_order = self.dots(vectors) @ self.weights
        if isinstance(self.first_order, FirstOrder):
            return self.first_order(embeddings["linear"], dense) + second_order
        return self.first_order(vectors.flatten(1)).squeeze(1) + second_order
