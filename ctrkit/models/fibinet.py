"""FiBiNET: bilinear interactions of the field vectors, as they are and weighted by their importance in the row::

    e'    = SENet(e)                                         ctrkit/layers/senet.py
    p, q  = (e_i W) * e_j, (e'_i W') * e'_j for all i < j    ctrkit/layers/bilinear.py
    logit = w_0 + sum_j w_j x_j + MLP(concat(p, q))

* is elementwise; ``bilinear`` says how many matrices W there are.
"""

import torch
from pydantic import Field
from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.bilinear import BilinearInteraction, Share
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.senet import SENet
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel, at_least_two_fields
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register("fibinet", kind="ranking", paper="Huang et al., FiBiNET, RecSys 2019")
class FiBiNET(RankingModel):
    """Memory: ``batch x fields (fields - 1) x dim`` numbers go into the perceptron."""

    class Settings(schema.Settings):
        bilinear: Share = Field("interaction", description="one matrix for all pairs, for each left field, or for each interaction (pair)")
        reduction: int = Field(3, ge=1, description="fields a hidden unit of the SENet stands for")
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        fields = at_least_two_fields("fibinet", inputs)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.first_order = FirstOrder(len(inputs.numeric_fields))
        self.senet = SENet(fields, s.reduction)
        self.plain = BilinearInteraction(fields, dim, s.bilinear)
        self.weighted = BilinearInteraction(fields, dim, s.bilinear)
        self.tower = Tower(fields * (fields - 1) * dim, s.hidden, outputs=1, dropout=s.dropout, batch_norm=s.batch_norm)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        products = torch.cat([self.plain(vectors), self.weighted(self.senet(vectors))], dim=1)
        return self.first_order(embeddings["linear"], dense) + self.tower(products.flatten(1)).squeeze(1)
