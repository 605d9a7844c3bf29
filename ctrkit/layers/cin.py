"""The compressed interaction network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrkit.layers.tower import linear


class CompressedInteraction(nn.Module):
    """xDeepFM's CIN (Lian et al. 2018, eq. 6): vector-wise interactions whose order grows by one a layer::

        x^k_h = sum_{i,j} W^{k,h}_{ij} (x^{k-1}_i * x^0_j)          k = 1, 2, ..; x^0 the field vectors
        p     = concat over k and h of sum_d x^k_{h,d}

    No activation between layers, which the paper's experiments find best, and all of a layer's maps go both to the next one and
    into p, as in the paper; some implementations split them in halves.

    ``[batch, fields, dim]`` -> ``[batch, sum of maps]``. A layer holds ``batch x maps x fields x dim`` numbers in memory, but for the last
    one: nothing but its sum over d is read, and ``sum_d x_{i,d} x^0_{j,d}`` is one product of matrices.
    """

    def __init__(self, fields: int, maps: Sequence[int]) -> None:
        super().__init__()
        before = [fields, *maps[:-1]]
        self.layers = nn.ModuleList(linear(b * fields, m, bias=False) for b, m in zip(before, maps, strict=True))
        self.outputs = sum(maps)

    def forward(self, vectors: Tensor) -> Tensor:
        x0 = vectors.transpose(1, 2)  # [batch, dim, fields]: an interaction never crosses dims
        x, pooled = x0, []
        for layer in self.layers[:-1]:
            x = layer((x.unsqueeze(3) * x0.unsqueeze(2)).flatten(2))
            pooled.append(x.sum(1))
        pooled.append(self.layers[-1]((x.transpose(1, 2) @ x0).flatten(1)))
        return torch.cat(pooled, dim=1)
