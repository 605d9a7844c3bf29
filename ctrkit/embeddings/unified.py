"""Unified Embedding: all fields share one table, by feature multiplexing (Coleman et al., NeurIPS 2023, arXiv 2305.12102)::

    v_f(x) = E[h_f1(x)] || .. || E[h_fL(x)]        E: [rows, dim]; h_fk: the k-th hash of field f, into rows 1 .. rows - 1

Every field has hashes of its own, so that equal ids of two fields fall on rows that have nothing to do with each other; a dense arch
that weighs its fields separately keeps them apart. A field is as wide as it has look-ups. Bags are pooled look-up by look-up.

The paper concatenates vectors of any width. The models here want all fields of one width, ``lookups * dim``: a field whose look-ups
are more or fewer (``feature_lookups``) is projected to it by a matrix that is learned. A sequence has the hashes of its target. A group of another width, such as the
first-order weights, has a shared table of its own and one look-up a field.

The hashes read ids, whatever transform gave them, and are exact in int64 on any machine and in ONNX::

    h(x) = 1 + ((c_0 x^3 + c_1 x^2 + c_2 x + c_3) mod p) mod (rows - 1)        p = 2^31 - 1, c from the field's name and k; h(0) = 0

A cubic over a prime field is 4-wise independent, so that pairs collide as they would at random. Neighbouring ids (a vocabulary's are
1, 2, 3 ..) would collide all at once, or not at all, under the linear hash that is commonly used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor, PoolingType

from ctrkit.config import UnifiedEmbedding
from ctrkit.embeddings.tables import Group, Table, Tables, place_keys, table_name
from ctrkit.schema import PADDING_ID, IdField, Inputs

SHARED = "shared"
"""Owner of the shared tables: their weights are ``<group>/shared``."""

PRIME = 2**31 - 1
_COEFFICIENTS = 4


@dataclass(frozen=True)
class Lookups:
    """What a group looks up.

    Attributes:
        group: its name, and the width of one look-up.
        width: of a field's vector.
        counts: look-ups of each id field.
        pooled: the id fields, by number, of which the group's tensor holds a vector.
        by_place: those, sequences, that are looked up place by place.
    """

    group: Group
    width: int
    counts: tuple[int, ...]
    pooled: tuple[int, ...]
    by_place: tuple[int, ...]

    @property
    def pooled_counts(self) -> tuple[int, ...]:
        return tuple(self.counts[field] for field in self.pooled)


def plan_lookups(inputs: Inputs, groups: Sequence[Group], settings: UnifiedEmbedding) -> list[Lookups]:
    """The look-ups of every group of a model that was built with vectors ``settings.width`` wide."""
    counts = tuple(settings.feature_lookups.get(field.table, settings.lookups) for field in inputs.id_fields)
    sequences = tuple(i for i, field in enumerate(inputs.id_fields) if field.of is not None)
    plan = []
    for group in groups:
        by_place = sequences if group.unpooled else ()
        pooled = tuple(i for i in range(len(counts)) if i not in by_place)
        multiplexed = group.dim % settings.width == 0
        one = replace(group, dim=group.dim // settings.lookups) if multiplexed else group
        plan.append(Lookups(one, group.dim, counts if multiplexed else (1,) * len(counts), pooled, by_place))
    return plan


def hash_coefficients(field: str, lookup: int) -> list[int]:
    """c_0 .. c_3 of a field's look-up, its salts."""
    digest = blake2b(f"{lookup}/{field}".encode(), digest_size=8 * _COEFFICIENTS).digest()
    return [int.from_bytes(digest[i : i + 8], "big") % PRIME for i in range(0, len(digest), 8)]


def hash_ids(ids: Tensor, coefficients: Tensor, rows: int) -> Tensor:
    """Ids -> rows of the shared table. No step leaves int64: both factors of a product are below 2^31.

    Args:
        ids: int64 ``[..]``.
        coefficients: int64 ``[4, ..]``, of a shape that goes with the ids'.
        rows: of the table.
    """
    x = ids % PRIME
    hashed = coefficients[0]
    for c in coefficients[1:]:
        hashed = (hashed * x + c) % PRIME
    return torch.where(ids == PADDING_ID, PADDING_ID, 1 + hashed % (rows - 1))


class UnifiedTables(Tables):
    """Looks ids up in shared tables: ``KeyedJaggedTensor -> {group: [batch, look-ups of all id fields, width of one]}``.

    Of a sequence that is looked up by place, which that tensor does not hold, ``<group>/<field>`` is ``[batch, look-ups of all its
    places, width of one]``, and ``mask/<field>`` is as of ``Tables``.
    """

    def __init__(self, inputs: Inputs, groups: Sequence[Group], settings: UnifiedEmbedding, device: torch.device | str = "meta") -> None:
        fields = inputs.id_fields
        plan = plan_lookups(inputs, groups, settings)
        tables = [Table(p.group, SHARED, settings.rows, tuple(_keys(fields, p)), PoolingType.SUM) for p in plan if fields]
        outputs = {}
        for p in plan:
            table = table_name(p.group.name, SHARED)
            outputs[p.group.name] = p.group, [(table, key) for f in p.pooled for key in _lookups(fields[f].name, p.counts[f])]
            for f in p.by_place:
                keys = [key for place in place_keys(fields[f]) for key in _lookups(place, p.counts[f])]
                outputs[f"{p.group.name}/{fields[f].name}"] = p.group, [(table, key) for key in keys]
        by_place = {f for p in plan for f in p.by_place}
        super().__init__(tables, outputs, settings, [fields[f] for f in sorted(by_place)], device)
        self.rows = settings.rows
        self.multiplexed = list(dict.fromkeys(key for p in plan for key in _keys(fields, p)))
        names = [*(field.name for field in fields), *(place for f in sorted(by_place) for place in place_keys(fields[f]))]
        owners = {name: field for field in fields for name in (field.name, *place_keys(field))}
        sources = [key.rpartition("#") for key in self.multiplexed]
        self.source_of = [names.index(name) for name, _, _ in sources]
        salts = [hash_coefficients(owners[name].table, int(k)) for name, _, k in sources]
        self.coefficients = torch.tensor(salts, dtype=torch.int64).reshape(-1, _COEFFICIENTS).T
        self.means = [field.multi_valued and field.pooling == "mean" for field in fields]
        self.owners = {p.group.name: [f for f in p.pooled for _ in range(p.counts[f])] for p in plan}

    def look_up(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        embeddings = super().look_up(self.multiplex(sparse))
        if not any(self.means):
            return embeddings
        lengths = sparse.lengths().view(len(sparse.keys()), -1)[: len(self.means)].T  # [batch, fields]
        share = torch.where(lengths.new_tensor(self.means, dtype=torch.bool), lengths.clamp(min=1), 1).unsqueeze(2)
        return embeddings | {name: embeddings[name] / share[:, owners] for name, owners in self.owners.items()}

    def multiplex(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Ids of the fields, and of places -> rows of the shared table, under a key ``<field>#<k>`` for every look-up."""
        repeated = sparse.permute(self.source_of)
        lengths = repeated.length_per_key()
        values = repeated.values()
        salts = self.coefficients.to(values.device)
        salts = salts.repeat_interleave(torch.tensor(lengths, device=values.device), dim=1, output_size=len(values))
        return KeyedJaggedTensor(
            keys=self.multiplexed,
            values=hash_ids(values, salts, self.rows),
            lengths=repeated.lengths(),
            stride=sparse.stride(),
            length_per_key=lengths,
        )


class JoinLookups(nn.Module):
    """A field's look-ups side by side, projected where they are not as wide as a field must be.

    ``{group: [batch, look-ups of all id fields, width of one]} -> {group: [batch, id fields, width]}``, and of a sequence by place
    ``{<group>/<field>: [batch, look-ups of all its places, width of one]} -> {<group>/<field>: [batch, length, width]}``; masks stay.
    """

    def __init__(self, inputs: Inputs, plan: Sequence[Lookups]) -> None:
        super().__init__()
        self.plan = plan
        self.sequences = {f"{p.group.name}/{inputs.id_fields[f].name}": (p, f) for p in plan for f in p.by_place}
        self.projections = nn.ModuleDict({p.group.name: _Projections(p) for p in plan})

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        joined = {}
        for name, looked_up in embeddings.items():
            if name in self.sequences:
                p, field = self.sequences[name]
                projections = cast(_Projections, self.projections[p.group.name])
                joined[name] = projections.of_field(field, looked_up.unflatten(1, (-1, p.counts[field])).flatten(2))
            else:
                joined[name] = self.projections[name](looked_up) if name in self.projections else looked_up
        return joined


class _Projections(nn.Module):
    """Of one group: a matrix for each field of another width, none for the rest."""

    def __init__(self, lookups: Lookups) -> None:
        super().__init__()
        self.lookups = lookups
        dim, width = lookups.group.dim, lookups.width
        self.odd = nn.ModuleDict(
            {str(f): nn.Linear(count * dim, width, bias=False) for f, count in enumerate(lookups.counts) if count * dim != width}
        )

    def forward(self, looked_up: Tensor) -> Tensor:
        p = self.lookups
        if not self.odd:
            return looked_up.reshape(looked_up.shape[0], len(p.pooled), p.width)
        vectors = looked_up.split(list(p.pooled_counts), dim=1)
        return torch.stack([self.of_field(f, v.flatten(1)) for f, v in zip(p.pooled, vectors, strict=True)], dim=1)

    def of_field(self, field: int, vectors: Tensor) -> Tensor:
        """A field's look-ups, side by side in the last dim, in the group's width."""
        return self.odd[str(field)](vectors) if str(field) in self.odd else vectors


def _lookups(key: str, count: int) -> list[str]:
    return [f"{key}#{k}" for k in range(count)]


def _keys(fields: Sequence[IdField], lookups: Lookups) -> list[str]:
    """All keys of a group: its fields', then those of places."""
    places = [(place, f) for f in lookups.by_place for place in place_keys(fields[f])]
    sources = [*((fields[f].name, f) for f in lookups.pooled), *places]
    return [key for name, f in sources for key in _lookups(name, lookups.counts[f])]
