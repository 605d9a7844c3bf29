"""DIN: the user's history seen through the target::

    u_s   = sum_j a(e_j, v) e_j                      ActivationUnit, ctrkit/layers/activation_unit.py
    logit = MLP(concat(v_1 x_1, .., v_n x_n, u_1, .., u_m))

v is the vector of the target, the field ``of`` that sequence s is a history of, and e_j are vectors of the same table. Each sequence has
an activation unit of its own; where it stands in the history does not matter. Units are Dice or PReLU, ctrkit/layers/dice.py.

The paper's mini-batch aware regularisation penalises the rows that a batch looks up: ``embedding: {l2: .., l2_rows: touched}``. Here a
row is penalised each time it is looked up; the paper divides that by how often its id occurs in the log.
"""

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.activation_unit import ActivationUnit
from ctrkit.layers.dice import Activation, DiceTower
from ctrkit.layers.fields import FieldVectors
from ctrkit.models.base import PlaceWeights, RankingModel, histories, with_sequences
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
        others, self.target_places = with_sequences("din", inputs)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.units = nn.ModuleList(ActivationUnit(dim, s.attention_hidden, s.activation) for _ in inputs.sequences)
        self.tower = DiceTower((others.count + len(self.units)) * dim, s.hidden, s.activation, s.dropout)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim, unpooled=True),)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        fields = embeddings["embedding"]
        seen = histories(self.inputs, self.target_places, embeddings)
        interests = [unit(*history) for unit, history in zip(self.units, seen, strict=True)]
        return self.tower(torch.cat([self.vectors(fields, dense).flatten(1), *interests], dim=1))

    def explanations(self, embeddings: dict[str, Tensor], dense: Tensor) -> tuple[PlaceWeights, ...]:
        """The weights a(e_j, v) (figure 5 of the paper)."""
        about = (
            "Each past value's vector is multiplied by its weight before they are summed: a value of a weight near 0 is passed over. "
            "Weights may be negative and need not sum to 1: large ones tell of a strong interest."
        )
        seen = histories(self.inputs, self.target_places, embeddings)
        return tuple(
            PlaceWeights(sequence.name, about, {"weight": cast(ActivationUnit, unit).weights(*history)}, normalised=False)
            for sequence, unit, history in zip(self.inputs.sequences, self.units, seen, strict=True)
        )
