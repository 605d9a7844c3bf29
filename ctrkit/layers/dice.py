"""Activations of DIN (Zhou et al. 2018): PReLU, and Dice, whose bend moves with the data."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.normalisation import BatchNorm
from ctrkit.layers.tower import linear

Activation = Literal["dice", "prelu"]


class Dice(nn.Module):
    """``f(s) = p(s) s + (1 - p(s)) alpha s`` with ``p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + 1e-8))``, an alpha a unit.

    Mean and variance are the batch's in training, moving averages after. ``[rows, units]`` -> the same shape.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = BatchNorm(units, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, s: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(s))
        return s * (p + (1 - p) * self.alpha)


class DiceTower(nn.Module):
    """A perceptron of Dice or PReLU units with one linear output. ``[rows, inputs]`` -> ``[rows]``."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Activation, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [linear(inputs, units), Dice(units) if activation == "dice" else nn.PReLU(units)]
            if dropout:
                layers.append(FastDropout(dropout))
            inputs = units
        self.layers = nn.Sequential(*layers, linear(inputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)
