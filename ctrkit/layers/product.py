"""Products of field vectors that stay vectors or matrices; inner products are in ``ctrkit/layers/interaction.py``."""

import torch
from torch import Tensor, nn


class Pairs(nn.Module):
    """Both sides of every pair i < j, in the order (0, 1), (0, 2) .. (n - 2, n - 1).

    ``[batch, fields, dim]`` -> two of ``[batch, fields (fields - 1) / 2, dim]``.
    """

    left: Tensor
    right: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        left, right = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.count = len(left)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return vectors.index_select(1, self.left), vectors.index_select(1, self.right)


class PairwiseProducts(nn.Module):
    """``v_i * v_j`` of every pair i < j. ``[batch, fields, dim]`` -> ``[batch, fields (fields - 1) / 2, dim]``."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.pairs = Pairs(fields)

    def forward(self, vectors: Tensor) -> Tensor:
        left, right = self.pairs(vectors)
        return left * right


def superposed_outer_product(vectors: Tensor) -> Tensor:
    """``sum_i sum_j v_i v_j^T = v v^T`` with ``v = sum_i v_i``: all outer products at once (Qu et al. 2016).

    ``[batch, fields, dim]`` -> ``[batch, dim * dim]``.
    """
    total = vectors.sum(1)
    return (total.unsqueeze(2) * total.unsqueeze(1)).flatten(1)
