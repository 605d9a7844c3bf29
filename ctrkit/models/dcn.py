"""DCN: a cross network beside a perceptron::

    x_{l+1} = x_0 <x_l, w_l> + b_l + x_l              x_0 = concat(v_1 x_1, .., v_n x_n)
    logit   = <w, concat(x_L, MLP(x_0))> + b

``hidden: []`` leaves the cross network alone.
"""

from pydantic import Field
from torch import Tensor

from ctrkit import schema
from ctrkit.layers.cross import CrossAndDeep, CrossNetwork, VectorCross
from ctrkit.layers.fields import FieldVectors
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register("dcn", kind="ranking", paper="Wang et al., Deep & Cross Network for Ad Click Predictions, ADKDD 2017")
class DCN(RankingModel):
    class Settings(schema.Settings):
        layers: int = Field(3, ge=1, description="cross layers")
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        width = inputs.count * dim
        cross = CrossNetwork(s.layers, lambda: VectorCross(width))
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.network = CrossAndDeep(width, cross, "parallel", s.hidden, s.dropout, s.batch_norm)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.network(self.vectors(embeddings["embedding"], dense).flatten(1))
