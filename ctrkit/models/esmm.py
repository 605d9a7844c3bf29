"""ESMM: conversions after clicks, learned from all impressions rather than from clicked ones alone::

    x      = concat(v_1 x_1, .., v_n x_n)          one look-up for both towers
    pCTR   = sigmoid(MLP_click(x))                 P(click | shown)
    pCVR   = sigmoid(MLP_conversion(x))            P(conversion | click, shown)
    pCTCVR = pCTR pCVR                             P(click and conversion | shown)
    loss   = logloss(click, pCTR) + logloss(click and conversion, pCTCVR)

Give the labels in this order: click, conversion. What is predicted and measured under the second label's name is pCTCVR; pCVR, which has
no loss of its own, is pCTCVR / pCTR. Its logit is written without a quotient of small numbers: with logits a of pCTR and b of pCVR,
``(1 - pCTCVR) / pCTCVR = e^-a + e^-b + e^-(a+b)``.
"""

import torch
from torch import Tensor

from ctrkit import schema
from ctrkit.errors import CtrkitError
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("esmm", kind="multi-task", paper="Ma et al., Entire Space Multi-Task Model, SIGIR 2018")
class ESMM(RankingModel):
    class Settings(schema.Settings):
        hidden: Hidden = (360, 200, 80)
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        if len(inputs.tasks) != 2:
            raise CtrkitError(
                f"model 'esmm' predicts a click and a conversion after it, and there are {len(inputs.tasks)} labels: {', '.join(inputs.tasks)}",
                "Give two labels, the click first; mmoe and ple take more",
            )
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.click = Tower(inputs.count * dim, settings.hidden, outputs=1, dropout=settings.dropout)
        self.conversion = Tower(inputs.count * dim, settings.hidden, outputs=1, dropout=settings.dropout)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        x = self.vectors(embeddings["embedding"], dense).flatten(1)
        a, b = self.click(x).float(), self.conversion(x).float()
        return torch.cat([a, -torch.logsumexp(torch.cat([-a, -b, -a - b], dim=1), dim=1, keepdim=True)], dim=1)

    def targets(self, labels: Tensor) -> Tensor:
        """click, and click and conversion: a conversion without a click counts as none."""
        return labels.cumprod(dim=1)
