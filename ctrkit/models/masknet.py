"""MaskNet: hidden units multiplied by masks made of the row's embeddings e, see ctrkit/layers/mask.py::

    serial     h_0 = layer norm(e), h_k = MaskBlock_k(e, h_{k-1});   logit = <w, h_K> + b
    parallel   h_k = MaskBlock_k(e, layer norm(e));                  logit = MLP(concat(h_1 .. h_K))

A mask is as wide as what it masks, its network ``reduction`` times as wide. Layer norm scales vectors up that start as small as
``embedding.init_std`` makes them: a larger one (0.003 to 0.01) is worth trying.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.mask import FieldNorm, MaskBlock
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("masknet", kind="ranking", paper="Wang et al., MaskNet, DLP-KDD 2021")
class MaskNet(RankingModel):
    class Settings(schema.Settings):
        structure: Literal["serial", "parallel"] = Field("serial", description="mask blocks one upon another, or side by side")
        hidden: Hidden = Field((400, 400, 400), description="serial: units of each block; parallel: of the perceptron upon the blocks")
        blocks: int = Field(3, ge=1, description="parallel: how many blocks")
        block_units: int = Field(64, ge=1, description="parallel: units of a block")
        reduction: float = Field(1.0, gt=0, description="hidden units of a mask's network for each unit it masks")
        dropout: Dropout = 0.0

        @model_validator(mode="after")
        def _blocks(self) -> "MaskNet.Settings":
            if self.structure == "serial" and not self.hidden:
                raise ValueError("structure: serial needs hidden, the units of each block")
            if self.structure == "serial" and {"blocks", "block_units"} & self.model_fields_set:
                raise ValueError("blocks and block_units are of structure: parallel; serial has a block for each entry of hidden")
            return self

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        width = inputs.count * dim
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.norm = FieldNorm(inputs.count, dim)
        sizes = [(width, s.block_units)] * s.blocks if s.structure == "parallel" else zip((width, *s.hidden), s.hidden, strict=False)
        self.blocks = nn.ModuleList(MaskBlock(width, before, units, s.reduction, s.dropout) for before, units in sizes)
        if s.structure == "parallel":
            self.tower = Tower(s.blocks * s.block_units, s.hidden, outputs=1, dropout=s.dropout)
        else:
            self.tower = Tower(s.hidden[-1], (), outputs=1)
        self.parallel = s.structure == "parallel"

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        e, hidden = vectors.flatten(1), self.norm(vectors).flatten(1)
        if self.parallel:
            hidden = torch.cat([block(e, hidden) for block in self.blocks], dim=1)
        else:
            for block in self.blocks:
                hidden = block(e, hidden)
        return self.tower(hidden).squeeze(1)
