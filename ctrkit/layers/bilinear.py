"""Bilinear forms: of pairs of fields, and of two vectors."""

from typing import Literal

import torch
from torch import Tensor, nn

from ctrkit.layers.product import Pairs
from ctrkit.layers.rows import by_rows
from ctrkit.layers.tower import linear

Share = Literal["all", "each", "interaction"]


class BilinearInteraction(nn.Module):
    """FiBiNET's combination of an inner and an elementwise product (Huang et al. 2019)::

        p_ij = (v_i W) * v_j            for every pair i < j

    Args:
        share: one W for ``all`` pairs, one for ``each`` left field, or one an ``interaction`` (pair).

    ``[batch, fields, dim]`` -> ``[batch, fields (fields - 1) / 2, dim]``.
    """

    def __init__(self, fields: int, dim: int, share: Share) -> None:
        super().__init__()
        self.share = share
        self.pairs = Pairs(fields)
        count = {"all": 1, "each": fields, "interaction": self.pairs.count}[share]
        self.weight = nn.Parameter(torch.empty(count, dim, dim))
        for matrix in self.weight:
            nn.init.xavier_normal_(matrix)

    def forward(self, vectors: Tensor) -> Tensor:
        return by_rows(self._interact, vectors)

    def _interact(self, vectors: Tensor) -> Tensor:
        if self.share == "interaction":
            left, right = self.pairs(vectors)
            return _times(left, self.weight) * right
        left, _ = self.pairs(vectors @ self.weight if self.share == "all" else _times(vectors, self.weight))
        _, right = self.pairs(vectors)
        return left * right


class BilinearFusion(nn.Module):
    """FinalMLP's fusion of two streams (Mao et al. 2023)::

        out = b + <w_1, x> + <w_2, y> + sum over heads h of x_h^T W_h y_h

    where x_h and y_h are the h-th of ``heads`` equal slices. ``[batch, left]``, ``[batch, right]`` -> ``[batch]``.
    """

    def __init__(self, left: int, right: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.left = linear(left, 1)
        self.right = linear(right, 1, bias=False)
        self.weight = nn.Parameter(torch.empty(heads, left // heads, right // heads))
        for matrix in self.weight:
            nn.init.xavier_normal_(matrix)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x, y = left.unflatten(1, (self.heads, -1)), right.unflatten(1, (self.heads, -1))
        return (self.left(left) + self.right(right)).squeeze(1) + (_times(x, self.weight) * y).sum((1, 2))


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """The n-th vector times the n-th matrix. ``[batch, n, a]``, ``[n, a, b]`` -> ``[batch, n, b]``."""
    return torch.bmm(vectors.transpose(0, 1), matrices).transpose(0, 1)
