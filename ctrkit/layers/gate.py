"""Gates that learn to be closed or open, and gates on numeric fields."""

import torch
from torch import Tensor, nn

from ctrkit.layers.numeric import FillMissing, NumericEmbedding


class ContinuousGate(nn.Module):
    """``g(c) = sigmoid(temperature c) / sigmoid(start)``: nearly linear at first, a step at c = 0 once the temperature is high.

    At temperature 1 a gate whose c is ``start`` is 1: it changes nothing at first. Any shape -> the same shape.
    """

    temperature: Tensor

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = 1 / torch.tensor(start).sigmoid().item()
        self.register_buffer("temperature", torch.ones(()), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        return torch.sigmoid(self.temperature * c) * self.scale


class LearnedGates(nn.Module):
    """One gate a field, whose c is a parameter. ``()`` -> ``[fields]``."""

    def __init__(self, fields: int, start: float, gate: ContinuousGate) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.full((fields,), start))
        self.gate = gate

    def forward(self) -> Tensor:
        return self.gate(self.c)


class FixedGates(nn.Module):
    """One gate a field, 1 where it is open and 0 where it is closed. ``()`` -> ``[fields]``."""

    gates: Tensor

    def __init__(self, is_open: Tensor) -> None:
        super().__init__()
        self.register_buffer("gates", is_open.float(), persistent=False)

    def forward(self) -> Tensor:
        return self.gates


class GatedNumeric(nn.Module):
    """A layer on numeric fields, its output multiplied by each field's gate.

    ``[batch, fields]`` -> what the layer gives: ``[batch, fields, dim]`` or ``[batch, fields]``.
    """

    def __init__(self, inner: nn.Module, gates: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._gates = (gates,)  # in a tuple: the gates belong to the model, which has several layers share them

    def forward(self, dense: Tensor) -> Tensor:
        output = self.inner(dense)
        gates = self._gates[0]()
        return output * (gates.unsqueeze(1) if output.dim() == 3 else gates)


def gate_numeric(model: nn.Module, gates: nn.Module) -> None:
    """Puts a field's gate upon it wherever a model takes numeric fields in."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NumericEmbedding | FillMissing):
                setattr(parent, name, GatedNumeric(child, gates))
