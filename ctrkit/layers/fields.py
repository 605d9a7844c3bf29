"""All fields of a row, id and numeric, as vectors or as first-order weights."""

import torch
from torch import Tensor, nn

from ctrkit.layers.numeric import NumericEmbedding


class FieldVectors(nn.Module):
    """Id fields' embeddings and numeric fields' ``x_j v_j`` in one space.

    ``[batch, id fields, dim]``, ``[batch, numeric fields]`` -> ``[batch, fields, dim]``, id fields first.
    """

    def __init__(self, numeric_fields: int, dim: int) -> None:
        super().__init__()
        self.numeric = NumericEmbedding(numeric_fields, dim) if numeric_fields else None

    def forward(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        if self.numeric is None:
            return embeddings
        return torch.cat([embeddings, self.numeric(dense)], dim=1)


class FirstOrder(nn.Module):
    """``w_0 + sum_j w_j x_j``: one weight an id (a table of width 1) and one a numeric field.

    ``[batch, id fields, 1]``, ``[batch, numeric fields]`` -> ``[batch]``.
    """

    def __init__(self, numeric_fields: int) -> None:
        super().__init__()
        self.vectors = FieldVectors(numeric_fields, 1)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, linear: Tensor, dense: Tensor) -> Tensor:
        return self.vectors(linear, dense).sum((1, 2)) + self.bias
