"""The multi-layer perceptron."""

from collections.abc import Sequence

from torch import Tensor, nn

from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.normalisation import BatchNorm


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-normal weights and no bias at first."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Tower(nn.Module):
    """``hidden`` layers of ``dropout(relu(W x + b))``; with ``outputs``, one linear layer on top; with ``batch_norm`` or
    ``layer_norm``, one before each relu.

    ``[batch, inputs]`` -> ``[batch, outputs or hidden[-1]]``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int | None = None,
        dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers.append(linear(inputs, units, bias=not batch_norm))
            if batch_norm:
                layers.append(BatchNorm(units))
            if layer_norm:
                layers.append(nn.LayerNorm(units))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(FastDropout(dropout))
            inputs = units
        if outputs is not None:
            layers.append(linear(inputs, outputs))
        self.layers = nn.Sequential(*layers)
        self.outputs = inputs if outputs is None else outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
