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
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor, PoolingType

from ctrkit.config import UnifiedEmbedding
from ctrkit.embeddings.tables import Group, Table, Tables, table_name
from ctrkit.schema import PADDING_ID, Inputs

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
    """

    group: Group
    width: int
    counts: tuple[int, ...]


def plan_lookups(inputs: Inputs, groups: Sequence[Group], settings: UnifiedEmbedding) -> list[Lookups]:
    """The look-ups of every group of a model that was built with vectors ``settings.width`` wide."""
    counts = tuple(settings.feature_lookups.get(field.table, settings.lookups) for field in inputs.id_fields)
    plan = []
    for group in groups:
        if group.dim % settings.width:
            plan.append(Lookups(group, group.dim, (1,) * len(counts)))
        else:
            plan.append(Lookups(Group(group.name, group.dim // settings.lookups), group.dim, counts))
    return plan


def most_lookups(plan: Sequence[Lookups]) -> list[int]:
    """Look-ups of each id field, in the group that has most of them."""
    return [max(counts) for counts in zip(*(lookups.counts for lookups in plan), strict=True)]


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
    """Looks ids up in shared tables: ``KeyedJaggedTensor -> {group: [batch, look-ups of all id fields, width of one]}``."""

    def __init__(self, inputs: Inputs, groups: Sequence[Group], settings: UnifiedEmbedding, device: torch.device | str = "meta") -> None:
        fields = inputs.id_fields
        plan = plan_lookups(inputs, groups, settings)
        tables = [
            Table(lookups.group, SHARED, settings.rows, tuple(_keys(inputs, lookups.counts)), PoolingType.SUM) for lookups in plan if fields
        ]
        outputs = {p.group.name: (p.group, [(table_name(p.group.name, SHARED), key) for key in _keys(inputs, p.counts)]) for p in plan}
        super().__init__(tables, outputs, settings, device=device)
        self.rows = settings.rows
        counts = most_lookups(plan)
        self.multiplexed = _keys(inputs, counts)
        self.field_of = [f for f, count in enumerate(counts) for _ in range(count)]
        salts = [hash_coefficients(fields[f].table, k) for f, count in enumerate(counts) for k in range(count)]
        self.coefficients = torch.tensor(salts, dtype=torch.int64).reshape(-1, _COEFFICIENTS).T
        self.means = [field.multi_valued and field.pooling == "mean" for field in fields]
        self.owners = {lookups.group.name: [f for f, count in enumerate(lookups.counts) for _ in range(count)] for lookups in plan}

    def look_up(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        embeddings = super().look_up(self.multiplex(sparse))
        if not any(self.means):
            return embeddings
        lengths = sparse.lengths().view(len(self.means), -1).T  # [batch, fields]
        share = torch.where(lengths.new_tensor(self.means, dtype=torch.bool), lengths.clamp(min=1), 1).unsqueeze(2)
        return {name: e / share[:, self.owners[name]] for name, e in embeddings.items()}

    def multiplex(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Ids of the fields -> rows of the shared table, under a key ``<field>#<k>`` for every look-up."""
        repeated = sparse.permute(self.field_of)
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

    ``{group: [batch, look-ups of all id fields, width of one]} -> {group: [batch, id fields, width]}``
    """

    def __init__(self, plan: Sequence[Lookups]) -> None:
        super().__init__()
        self.plan = plan
        self.projections = nn.ModuleDict({lookups.group.name: _Projections(lookups) for lookups in plan})

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.projections[name](looked_up) for name, looked_up in embeddings.items()}


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
        if not self.odd:
            return looked_up.reshape(looked_up.shape[0], len(self.lookups.counts), self.lookups.width)
        fields = []
        for f, vectors in enumerate(looked_up.split(list(self.lookups.counts), dim=1)):
            flat = vectors.flatten(1)
            fields.append(self.odd[str(f)](flat) if str(f) in self.odd else flat)
        return torch.stack(fields, dim=1)


def _keys(inputs: Inputs, counts: Sequence[int]) -> list[str]:
    return [f"{field.name}#{k}" for field, count in zip(inputs.id_fields, counts, strict=True) for k in range(count)]
