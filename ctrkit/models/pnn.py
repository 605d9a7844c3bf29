"""Product-based networks: a perceptron on the field vectors and their products::

    IPNN   logit = MLP(concat(v_1 .. v_n, <v_i, v_j> for all i < j))
    OPNN   logit = MLP(concat(v_1 .. v_n, p))       p = sum_i sum_j v_i v_j^T = (sum_i v_i)(sum_j v_j)^T, the superposition trick

The paper also factorises IPNN's first layer over the products to save weights; like FGCNN's paper and the authors' later code, this
one keeps every inner product as an input of its own.
"""

import torch
from torch import Tensor

from ctrkit import schema
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.interaction import PairwiseDots
from ctrkit.layers.product import superposed_outer_product
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs

PAPER = "Qu et al., Product-based Neural Networks for User Response Prediction, ICDM 2016"


class PNNSettings(schema.Settings):
    hidden: Hidden = (400, 400, 400)
    dropout: Dropout = 0.0
    batch_norm: BatchNorm = False


@register("ipnn", kind="ranking", paper=PAPER)
class IPNN(RankingModel):
    Settings = PNNSettings

    def __init__(self, inputs: Inputs, dim: int, settings: PNNSettings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.products = PairwiseDots(inputs.count)
        width = inputs.count * dim + self.products.outputs
        self.tower = Tower(width, s.hidden, outputs=1, dropout=s.dropout, batch_norm=s.batch_norm)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        return self.tower(torch.cat([vectors.flatten(1), self.products(vectors)], dim=1)).squeeze(1)


@register("opnn", kind="ranking", paper=PAPER)
class OPNN(RankingModel):
    Settings = PNNSettings

    def __init__(self, inputs: Inputs, dim: int, settings: PNNSettings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.tower = Tower(inputs.count * dim + dim * dim, s.hidden, outputs=1, dropout=s.dropout, batch_norm=s.batch_norm)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        return self.tower(torch.cat([vectors.flatten(1), superposed_outer_product(vectors)], dim=1)).squeeze(1)
