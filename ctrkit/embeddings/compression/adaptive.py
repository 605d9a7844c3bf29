"""Adaptive embedding: ids that are in many training rows have rows of their own, the others share hashed ones (the adaptive embedding of
DeepRec, https://github.com/DeepRec-AI/DeepRec; AdaptEmb in Zhang et al., VLDB 2024)::

    v(x) = E[place of x among the frequent ids]    or, if it is not there, E[frequent + h(x)]

The benchmark makes a tenth of the ids frequent, for which budgets below a tenth have no room: here they have a share of the budget, by default
the one that its tenth has of a budget of a half. They are listed, rising, as int32, where the benchmark keeps a number for every id. With room
for the full table every id has a row of its own.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.frequent import most_frequent, split_budget
from ctrkit.embeddings.compression.hash import HashCodec, random_places
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows, find_sorted


def own_or_shared(ids: Tensor, frequent: Tensor, shared: int) -> Tensor:
    """The row of each id. int64 ``[n]`` -> int64 ``[n]``."""
    own, there = find_sorted(frequent, ids)
    return torch.where(there, own, len(frequent) + random_places(ids, "adaptive", shared))


class AdaptiveCodec(Codec):
    """
    Args:
        frequent: the ids with rows of their own, rising, at least one. int32 ``[k]``.
        shared: rows of all the others.
    """

    frequent: Tensor

    def __init__(self, space: IdSpace, dim: int, frequent: Tensor, shared: int) -> None:
        super().__init__(space, dim)
        self.shared = shared
        self.parts = (Part("rows", len(frequent) + shared, dim),)
        self.register_buffer("frequent", frequent, persistent=False)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [own_or_shared(ids, self.frequent.to(ids.device), self.shared)]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0]

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredAdaptive(self, parts["rows"])


class StoredAdaptive(nn.Module):
    frequent: Tensor

    def __init__(self, codec: AdaptiveCodec, table: Tensor) -> None:
        super().__init__()
        self.shared, self.rows = codec.shared, StoredRows(table)
        self.register_buffer("frequent", codec.frequent.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(own_or_shared(ids, self.frequent, self.shared))


class AdaptiveSettings(MethodSettings):
    frequent: float = Field(default=0.2, gt=0, lt=1, description="of the budget, for ids with rows of their own and their list")


@register(
    "adaptive",
    kind="inter-feature: sharing, by frequency",
    paper="DeepRec's adaptive embedding; Zhang et al., Experimental Analysis of Large-scale Learnable Vector Storage Compression, VLDB 2024",
    sharded="its table",
    benchmarked=True,
)
class Adaptive(Method):
    Settings = AdaptiveSettings

    def __init__(self, settings: AdaptiveSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        row = dim * FLOAT_BYTES
        self.whole = self.allowed_bytes >= self.full_bytes
        self.frequent, self.shared = split_budget(self, settings.frequent, row, row)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        if self.whole:
            return HashCodec(self.space, self.dim, self.space.total)
        return AdaptiveCodec(self.space, self.dim, most_frequent(counts, self.frequent), self.shared)
