"""xDeepFM: ``logit = w_0 + sum_j w_j x_j + <w, CIN(v_1 .. v_n)> + MLP(concat(v_1 .. v_n))``, see ctrkit/layers/cin.py."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.cin import CompressedInteraction
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.tower import Tower, linear
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register("xdeepfm", kind="ranking", paper="Lian et al., xDeepFM, KDD 2018")
class XDeepFM(RankingModel):
    class Settings(schema.Settings):
        maps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
            (32, 32, 32), min_length=1, description="feature maps of each CIN layer; memory grows with maps x fields x dim"
        )
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.first_order = FirstOrder(len(inputs.numeric_fields))
        self.cin = CompressedInteraction(inputs.count, s.maps)
        self.cin_output = linear(self.cin.outputs, 1, bias=False)
        self.tower = Tower(inputs.count * dim, s.hidden, outputs=1, dropout=s.dropout, batch_norm=s.batch_norm)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        logit = self.cin_output(self.cin(vectors)) + self.tower(vectors.flatten(1))
        return self.first_order(embeddings["linear"], dense) + logit.squeeze(1)
