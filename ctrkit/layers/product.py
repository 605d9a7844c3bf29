"""Products of field vectors that stay vectors or matrices; inner products are in ``ctrkit/layers/interaction.py``."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn


def all_pairs(fields: int) -> list[tuple[int, int]]:
    """The pairs i < j: (0, 1), (0, 2) .. (n - 2, n - 1)."""
    return list(combinations(range(fields), 2))


class Pairs(nn.Module):
    """Both sides of each pair of fields; of all pairs if none are given. ``[batch, fields, dim]`` -> two of ``[batch, pairs, dim]``."""

    left: Tensor
    right: Tensor

    def __init__(self, fields: int, pairs: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__()
        left, right = torch.tensor(all_pairs(fields) if pairs is None else pairs, dtype=torch.int64).reshape(-1, 2).T
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.count = len(left)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return vectors.index_select(1, self.left), vectors.index_select(1, self.right)


class PairwiseProducts(nn.Module):
    """``v_i * v_j`` of each pair of fields, see ``Pairs``. ``[batch, fields, dim]`` -> ``[batch, pairs, dim]``."""

    def __init__(self, fields: int, pairs: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.pairs = Pairs(fields, pairs)

    def forward(self, vectors: Tensor) -> Tensor:
        left, right = self.pairs(vectors)
        return left * right


def superposed_outer_product(vectors: Tensor) -> Tensor:
    """``sum_i sum_j v_i v_j^T = v v^T`` with ``v = sum_i v_i``: all outer products at once (Qu et al. 2016).

    ``[batch, fields, dim]`` -> ``[batch, dim * dim]``.
    """
    total = vectors.sum(1)
    return (total.unsqueeze(2) * total.unsqueeze(1)).flatten(1)
