"""Numeric fields inside a model; NaN is missing, and its stand-in is learned."""

import torch
from torch import Tensor, nn


class NumericEmbedding(nn.Module):
    """``e_j = x_j v_j`` for numeric field j, and a vector of its own for a missing value (AutoInt, section 4.2).

    ``[batch, fields]`` -> ``[batch, fields, dim]``.
    """

    def __init__(self, fields: int, dim: int, std: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fields, dim) * std)
        self.missing = nn.Parameter(torch.zeros(fields, dim))

    def forward(self, dense: Tensor) -> Tensor:
        x = dense.unsqueeze(-1)
        return torch.where(x.isnan(), self.missing, x.nan_to_num() * self.weight)


class FillMissing(nn.Module):
    """A missing value becomes a learned number. ``[batch, fields]`` -> ``[batch, fields]``, no NaN."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.zeros(fields))

    def forward(self, dense: Tensor) -> Tensor:
        return torch.where(dense.isnan(), self.missing, dense)
