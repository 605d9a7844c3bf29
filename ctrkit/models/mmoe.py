"""MMoE: experts that all tasks share, mixed for each task by a gate of its own::

    x       = concat(v_1 x_1, .., v_n x_n)
    g_k     = softmax(W_k x)                       weights of the experts for task k
    logit_k = tower_k(sum_i g_k,i expert_i(x))

With one expert all gates are 1: the shared-bottom model.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.layers.experts import Experts, Gate, mix
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("mmoe", kind="multi-task", paper="Ma et al., Multi-gate Mixture-of-Experts, KDD 2018")
class MMoE(RankingModel):
    class Settings(schema.Settings):
        experts: int = Field(8, ge=1, description="experts that all tasks share")
        expert_hidden: Hidden = Field((128,), min_length=1, description="units of each hidden layer of an expert")
        hidden: Hidden = Field((64,), description="units of each hidden layer of a task's tower")
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        width = inputs.count * dim
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.experts = Experts(width, s.experts, s.expert_hidden, s.dropout)
        self.gates = nn.ModuleList(Gate(width, s.experts) for _ in inputs.tasks)
        self.towers = nn.ModuleList(Tower(s.expert_hidden[-1], s.hidden, outputs=1, dropout=s.dropout) for _ in inputs.tasks)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        x = self.vectors(embeddings["embedding"], dense).flatten(1)
        experts = self.experts(x)
        return torch.cat([tower(mix(gate(x), experts)) for gate, tower in zip(self.gates, self.towers, strict=True)], dim=1)
