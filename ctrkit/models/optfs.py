"""OptFS: which feature values a model needs, one gate each; it is trained twice::

    search    e_j = g(c_j) v_j                  g(c) = sigmoid(tau c) / sigmoid(c_0)           any model's embeddings, gated
              tau = temperature^(t / (T - 1))   in epoch t = 0 .. T - 1
              loss = cross entropy + l1 sum_j sigmoid(tau c_j)                                 over all feature values
    decision  a value is kept if c_j > 0
    retrain   the same model on the kept values alone, from the weights after ``rewind_epoch`` epochs of the search

Every feature value has a gate, and so has every numeric field. A gate is on all of a value's rows, its vector and its first-order weight
alike; the gate of an interaction is the product of its features' gates. Gates start at c_0 = 0.5, as in the authors' code.

The schedule is the authors' code's, where the last epoch has the full temperature; the paper writes t / T. In retraining an open gate is
1, as the paper writes; the authors' code keeps the factor 1 / sigmoid(c_0). What is not kept has no row, in training as in the bundle.
A pruned value leaves its bag: the mean of a multi-valued field is over the values that stay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ctrkit import schema
from ctrkit.embeddings.selection import Selection
from ctrkit.embeddings.tables import Group
from ctrkit.errors import CtrkitError
from ctrkit.layers.gate import ContinuousGate, FixedGates, LearnedGates, gate_numeric
from ctrkit.models.base import Decision, FieldMaps, PlaceWeights, RankingModel
from ctrkit.models.registry import build, build_search, check_settings, register
from ctrkit.models.search import Search
from ctrkit.schema import PADDING_ID, Inputs

START = 0.5
GATE = "gate"


class OptFSSettings(schema.Settings):
    base: str = Field("deepfm", description="model whose features are selected")
    base_settings: dict[str, Any] = Field({}, description="that model's own settings")
    temperature: float = Field(200.0, gt=1, description="of the gates in the last epoch of the search; it rises exponentially from 1")
    l1: float = Field(5e-9, ge=0, description="penalty on every open gate: the higher, the fewer values are kept")
    search_epochs: int = Field(15, ge=2, description="epochs of the search")
    rewind_epoch: int = Field(1, ge=0, description="retraining starts from the weights after so many epochs of the search")
    gate_learning_rate: float = Field(1e-3, gt=0, description="of the gates; a short log needs a higher one: a gate has 0.5 to go")

    @model_validator(mode="after")
    def _check(self) -> "OptFSSettings":
        if self.rewind_epoch >= self.search_epochs:
            raise ValueError(f"rewind_epoch ({self.rewind_epoch}) must be below search_epochs ({self.search_epochs})")
        try:
            check_settings(self.base, self.base_settings)
        except CtrkitError as error:
            raise ValueError(f"base: {error}") from error
        return self


@register("optfs", kind="ranking", paper="Lyu et al., Optimizing Feature Set for Click-Through Rate Prediction, WWW 2023")
class OptFS(RankingModel):
    """
    Args:
        decision: of every id field, by name, bool ``[rows]``: the ids that are kept; of every numeric field a bool. None: all are kept.
    """

    Settings = OptFSSettings

    def __init__(self, inputs: Inputs, dim: int, settings: OptFSSettings, decision: Decision | None = None) -> None:
        super().__init__(inputs, dim, settings)
        self.base = _base(inputs, dim, settings)
        self.decision = decision
        numbers = torch.ones(len(inputs.numeric_fields))
        if decision is not None:
            self.selection = Selection(inputs, decision)
            numbers = torch.tensor([bool(decision[name]) for name in inputs.numeric_fields])
        self.numeric_gates = FixedGates(numbers)
        gate_numeric(self.base, self.numeric_gates)

    @classmethod
    def search(cls, inputs: Inputs, dim: int, settings: OptFSSettings) -> Search:
        return OptFSSearch(inputs, dim, settings)

    def describe(self) -> dict[str, Any] | None:
        if self.decision is None:
            return None
        masks = {f.name: self.decision[f.name][PADDING_ID + 1 :] for f in self.inputs.id_fields}
        masks |= {name: self.decision[name].reshape(1) for name in self.inputs.numeric_fields}
        fields = {name: {"values": len(mask), "kept": int(mask.sum()), "ratio": mask.float().mean().item()} for name, mask in masks.items()}
        values, kept = (sum(field[key] for field in fields.values()) for key in ("values", "kept"))
        return {
            "summary": f"kept {kept:,} of {values:,} feature values ({kept / values:.1%})",
            "values": values,
            "kept": kept,
            "ratio": kept / values,
            "fields": fields,
        }

    def groups(self, dim: int) -> tuple[Group, ...]:
        return self.base.groups(dim)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.base(embeddings, dense)

    def explanations(self, embeddings: dict[str, Tensor], dense: Tensor) -> Sequence[FieldMaps | PlaceWeights]:
        return self.base.explanations(embeddings, dense)


class Gated(RankingModel):
    """The base under gates: the tables multiply by those of ids, see ``ctrkit.embeddings.gated``; the numeric fields' are here."""

    gate: ContinuousGate

    def __init__(self, inputs: Inputs, dim: int, settings: OptFSSettings) -> None:
        super().__init__(inputs, dim, settings)
        self.base = _base(inputs, dim, settings)
        self.gate = ContinuousGate(START)
        self.numeric_gates = LearnedGates(len(inputs.numeric_fields), START, self.gate) if inputs.numeric_fields else None
        if self.numeric_gates is not None:
            gate_numeric(self.base, self.numeric_gates)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (*self.base.groups(dim), Group(GATE, 1, gates=True, start=START))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.base(embeddings, dense)


class OptFSSearch(Search):
    def __init__(self, inputs: Inputs, dim: int, settings: OptFSSettings) -> None:
        s = settings
        self.gated = gated = Gated(inputs, dim, s)
        deciding = list(gated.numeric_gates.parameters()) if gated.numeric_gates is not None else []
        super().__init__(gated, s.search_epochs, False, s.rewind_epoch, s.gate_learning_rate, deciding)
        self.final_temperature, self.l1 = s.temperature, s.l1

    def advance(self, epoch: int, step: int, steps: int) -> None:
        self.gated.gate.temperature.fill_(self.final_temperature ** (epoch / (self.epochs - 1)))

    def penalty(self, gates: Sequence[Tensor]) -> Tensor:
        terms = [torch.sigmoid(self.gated.gate.temperature * c).sum() for c in [*gates, *self.deciding]]
        return self.l1 * torch.stack(terms).sum()

    def decide(self, weights: Mapping[str, Any], evaluate: Callable[[int], float]) -> Decision:
        inputs = self.model.inputs
        decision = {f.name: weights["tables"][f"{GATE}/{f.name}"][:, 0] > 0 for f in inputs.id_fields}
        for mask in decision.values():
            mask[PADDING_ID] = False
        if self.gated.numeric_gates is not None:
            numbers = weights["dense_arch"]["numeric_gates.c"] > 0
            decision |= dict(zip(inputs.numeric_fields, numbers, strict=True))
        if not any(mask.any() for mask in decision.values()):
            raise CtrkitError("model 'optfs' keeps no feature value at all", "Lower its l1, or its gate_learning_rate")
        return decision

    def rewound(self, weights: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
        selection = Selection(self.model.inputs, decision)
        tables = {
            name: selection.shrink(name.partition("/")[2], t) for name, t in weights["tables"].items() if not name.startswith(f"{GATE}/")
        }
        return {"dense_arch": {k: v for k, v in weights["dense_arch"].items() if k.startswith("base.")}, "tables": tables}


def _base(inputs: Inputs, dim: int, settings: OptFSSettings) -> RankingModel:
    if inputs.sequences:
        raise CtrkitError(
            f"model 'optfs' selects among the values of a field, and those of the sequence '{inputs.sequences[0].name}' are another field's",
            "Leave the sequences out of the features, and take a base that does without them, such as deepfm",
        )
    if build_search(settings.base, inputs, dim, settings.base_settings) is not None:
        raise CtrkitError(f"model 'optfs' cannot take '{settings.base}' as its base: it has a search of its own", "Use deepfm, dcn or ipnn")
    return build(settings.base, inputs, dim, settings.base_settings)
