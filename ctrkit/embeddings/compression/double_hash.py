"""Frequency-based double hashing: frequent ids have rows of their own, each other id two rows of a table that all of those share, by two
hashes (Zhang et al., Model Size Reduction Using Frequency Based Double Hashing for Recommender Systems, RecSys 2020, arXiv 2007.14523)::

    v(x) = E[h1(x)] + E[h2(x)]    or    E[h1(x)] || E[h2(x)], rows being half as wide    or, of a frequent id, its own row

Two of the ids that are hashed have the same vector only if both hashes agree: of R rows, once in R^2 pairs rather than once in R. The paper
keeps frequent ids out of that because most values of a batch are theirs. Own and shared rows are those of one table: concatenated, an own
row is two of the halves.

As in ``adaptive``, frequent ids have a share of the budget, are listed, rising, as int32, and with room for the full table every id has a
row of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

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

Operation = Literal["sum", "concatenation"]


class DoubleHashSettings(MethodSettings):
    operation: Operation = Field(default="sum", description="what is made of an id's two rows")
    frequent: float = Field(default=0.2, gt=0, lt=1, description="of the budget, for ids with rows of their own and their list")


def row_width(dim: int, operation: Operation) -> int:
    """Numbers of a row; a half of an uneven vector has one to spare."""
    return dim if operation == "sum" else -(-dim // 2)


def two_rows(ids: Tensor, frequent: Tensor, shared: int, operation: Operation) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second row of each id, int64 ``[n]``, and whether the id is frequent, bool ``[n]``.

    A frequent id's own row, of a sum, is both.
    """
    number, there = find_sorted(frequent, ids)
    own = (number, number) if operation == "sum" else (2 * number, 2 * number + 1)
    start = len(frequent) * (1 if operation == "sum" else 2)
    first, second = (torch.where(there, own[k], start + random_places(ids, f"double hash {k}", shared)) for k in range(2))
    return first, second, there


def join(first: Tensor, second: Tensor, there: Tensor, dim: int, operation: Operation) -> Tensor:
    """Two rows ``[n, row width]``, and whether the ids are frequent, ``[n]`` -> ``[n, dim]``."""
    if operation == "sum":
        return first + second * ~there.unsqueeze(1)
    return torch.cat([first, second], dim=1)[:, :dim]


class DoubleHashCodec(Codec):
    """
    Args:
        frequent: the ids with rows of their own, rising, at least one. int32 ``[k]``.
        shared: rows of all the others.
    """

    frequent: Tensor

    def __init__(self, space: IdSpace, dim: int, frequent: Tensor, shared: int, operation: Operation) -> None:
        super().__init__(space, dim)
        self.shared = shared
        self.operation: Operation = operation
        own = len(frequent) * (1 if operation == "sum" else 2)
        self.stored_rows = own + shared
        spare = 1 if operation == "sum" else 0
        self.parts = (Part("rows", self.stored_rows + spare, row_width(dim, operation), lookups=2),)
        self.register_buffer("frequent", frequent, persistent=False)

    def places(self, ids: Tensor) -> list[Tensor]:
        first, second, there = two_rows(ids, self.frequent.to(ids.device), self.shared, self.operation)
        if self.operation == "sum":  # a second look-up of an own row would decay it twice (embedding.l2_rows: touched)
            second = second.masked_fill(there, self.stored_rows)
        return [first, second]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        first, second = vectors
        _, there = find_sorted(self.frequent, ids)
        return join(first, second, there, self.dim, self.operation)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredDoubleHash(self, parts["rows"][: self.stored_rows])


class StoredDoubleHash(nn.Module):
    frequent: Tensor

    def __init__(self, codec: DoubleHashCodec, table: Tensor) -> None:
        super().__init__()
        self.dim, self.shared, self.rows = codec.dim, codec.shared, StoredRows(table)
        self.operation: Operation = codec.operation
        self.register_buffer("frequent", codec.frequent.clone())

    def forward(self, ids: Tensor) -> Tensor:
        first, second, there = two_rows(ids, self.frequent, self.shared, self.operation)
        return join(self.rows(first), self.rows(second), there, self.dim, self.operation)


@register(
    "double_hash",
    kind="inter-feature: hashing, twice, by frequency",
    paper="Zhang et al., Model Size Reduction Using Frequency Based Double Hashing for Recommender Systems, RecSys 2020",
    sharded="its table",
)
class DoubleHash(Method):
    Settings = DoubleHashSettings

    def __init__(self, settings: DoubleHashSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.whole = self.allowed_bytes >= self.full_bytes
        row = row_width(dim, settings.operation) * FLOAT_BYTES
        own = row if settings.operation == "sum" else 2 * row
        self.frequent, self.shared = split_budget(self, settings.frequent, own, row)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        if self.whole:
            return HashCodec(self.space, self.dim, self.space.total)
        return DoubleHashCodec(self.space, self.dim, most_frequent(counts, self.frequent), self.shared, self.settings.operation)
