"""Embeddings and a multi-layer perceptron: ``logit = MLP(concat(v_1 x_1, .., v_n x_n))``."""

from torch import Tensor

from ctrkit import schema
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("dnn", kind="ranking", paper="Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016")
class DNN(RankingModel):
    class Settings(schema.Settings):
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.tower = Tower(inputs.count * dim, settings.hidden, outputs=1, dropout=settings.dropout)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.tower(self.vectors(embeddings["embedding"], dense).flatten(1)).squeeze(1)
