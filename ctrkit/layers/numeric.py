"""Numeric fields inside a model; NaN is missing, and its stand-in is learned."""

from collections.abc import Callable

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


class AutoDis(nn.Module):
    """Soft buckets that are learned (Guo et al., An Embedding Learning Framework for Numerical Features, KDD 2021), for each field::

        h = leaky relu(x w + b)                      one score a meta-embedding
        s = W h + c + skip * h
        e = sum_k softmax_k(s / temperature) M_k     M: the field's meta-embeddings

    The paper writes no b and c; without them every score is a line through x = 0, and no bucket could begin anywhere else.
    A missing value has a vector of its own.

    ``[batch, fields]`` -> ``[batch, fields, dim]``.
    """

    def __init__(self, fields: int, dim: int, meta_embeddings: int, skip: float, temperature: float, std: float = 0.01) -> None:
        super().__init__()
        self.skip = skip
        self.temperature = temperature
        self.first = nn.Parameter(torch.randn(fields, meta_embeddings))
        self.first_bias = nn.Parameter(torch.randn(fields, meta_embeddings))
        self.second = nn.Parameter(torch.randn(fields, meta_embeddings, meta_embeddings) * meta_embeddings**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(fields, meta_embeddings))
        self.meta = nn.Parameter(torch.randn(fields, meta_embeddings, dim) * std)
        self.missing = nn.Parameter(torch.zeros(fields, dim))

    def forward(self, dense: Tensor) -> Tensor:
        x = dense.nan_to_num().t().unsqueeze(2)  # [fields, batch, 1]
        hidden = nn.functional.leaky_relu(x * self.first.unsqueeze(1) + self.first_bias.unsqueeze(1))
        scores = torch.baddbmm(self.second_bias.unsqueeze(1), hidden, self.second) + self.skip * hidden
        vectors = torch.bmm(torch.softmax(scores / self.temperature, dim=2), self.meta).transpose(0, 1)
        return torch.where(dense.isnan().unsqueeze(2), self.missing, vectors)


def replace_numeric(model: nn.Module, make: Callable[[int, int], nn.Module]) -> None:
    """Swaps every layer of a model that takes numeric fields for ``make(fields, dim)``; a single number counts as a vector of width 1."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NumericEmbedding):
                setattr(parent, name, make(*child.weight.shape))
            elif isinstance(child, FillMissing):
                setattr(parent, name, nn.Sequential(make(len(child.missing), 1), nn.Flatten()))
