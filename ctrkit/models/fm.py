"""Factorization machine: ``logit = w_0 + sum_j w_j x_j + sum_{i<j} <v_i, v_j> x_i x_j``."""

from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.interaction import sum_of_products
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.schema import Inputs


@register("fm", kind="ranking", paper="Rendle, Factorization Machines, ICDM 2010")
class FM(RankingModel):
    def __init__(self, inputs: Inputs, dim: int, settings: schema.Settings) -> None:
        super().__init__(inputs, dim, settings)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.first_order = FirstOrder(len(inputs.numeric_fields))

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        return self.first_order(embeddings["linear"], dense) + sum_of_products(vectors)
