"""Wide & Deep: ``logit = w_0 + sum_j w_j x_j + MLP(concat(v_1 x_1, .., v_n x_n))``.

The paper's wide part also has hand-made cross products; here they are features of the log like any other.
"""

from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register("widedeep", kind="ranking", paper="Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016")
class WideDeep(RankingModel):
    class Settings(schema.Settings):
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.wide = FirstOrder(len(inputs.numeric_fields))
        self.deep = Tower(inputs.count * dim, s.hidden, outputs=1, dropout=s.dropout, batch_norm=s.batch_norm)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        deep = self.deep(self.vectors(embeddings["embedding"], dense).flatten(1)).squeeze(1)
        return self.wide(embeddings["linear"], dense) + deep
