"""DIN: the user's history seen through the target::

    u_s   = sum_j a(e_j, v) e_j                      ActivationUnit, ctrkit/layers/activation_unit.py
    logit = MLP(concat(v_1 x_1, .., v_n x_n, u_1, .., u_m))

v is the vector of the target, the field ``of`` that sequence s is a history of, and e_j are vectors of the same table. Each sequence has
an activation unit of its own; where it stands in the history does not matter. Units are Dice or PReLU, ctrkit/layers/dice.py.

The paper's mini-batch aware regularisation penalises the rows that a batch looks up: ``embedding: {l2: .., l2_rows: touched}``. Here a
row is penalised each time it is looked up; the paper divides that by how often its id occurs in the log.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.activation_unit import ActivationUnit
from ctrkit.layers.dice import Activation, DiceTower
from ctrkit.layers.fields import FieldVectors
from ctrkit.models.base import RankingModel, with_sequences
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("din", kind="sequence", paper="Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018")
class DIN(RankingModel):
    class Settings(schema.Settings):
        attention_hidden: Hidden = (36,)
        hidden: Hidden = (200, 80)
        activation: Activation = Field("dice", description="of the hidden units: dice or prelu")
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        others, self.targets = with_sequences("din", inputs)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.units = nn.ModuleList(ActivationUnit(dim, s.attention_hidden, s.activation) for _ in inputs.sequences)
        self.tower = DiceTower((others.count + len(self.units)) * dim, s.hidden, s.activation, s.dropout)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim, unpooled=True),)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        fields = embeddings["embedding"]
        parts = [self.vectors(fields, dense).flatten(1)]
        for unit, sequence, target in zip(self.units, self.inputs.sequences, self.targets, strict=True):
            parts.append(unit(fields[:, target], embeddings[f"embedding/{sequence.name}"], embeddings[f"mask/{sequence.name}"]))
        return self.tower(torch.cat(parts, dim=1))
