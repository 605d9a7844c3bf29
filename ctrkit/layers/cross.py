"""Cross networks: explicit feature crossing by repeated multiplication with the input.

All layers map ``(x_0, x_l)``, both ``[batch, width]``, to ``x_{l+1}`` of the same shape; ``x_0`` is the input of the first one.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ctrkit.layers.tower import Tower, linear

Structure = Literal["parallel", "stacked"]


class VectorCross(nn.Module):
    """DCN's layer (Wang et al. 2017, eq. 3): ``x_{l+1} = x_0 <x_l, w> + b + x_l``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.weight(x) + self.bias + x


class MatrixCross(nn.Module):
    """DCN V2's layer (Wang et al. 2021, eq. 1): ``x_{l+1} = x_0 * (W x_l + b) + x_l``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = linear(width, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.weight(x) + x


class LowRankCross(nn.Module):
    """``x_{l+1} = x_0 * (U V^T x_l + b) + x_l`` with U and V of ``rank`` columns (eq. 2)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.v = linear(width, rank, bias=False)
        self.u = linear(rank, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.u(self.v(x)) + x


class MixtureCross(nn.Module):
    """Several low-rank experts and a gate (eq. 3 and 4)::

        E_i(x_l) = x_0 * (U_i tanh(C_i tanh(V_i^T x_l)) + b)
        x_{l+1}  = sum_i softmax_i(<g_i, x_l>) E_i(x_l) + x_l

    The gate's weights sum to one, so that one bias serves all experts.
    """

    def __init__(self, width: int, rank: int, experts: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.empty(experts, width, rank))
        self.c = nn.Parameter(torch.empty(experts, rank, rank))
        self.u = nn.Parameter(torch.empty(experts, rank, width))
        for expert in (*self.v, *self.c, *self.u):
            nn.init.xavier_normal_(expert)
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = linear(width, experts, bias=False)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.tanh(x @ self.v) @ self.c)  # [experts, batch, rank]
        weights = torch.softmax(self.gate(x), dim=1).t().unsqueeze(2)
        return x0 * ((hidden * weights @ self.u).sum(0) + self.bias) + x


class GatedCross(nn.Module):
    """GDCN's layer (Wang et al. 2023): ``x_{l+1} = x_0 * (W_c x_l + b) * sigmoid(W_g x_l) + x_l``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross = linear(width, width)
        self.gate = linear(width, width, bias=False)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.cross(x) * torch.sigmoid(self.gate(x)) + x


class CrossNetwork(nn.Module):
    """``layers`` cross layers, one upon another. ``[batch, width]`` -> ``[batch, width]``.

    Args:
        make: makes a layer.
    """

    def __init__(self, layers: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = layer(x0, x)
        return x


class CrossAndDeep(nn.Module):
    """A cross network and a perceptron, side by side or one upon the other. ``[batch, width]`` -> logits ``[batch]``::

        parallel   logit = <w, concat(cross(x), MLP(x))> + b
        stacked    logit = <w, MLP(cross(x))> + b

    Without ``hidden`` it is the cross network alone.
    """

    def __init__(
        self, width: int, cross: CrossNetwork, structure: Structure, hidden: Sequence[int], dropout: float, batch_norm: bool
    ) -> None:
        super().__init__()
        self.cross = cross
        self.deep = Tower(width, hidden, dropout=dropout, batch_norm=batch_norm)
        self.beside = structure == "parallel" and len(hidden) > 0
        self.output = linear(self.deep.outputs + (width if self.beside else 0), 1)

    def forward(self, x: Tensor) -> Tensor:
        crossed = self.cross(x)
        top = torch.cat([crossed, self.deep(x)], dim=1) if self.beside else self.deep(crossed)
        return self.output(top).squeeze(1)
