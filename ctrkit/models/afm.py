"""Attentional factorization machine: FM whose pairs are weighted by attention::

    a_ij  = softmax over pairs of <h, relu(W (v_i * v_j) + b)>
    logit = w_0 + sum_j w_j x_j + <p, sum_{i<j} a_ij (v_i * v_j) x_i x_j>

The weights a depend on the row: the same pair counts for more or less beside other pairs.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.product import PairwiseProducts
from ctrkit.layers.rows import by_rows
from ctrkit.layers.tower import linear
from ctrkit.models.base import RankingModel, at_least_two_fields
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout
from ctrkit.schema import Inputs


@register("afm", kind="ranking", paper="Xiao et al., Attentional Factorization Machines, IJCAI 2017")
class AFM(RankingModel):
    class Settings(schema.Settings):
        attention_dim: int = Field(32, ge=1, description="hidden units of the attention network")
        dropout: Dropout = Field(0.0, description="share of the pooled pairs' dims left out in a training step")

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.first_order = FirstOrder(len(inputs.numeric_fields))
        self.products = PairwiseProducts(at_least_two_fields("afm", inputs))
        self.attention = nn.Sequential(linear(dim, s.attention_dim), nn.ReLU(), linear(s.attention_dim, 1, bias=False))
        self.dropout = FastDropout(s.dropout)
        self.output = linear(dim, 1, bias=False)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        pooled = by_rows(self._attend, self.vectors(embeddings["embedding"], dense))
        return self.first_order(embeddings["linear"], dense) + self.output(self.dropout(pooled)).squeeze(1)

    def _attend(self, vectors: Tensor) -> Tensor:
        products = self.products(vectors)
        return (torch.softmax(self.attention(products), dim=1) * products).sum(1)
