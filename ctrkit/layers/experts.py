"""Several perceptrons on one input, and gates that mix what they make of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrkit.layers.tower import Tower, linear


class Experts(nn.Module):
    """``f_1(x) .. f_n(x)``: towers of the same shape, side by side. ``[batch, inputs]`` -> ``[batch, experts, units]``."""

    def __init__(self, inputs: int, count: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower(inputs, hidden, dropout=dropout) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([tower(x) for tower in self.towers], dim=1)


class Gate(nn.Module):
    """Weights of the experts, a distribution for each row: ``softmax(W x)``. ``[batch, inputs]`` -> ``[batch, experts]``."""

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__()
        self.scores = linear(inputs, experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scores(x), dim=1)


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    """``sum_i weights_i experts_i``. ``[batch, experts]``, ``[batch, experts, units]`` -> ``[batch, units]``."""
    return (weights.unsqueeze(1) @ experts).squeeze(1)
