"""Second-order interactions of field vectors."""

import torch
from torch import Tensor, nn


def sum_of_products(vectors: Tensor) -> Tensor:
    """``sum_{i<j} <v_i, v_j>`` in O(fields x dim) as ``1/2 sum_d ((sum_i v_id)^2 - sum_i v_id^2)`` (Rendle 2010, lemma 3.1).

    ``[batch, fields, dim]`` -> ``[batch]``.
    """
    return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)


class PairwiseDots(nn.Module):
    """``<v_i, v_j>`` of every pair i < j. ``[batch, fields, dim]`` -> ``[batch, fields (fields - 1) / 2]``."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        i, j = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("pairs", i * fields + j, persistent=False)
        self.pairs: Tensor
        self.outputs = len(self.pairs)

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
