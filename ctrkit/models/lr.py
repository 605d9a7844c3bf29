"""Logistic regression: ``logit = w_0 + sum_j w_j x_j``, one weight an id. Linear in the number of fields; the floor of every comparison."""

from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FirstOrder
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.schema import Inputs


@register("lr", kind="ranking", paper="Richardson et al., Predicting Clicks, WWW 2007")
class LR(RankingModel):
    def __init__(self, inputs: Inputs, dim: int, settings: schema.Settings) -> None:
        super().__init__(inputs, dim, settings)
        self.first_order = FirstOrder(len(inputs.numeric_fields))

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("linear", 1),)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.first_order(embeddings["linear"], dense)
