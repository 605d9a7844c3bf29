"""GDCN: a cross network that filters each order's crosses by a gate::

    x_{l+1} = x_0 * (W_l x_l + b_l) * sigmoid(G_l x_l) + x_l               x_0 = concat(v_1 x_1, .., v_n x_n)
    logit   = <w, concat(x_L, MLP(x_0))> + b,  or  <w, MLP(x_L)> + b       structure: parallel (GDCN-P), or stacked (GDCN-S)

* is elementwise. The gate lets more layers be stacked than DCN V2 bears.
"""

from pydantic import Field
from torch import Tensor

from ctrkit import schema
from ctrkit.layers.cross import CrossAndDeep, CrossNetwork, GatedCross, Structure
from ctrkit.layers.fields import FieldVectors
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register(
    "gdcn", kind="ranking", paper="Wang et al., Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction, CIKM 2023"
)
class GDCN(RankingModel):
    class Settings(schema.Settings):
        structure: Structure = Field("parallel", description="the perceptron beside the cross network, or stacked upon it")
        layers: int = Field(3, ge=1, description="gated cross layers")
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        width = inputs.count * dim
        cross = CrossNetwork(s.layers, lambda: GatedCross(width))
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.network = CrossAndDeep(width, cross, s.structure, s.hidden, s.dropout, s.batch_norm)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.network(self.vectors(embeddings["embedding"], dense).flatten(1))
