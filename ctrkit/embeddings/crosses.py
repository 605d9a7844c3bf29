"""Crosses: a pair of fields as a field of its own, whose values are the pairs of theirs::

    key = x_i rows_j + x_j
    id  = 1 + buckets + place of the key among the frequent ones, in their order
          1 + hash(key) mod buckets                                 if it is not among them
    hash: as of the unified embedding, see ``ctrkit.embeddings.unified``, its coefficients from the cross' name

Every frequent pair of values has a row, the tail shares a few. Nothing else is stored: a batch's crosses are worked out from its ids,
in training here, and by ``ctrkit.export.cross`` in the graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from ctrkit.embeddings.unified import hash_coefficients, hash_ids
from ctrkit.errors import CtrkitError
from ctrkit.schema import IdField, Inputs

Pair = tuple[str, str]
"""Names of two single-valued id fields, in the order of the inputs."""

_PENDING = 2**24
"""Keys that are counted at once."""


def cross_name(pair: Pair) -> str:
    """Name of the cross as a field: '@' is in no feature's name."""
    return "@".join(pair)


class CrossKeys(nn.Module):
    """The keys of several pairs, each pair's in a range of its own: ``KeyedJaggedTensor -> int64 [pairs, batch]``.

    Attributes:
        starts: where each pair's range starts, int64 ``[pairs]``.

    Raises:
        CtrkitError: the ranges together exceed 63 bits.
    """

    first: Tensor
    second: Tensor
    factors: Tensor
    starts: Tensor

    def __init__(self, inputs: Inputs, pairs: Sequence[Pair]) -> None:
        super().__init__()
        names = [field.name for field in inputs.id_fields]
        rows = {field.name: field.rows for field in inputs.id_fields}
        self.fields = sorted({name for pair in pairs for name in pair}, key=names.index)
        sizes = [rows[a] * rows[b] for a, b in pairs]
        if sum(sizes) >= 2**63:
            a, b = pairs[sizes.index(max(sizes))]
            raise CtrkitError(
                f"the crosses of {len(pairs)} pairs of fields do not fit 63 bits; '{a}' and '{b}' have {rows[a]:,} and {rows[b]:,} ids",
                "Hash such features into fewer buckets, or give them a vocabulary",
            )
        for name, values in (
            ("first", [self.fields.index(a) for a, _ in pairs]),
            ("second", [self.fields.index(b) for _, b in pairs]),
            ("factors", [rows[b] for _, b in pairs]),
            ("starts", list(accumulate(sizes[:-1], initial=0))),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        ids = torch.stack([sparse[name].values() for name in self.fields])
        return (ids[self.first] * self.factors.unsqueeze(1) + ids[self.second]) + self.starts.unsqueeze(1)


class Crosses(nn.Module):
    """Adds crosses to a batch, each a field after the others.

    Args:
        inputs: the fields without crosses.
        frequent: of each pair, the keys that have a row of their own: ``x_i rows_j + x_j``, int64, rising.
        buckets: rows that the other keys of a pair share.

    Attributes:
        inputs: the fields with the crosses.
        known: all pairs' frequent keys, each in its pair's range, see ``CrossKeys``.
    """

    bounds: Tensor
    known: Tensor
    salts: Tensor

    def __init__(self, inputs: Inputs, frequent: Mapping[Pair, Tensor], buckets: int) -> None:
        super().__init__()
        self.pairs, self.buckets = list(frequent), buckets
        self.frequent = dict(frequent)
        self.names = [cross_name(pair) for pair in self.pairs]
        crosses = [IdField(name=cross_name(pair), rows=1 + buckets + len(keys)) for pair, keys in frequent.items()]
        self.inputs = inputs.model_copy(update={"id_fields": (*inputs.id_fields, *crosses)})
        self.keys = CrossKeys(inputs, self.pairs)
        known = [keys + start for keys, start in zip(frequent.values(), self.keys.starts, strict=True)]
        self.register_buffer("known", torch.cat(known), persistent=False)
        counts = torch.tensor([len(keys) for keys in known], dtype=torch.int64)
        self.register_buffer("bounds", counts.cumsum(0) - counts, persistent=False)
        salts = torch.tensor([hash_coefficients(name, 0) for name in self.names], dtype=torch.int64)
        self.register_buffer("salts", salts.T.unsqueeze(2), persistent=False)

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        ids = self.ids(sparse)
        return KeyedJaggedTensor(
            keys=[*sparse.keys(), *self.names],
            values=torch.cat([sparse.values(), ids.flatten()]),
            lengths=torch.cat([sparse.lengths(), torch.ones_like(ids, dtype=sparse.lengths().dtype).flatten()]),
            stride=sparse.stride(),
        )

    def known_rows(self) -> Tensor:
        """The row of each of ``known``."""
        place = torch.arange(len(self.known))
        return 1 + self.buckets + place - self.bounds[torch.searchsorted(self.bounds, place, right=True) - 1]

    def ids(self, sparse: KeyedJaggedTensor) -> Tensor:
        """int64 ``[pairs, batch]``."""
        keys = self.keys(sparse)
        tail = hash_ids(keys - self.keys.starts.unsqueeze(1), self.salts, self.buckets + 1)
        if not len(self.known):
            return tail
        place = torch.searchsorted(self.known, keys)
        found = self.known[place.clamp(max=len(self.known) - 1)] == keys
        return torch.where(found, 1 + self.buckets + place - self.bounds.unsqueeze(1), tail)


def frequent_keys(inputs: Inputs, pairs: Sequence[Pair], batches: Iterable[KeyedJaggedTensor], min_count: int) -> dict[Pair, Tensor]:
    """Of each pair, the keys seen ``min_count`` times or more, rising. Memory grows with the number of distinct keys of all pairs.

    Raises:
        CtrkitError: as ``CrossKeys``.
    """
    if not pairs:
        return {}
    cross_keys = CrossKeys(inputs, pairs)
    keys, counts = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    pending: list[Tensor] = []
    for batch in batches:
        pending.append(cross_keys(batch).flatten())
        if sum(len(more) for more in pending) > max(_PENDING, len(keys)):
            keys, counts = _counted(keys, counts, torch.cat(pending))
            pending = []
    keys, counts = _counted(keys, counts, torch.cat([*pending, keys[:0]]))
    keys = keys[counts >= min_count]
    ends = torch.searchsorted(keys, torch.cat([cross_keys.starts, torch.tensor([torch.iinfo(torch.int64).max])])).tolist()
    parts = [keys[a:b] for a, b in pairwise(ends)]
    return {pair: part - start for pair, part, start in zip(pairs, parts, cross_keys.starts, strict=True)}


def _counted(keys: Tensor, counts: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, rising, and how often each was seen in all."""
    new, new_counts = more.unique(return_counts=True)
    merged, place = torch.cat([keys, new]).unique(return_inverse=True)
    return merged, torch.zeros_like(merged).index_add(0, place, torch.cat([counts, new_counts]))
