"""PLE: customised gate control (CGC) in layers; each task has experts of its own beside the shared ones::

    x_k^0 = x_s^0 = concat(v_1 x_1, .., v_n x_n)
    S_k^j   = experts of task k on x_k^(j-1), and the shared experts on x_s^(j-1)         of extraction layer j
    x_k^j   = sum_i softmax(W_k^j x_k^(j-1))_i S_k,i^j                                    for task k
    x_s^j   = the same over the experts of all tasks and the shared ones, gated by x_s^(j-1)     but in the last layer
    logit_k = tower_k(x_k^last)

With one layer it is the paper's CGC model; without shared experts every task is a model of its own.
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


@register("ple", kind="multi-task", paper="Tang et al., Progressive Layered Extraction, RecSys 2020")
class PLE(RankingModel):
    class Settings(schema.Settings):
        layers: int = Field(2, ge=1, description="extraction layers")
        shared_experts: int = Field(2, ge=0, description="experts of a layer that all tasks share")
        task_experts: int = Field(2, ge=1, description="experts of a layer that one task has alone")
        expert_hidden: Hidden = Field((128,), min_length=1, description="units of each hidden layer of an expert")
        hidden: Hidden = Field((64,), description="units of each hidden layer of a task's tower")
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s, tasks = settings, len(inputs.tasks)
        width, units = inputs.count * dim, s.expert_hidden[-1]
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.extraction = nn.ModuleList(
            Extraction(width if layer == 0 else units, tasks, s, last=layer == s.layers - 1) for layer in range(s.layers)
        )
        self.towers = nn.ModuleList(Tower(units, s.hidden, outputs=1, dropout=s.dropout) for _ in range(tasks))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        x = self.vectors(embeddings["embedding"], dense).flatten(1)
        of_tasks, shared = [x] * len(self.towers), x
        for layer in self.extraction:
            of_tasks, shared = layer(of_tasks, shared)
        return torch.cat([tower(task) for tower, task in zip(self.towers, of_tasks, strict=True)], dim=1)


class Extraction(nn.Module):
    """One extraction layer. ``[batch, inputs]`` for each task and ``[batch, inputs]`` for what they share -> the same of ``units``.

    Args:
        last: nothing reads what is shared after it, so it has no gate for that and returns what came in.
    """

    def __init__(self, inputs: int, tasks: int, settings: PLE.Settings, last: bool) -> None:
        super().__init__()
        s = settings
        self.task_experts = nn.ModuleList(Experts(inputs, s.task_experts, s.expert_hidden, s.dropout) for _ in range(tasks))
        self.shared_experts = Experts(inputs, s.shared_experts, s.expert_hidden, s.dropout) if s.shared_experts else None
        self.task_gates = nn.ModuleList(Gate(inputs, s.task_experts + s.shared_experts) for _ in range(tasks))
        has_gate = s.shared_experts and not last
        self.shared_gate = Gate(inputs, tasks * s.task_experts + s.shared_experts) if has_gate else None

    def forward(self, of_tasks: list[Tensor], shared: Tensor) -> tuple[list[Tensor], Tensor]:
        own = [experts(x) for experts, x in zip(self.task_experts, of_tasks, strict=True)]
        common = [self.shared_experts(shared)] if self.shared_experts is not None else []
        mixed = [
            mix(gate(x), torch.cat([experts, *common], dim=1)) for gate, x, experts in zip(self.task_gates, of_tasks, own, strict=True)
        ]
        if self.shared_gate is not None:
            shared = mix(self.shared_gate(shared), torch.cat([*own, *common], dim=1))
        return mixed, shared
