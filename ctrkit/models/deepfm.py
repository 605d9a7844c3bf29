"""DeepFM: ``logit = FM(x) + MLP(concat(v_1 x_1, .., v_n x_n))``, both parts on the same embeddings."""

from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.interaction import sum_of_products
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("deepfm", kind="ranking", paper="Guo et al., DeepFM, IJCAI 2017")
class DeepFM(RankingModel):
    class Settings(schema.Settings):
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.first_order = FirstOrder(len(inputs.numeric_fields))
        self.tower = Tower(inputs.count * dim, settings.hidden, outputs=1, dropout=settings.dropout)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        fm = self.first_order(embeddings["linear"], dense) + sum_of_products(vectors)
        return fm + self.tower(vectors.flatten(1)).squeeze(1)
