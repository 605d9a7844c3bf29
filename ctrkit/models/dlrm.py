"""DLRM::

z     = bottom MLP(numeric fields)                               [dim]
logit = over MLP(concat(z, <u, v> for all pairs of z, v_1, .., v_n))
"""

import torch
from torch import Tensor

from ctrkit import schema
from ctrkit.layers.interaction import PairwiseDots
from ctrkit.layers.numeric import FillMissing
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel, at_least_two_fields
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("dlrm", kind="ranking", paper="Naumov et al., Deep Learning Recommendation Model, arXiv 1906.00091, 2019")
class DLRM(RankingModel):
    """Without numeric fields there is no bottom arch and no z."""

    class Settings(schema.Settings):
        bottom_hidden: Hidden = (256, 128)
        hidden: Hidden = (400, 400, 400)
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        numeric = len(inputs.numeric_fields)
        if not numeric:
            at_least_two_fields("dlrm", inputs)
        self.fill = FillMissing(numeric) if numeric else None
        self.bottom = Tower(numeric, (*settings.bottom_hidden, dim), dropout=settings.dropout) if numeric else None
        self.dots = PairwiseDots(len(inputs.id_fields) + (1 if numeric else 0))
        self.over = Tower(self.dots.outputs + (dim if numeric else 0), settings.hidden, outputs=1, dropout=settings.dropout)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = embeddings["embedding"]
        if self.fill is None or self.bottom is None:
            return self.over(self.dots(vectors)).squeeze(1)
        z = self.bottom(self.fill(dense))
        dots = self.dots(torch.cat([z.unsqueeze(1), vectors], dim=1))
        return self.over(torch.cat([z, dots], dim=1)).squeeze(1)
