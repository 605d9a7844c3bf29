"""DCN V2: DCN with a matrix in every cross layer::

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l                                  x_0 = concat(v_1 x_1, .., v_n x_n)
    x_{l+1} = x_0 * (U_l V_l^T x_l + b_l) + x_l                            low_rank: columns of U and V
    x_{l+1} = sum_i softmax_i(G x_l) E_i(x_l) + x_l                        experts: low-rank ones, see ctrkit/layers/cross.py
    logit   = <w, concat(x_L, MLP(x_0))> + b,  or  <w, MLP(x_L)> + b       structure: parallel, or stacked

* is elementwise. The paper finds a rank of a quarter of x_0's width as good as full matrices. ``hidden: []`` leaves the cross network alone.
"""

from pydantic import Field, model_validator
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.layers.cross import CrossAndDeep, CrossNetwork, LowRankCross, MatrixCross, MixtureCross, Structure
from ctrkit.layers.fields import FieldVectors
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register("dcnv2", kind="ranking", paper="Wang et al., DCN V2, WWW 2021")
class DCNv2(RankingModel):
    class Settings(schema.Settings):
        structure: Structure = Field("parallel", description="the perceptron beside the cross network, or stacked upon it")
        layers: int = Field(3, ge=1, description="cross layers")
        low_rank: int | None = Field(None, ge=1, description="rank of the cross matrices; full without it")
        experts: int = Field(1, ge=1, description="low-rank experts a layer, mixed by a gate; needs low_rank")
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

        @model_validator(mode="after")
        def _experts_are_low_rank(self) -> "DCNv2.Settings":
            if self.experts > 1 and self.low_rank is None:
                raise ValueError(f"experts ({self.experts}) need low_rank, the rank of each one's matrices")
            return self

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        width = inputs.count * dim

        def layer() -> nn.Module:
            if s.low_rank is None:
                return MatrixCross(width)
            return LowRankCross(width, s.low_rank) if s.experts == 1 else MixtureCross(width, s.low_rank, s.experts)

        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.network = CrossAndDeep(width, CrossNetwork(s.layers, layer), s.structure, s.hidden, s.dropout, s.batch_norm)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.network(self.vectors(embeddings["embedding"], dense).flatten(1))
