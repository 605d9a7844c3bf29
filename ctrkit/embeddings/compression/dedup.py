"""Deduplication: blocks of rows that are nearly the same share one (Zhou et al., Serving Deep Learning Models with Deduplication from
Relational Databases, VLDB 2022)::

    v(x) = E[block * map[x // block] + x % block]        E: [unique blocks * block, dim]; map: of all blocks of consecutive ids

A full table is trained first. Its blocks are hashed by random projections (locality-sensitive hashing for Euclidean distance), blocks with
the same hash become one, their mean, and the training goes on from there. The paper merges blocks one after the other until the accuracy
falls too far; here the budget says how many are left: the width of the hash's buckets is searched for at which no more are, and the room
that is left then goes to the blocks farthest from their mean. A rare id's vector hardly leaves zero, so rare ids are what is merged.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isqrt

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec, Part, seeded
from ctrkit.embeddings.compression.full import WholeTable
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows

_PROJECTIONS = 16
_HALVINGS = 40
_MAP_SHARE = 0.5
"""Of the budget: what the map takes at the most where the size of a block is chosen here."""


def map_type(unique: int) -> torch.dtype:
    """The smallest type for numbers below ``unique``."""
    return torch.uint8 if unique <= 2**8 else torch.int16 if unique <= 2**15 else torch.int32


def most_unique(blocks: int, row: int, allowed: int) -> int:
    """How many unique blocks of ``row`` bytes, at most all of them, there is room for beside the map of all blocks; 0: for none."""
    for dtype, limit in ((torch.int32, blocks), (torch.int16, 2**15), (torch.uint8, 2**8)):
        unique = min((allowed - blocks * dtype.itemsize) // row, limit, blocks)
        if unique >= 1 and (dtype == torch.uint8 or unique > 2**8 and (dtype == torch.int16 or unique > 2**15)):
            return unique
    return 0


def share(blocks: Tensor, unique: int) -> Tensor:
    """Which of ``unique`` blocks each block becomes, near ones the same. ``[blocks, numbers]`` -> int64 ``[blocks]``, every number used.

    Deterministic. As many as there are blocks leaves each its own.
    """
    count = len(blocks)
    if unique >= count:
        return torch.arange(count)
    shared = _hashed(blocks, unique)
    used = int(shared.max()) + 1
    means = mean_blocks(blocks, shared, used)
    distance = (blocks - means[shared]).square().sum(1)
    first = torch.full((used,), count).scatter_reduce_(0, shared, torch.arange(count), "amin")
    distance[first] = -1.0
    farthest = distance.argsort(descending=True, stable=True)[: unique - used]
    shared[farthest] = torch.arange(used, used + len(farthest))
    return shared


def mean_blocks(blocks: Tensor, shared: Tensor, unique: int) -> Tensor:
    """The mean of the blocks that share a number, ``[unique, numbers]``."""
    sums = blocks.new_zeros(unique, blocks.shape[1]).index_add(0, shared, blocks)
    return sums / torch.bincount(shared, minlength=unique).clamp(min=1).unsqueeze(1)


def _hashed(blocks: Tensor, unique: int) -> Tensor:
    """The numbers of the buckets that the blocks are in, the widest buckets but one that are no more than ``unique``."""
    draw = seeded("dedup", *blocks.shape)
    directions = torch.randn(blocks.shape[1], min(_PROJECTIONS, blocks.shape[1]), generator=draw, dtype=torch.float64)
    offsets = torch.rand(directions.shape[1], generator=draw, dtype=torch.float64)
    mix = torch.randint(-(2**62), 2**62, (directions.shape[1],), generator=draw)
    projected = blocks.to(torch.float64) @ directions
    best = torch.zeros(len(blocks), dtype=torch.int64)
    narrow, wide = 0.0, 2 * float(projected.abs().max()) + 1.0
    for _ in range(_HALVINGS):
        width = (narrow + wide) / 2
        keys = ((projected / width + offsets).floor().to(torch.int64) * mix).sum(1)
        found, numbers = keys.unique(return_inverse=True)
        if len(found) > unique:
            narrow = width
        else:
            wide, best = width, numbers
    return best


class DedupCodec(Codec):
    """The rows of unique blocks.

    Args:
        block: rows of a block.
        shared: which unique block each is, int64 ``[blocks]``.
        unique: how many there are.
    """

    shared: Tensor

    def __init__(self, space: IdSpace, dim: int, block: int, shared: Tensor, unique: int) -> None:
        super().__init__(space, dim)
        self.block = block
        self.register_buffer("shared", shared.to(map_type(unique)), persistent=False)
        self.parts = (Part("rows", unique * block, dim),)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [places_in(self.shared, ids, self.block)]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0]

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredShared(self.shared, self.block, StoredRows(parts["rows"]))


def places_in(shared: Tensor, ids: Tensor, block: int) -> Tensor:
    return shared.to(ids.device)[ids // block].to(torch.int64) * block + ids % block


class StoredShared(nn.Module):
    shared: Tensor

    def __init__(self, shared: Tensor, block: int, rows: StoredRows) -> None:
        super().__init__()
        self.block, self.rows = block, rows
        self.register_buffer("shared", shared.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(places_in(self.shared, ids, self.block))


class DedupSettings(MethodSettings):
    block: int | None = Field(
        default=None, ge=1, description="consecutive ids that are shared together; default the fewest whose map takes half of the budget"
    )
    search_epochs: int = Field(default=10, ge=1, description="of the full table's training, at most")


@register(
    "dedup",
    kind="inter-feature: sharing, after training",
    paper="Zhou et al., Serving Deep Learning Models with Deduplication from Relational Databases, VLDB 2022",
    sharded="the full table, then that of unique blocks",
    benchmarked=True,
)
class Dedup(Method):
    Settings = DedupSettings
    search_stops_early = True
    starts_from = "end"

    def __init__(self, settings: DedupSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.search_epochs = settings.search_epochs
        self.block, self.unique = self._solve()

    def _solve(self) -> tuple[int, int]:
        """Rows of a block, and how many unique blocks there is room for.

        Raises:
            CtrkitError: there is room for none.
        """
        chosen = self.settings.block
        sizes = [chosen] if chosen else range(1, isqrt(self.space.total) + 2)  # with larger ones blocks cost more than the map saves
        share = 1.0 if chosen else _MAP_SHARE
        for block in sizes:
            unique = most_unique(self._blocks(block), self._row(block), self.allowed_bytes)
            if unique and self._blocks(block) * map_type(unique).itemsize <= share * self.allowed_bytes:
                return block, unique
        least = min(max(ceil(self._blocks(block) / share), self._blocks(block) + self._row(block)) for block in sizes)
        raise self.refuse(least, "Raise the budget, or leave 'block' out" if chosen else "Raise the budget")

    def _blocks(self, block: int) -> int:
        return -(-self.space.total // block)

    def _row(self, block: int) -> int:
        return block * self.dim * FLOAT_BYTES

    def supernet(self, counts: Tensor) -> WholeTable:
        return WholeTable(self.space, self.dim)

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        return {"shared": share(self._cut(parts["rows"]), self.unique)}

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means = mean_blocks(self._cut(parts["rows"]), decision["shared"], self.unique)
        return {"rows": means.view(-1, self.dim)}

    def _cut(self, rows: Tensor) -> Tensor:
        """A table's blocks, ``[blocks, block * dim]``; the last one is filled up with zeros."""
        missing = self._blocks(self.block) * self.block - len(rows)
        return functional.pad(rows, (0, 0, 0, missing)).view(-1, self.block * self.dim)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> DedupCodec:
        return DedupCodec(self.space, self.dim, self.block, decision["shared"], self.unique)
