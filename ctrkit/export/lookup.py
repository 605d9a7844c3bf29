"""Look-ups in plain tensors: TorchRec's collections and ``nn.EmbeddingBag`` would each export as a Loop over bags.

The single-valued fields of a group are one Gather, a ragged bag is a Gather and a segment sum, an unpooled sequence is laid out by place
and gathered.

Where only some ids have rows, an int32 array says which: id -> row, and padding's row of its field, all zeros, for an id without.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import ByTable
from ctrkit.embeddings.crosses import Crosses
from ctrkit.embeddings.tables import Group
from ctrkit.embeddings.unified import SHARED, Lookups, hash_coefficients, hash_ids
from ctrkit.schema import PADDING_ID, IdField, Inputs


class Bag:
    """The ids of a multi-valued field and the row each belongs to.

    Args:
        ids: int64 ``[total]``, 0 for a dropped value.
        lengths: int64 ``[rows]``.
    """

    def __init__(self, field: IdField, ids: Tensor, lengths: Tensor) -> None:
        self.field = field
        self.ids = ids
        self.rows = lengths.shape[0]
        self.row_of = _row_of_value(lengths, ids.shape[0])

    def pool(self, vectors: Tensor) -> Tensor:
        """Sum or mean over each row's ids but padding, whose vectors are zero: ``[total, width] -> [rows, width]``."""
        total = vectors.new_zeros(self.rows, vectors.shape[1]).index_add(0, self.row_of, vectors)
        if self.field.pooling == "sum":
            return total
        kept = (self.ids != PADDING_ID).to(vectors.dtype)
        count = kept.new_zeros(self.rows).index_add(0, self.row_of, kept)
        return total / count.clamp(min=1).unsqueeze(1)

    def with_ids(self, ids: Tensor) -> "Bag":
        """The same values under other ids."""
        other = copy(self)
        other.ids = ids
        return other


class Places:
    """A sequence's ids by place, ``[rows, length]``: the most recent last, padding in front of a shorter history.

    Dropped values, whose id is 0, lie anywhere among the others: a kept one's place is counted in kept ones from its row's end.
    """

    def __init__(self, bag: Bag) -> None:
        self.field = bag.field
        length, rows = bag.field.length, bag.rows
        kept = (bag.ids != PADDING_ID).to(torch.int64)
        through = kept.new_zeros(rows).index_add(0, bag.row_of, kept).cumsum(0)
        place = (length - 1 - (through.index_select(0, bag.row_of) - kept.cumsum(0))).clamp(min=0)
        self.ids = bag.ids.new_zeros(rows * length).index_add(0, bag.row_of * length + place, bag.ids).view(rows, length)


class OwnLookup(nn.Module):
    """Tables of their own become one buffer a group, with an offset a field.

    Args:
        inputs: the fields that have tables.
        tables: full weights, ``"<group>/<field>" -> [rows, dim]``; a sequence's are those of the field it is a history of.
        unpooled: the groups whose sequences are not pooled.
        new_ids: field -> int64 ``[field's rows]``, where an id's row is in tables that hold some ids only, padding's for one without;
            None: tables hold all ids.
    """

    order: Tensor
    order_without_sequences: Tensor
    offsets: Tensor
    row_of_id: Tensor

    def __init__(
        self, inputs: Inputs, tables: Mapping[str, Tensor], unpooled: Collection[str], new_ids: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.unpooled = unpooled
        self.single, self.multi = single, multi = by_kind(inputs)
        looked_up = single + multi
        stored = [field for field in looked_up if field.of is None]
        self.groups = list(dict.fromkeys(key.partition("/")[0] for key in tables))
        self.first_ids = _starts({field.name: field.rows for field in stored}, inputs)
        self.starts = self.first_ids
        self.renumbers = new_ids is not None and bool(self.groups)
        if new_ids is not None and self.renumbers:
            self.starts = _starts({field.name: len(tables[f"{self.groups[0]}/{field.name}"]) for field in stored}, inputs)
            rows = torch.cat([new_ids[field.name] + self.starts[field.name] for field in stored])
            self.register_buffer("row_of_id", rows.to(torch.int32))
        self.register_buffer("offsets", torch.tensor([self.first_ids[f.name] for f in single], dtype=torch.int64))
        self.register_buffer("order", _order(looked_up, inputs))
        self.register_buffer("order_without_sequences", _order(stored, inputs))
        for group in self.groups:
            table = torch.cat([tables[f"{group}/{f.name}"] for f in stored])
            table[[self.starts[f.name] + PADDING_ID for f in multi]] = 0
            self.register_buffer(f"table_{group}", table)

    def forward(self, ids: Mapping[str, Tensor], by_name: Mapping[str, Bag]) -> dict[str, Tensor]:
        """Ids of the single-valued fields, each ``[rows]``, and bags -> what ``RankingModel.forward`` takes."""
        flat = torch.stack([ids[field.name] for field in self.single], dim=1) + self.offsets if self.single else None
        bags = [by_name[field.name] for field in self.multi]
        if self.renumbers:
            flat = self._rows(flat) if flat is not None else None
            bags = [bag.with_ids(self._rows(bag.ids + self.first_ids[bag.field.name]) - self.starts[bag.field.name]) for bag in bags]
        places = [Places(bag) for bag in bags if bag.field.of and self.unpooled]
        embeddings: dict[str, Tensor] = {f"mask/{p.field.name}": p.ids != PADDING_ID for p in places}
        for group in self.groups:
            table = getattr(self, f"table_{group}")
            if group in self.unpooled:
                embeddings[group] = self._embed(table, flat, [bag for bag in bags if not bag.field.of], self.order_without_sequences)
                embeddings |= {f"{group}/{p.field.name}": functional.embedding(p.ids + self.starts[p.field.name], table) for p in places}
            else:
                embeddings[group] = self._embed(table, flat, bags, self.order)
        return embeddings

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids, each field's after those of the fields before it -> rows of the tables, likewise."""
        return self.row_of_id[ids].to(torch.int64)

    def _embed(self, table: Tensor, ids: Tensor | None, bags: Sequence[Bag], order: Tensor) -> Tensor:
        """``[rows, id fields, dim]`` in the order of the inputs' id fields."""
        parts = [functional.embedding(ids, table)] if ids is not None else []
        parts += [bag.pool(functional.embedding(bag.ids + self.starts[bag.field.name], table)).unsqueeze(1) for bag in bags]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1).index_select(1, order)


def own_lookups(
    inputs: Inputs, tables: Mapping[str, Tensor], unpooled: Collection[str], new_ids: Mapping[str, Tensor] | None = None
) -> list[OwnLookup]:
    """One look-up for all groups that have tables of the same fields; arguments as of ``OwnLookup``."""
    names = {field.name for field in inputs.id_fields}
    owners: dict[str, set[str]] = {}
    for key in tables:
        group, _, owner = key.partition("/")
        if owner in names:
            owners.setdefault(group, set()).add(owner)
    lookups = []
    for fields in dict.fromkeys(map(frozenset, owners.values())):
        groups = {group for group, its in owners.items() if its == fields}
        theirs = {key: table for key, table in tables.items() if key.partition("/")[0] in groups}
        own = inputs.model_copy(update={"id_fields": tuple(f for f in inputs.id_fields if f.table in fields)})
        lookups.append(OwnLookup(own, theirs, unpooled, new_ids))
    return lookups


class StoredLookup(nn.Module):
    """The stored forms of compressed embeddings, each given the ids of all single-valued fields at once, then those of each bag."""

    starts: Tensor
    tables: Tensor
    order: Tensor
    order_without_sequences: Tensor

    def __init__(self, inputs: Inputs, groups: Sequence[Group], stored: nn.ModuleDict) -> None:
        super().__init__()
        self.single, self.multi = by_kind(inputs)
        self.groups, self.stored = tuple(groups), stored
        space = IdSpace(inputs)
        self.start_of = space.start_of
        self.number_of = {field.name: space.names.index(field.table) for field in inputs.id_fields}
        self.register_buffer("starts", torch.tensor([self.start_of[f.name] for f in self.single], dtype=torch.int64))
        self.register_buffer("tables", torch.tensor([self.number_of[f.name] for f in self.single], dtype=torch.int64))
        looked_up = self.single + self.multi
        self.register_buffer("order", _order(looked_up, inputs))
        self.register_buffer("order_without_sequences", _order([field for field in looked_up if field.of is None], inputs))

    def forward(self, ids: Mapping[str, Tensor], by_name: Mapping[str, Bag]) -> dict[str, Tensor]:
        """Ids of the single-valued fields, each ``[rows]``, and bags -> what ``RankingModel.forward`` takes."""
        flat = torch.stack([ids[field.name] for field in self.single], dim=1) + self.starts if self.single else None
        embeddings: dict[str, Tensor] = {}
        for group in self.groups:
            parts = [self._vectors(group, flat, self.tables)] if flat is not None else []
            for field in self.multi:
                bag, start = by_name[field.name], self.start_of[field.name]
                table = torch.tensor([self.number_of[field.name]])
                if field.of and group.unpooled:
                    places = Places(bag).ids
                    embeddings[f"mask/{field.name}"] = present = places != PADDING_ID
                    embeddings[f"{group.name}/{field.name}"] = self._vectors(group, places + start, table) * present.unsqueeze(2)
                else:
                    vectors = self._vectors(group, bag.ids + start, table) * (bag.ids != PADDING_ID).unsqueeze(1)
                    parts.append(bag.pool(vectors).unsqueeze(1))
            order = self.order_without_sequences if group.unpooled else self.order
            embeddings[group.name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1).index_select(1, order)
        return embeddings

    def _vectors(self, group: Group, ids: Tensor, tables: Tensor) -> Tensor:
        """int64 of any shape, and the tables of its last axis -> a vector each."""
        stored = self.stored[group.name]
        return stored(ids, tables) if isinstance(stored, ByTable) else stored(ids.flatten()).view(*ids.shape, group.dim)


class CrossLookup(nn.Module):
    """The tables of crosses, one after the other.

    Args:
        tables: full weights, ``"<group>/<cross>" -> [rows, dim]``, of one group; others are left alone.
    """

    table: Tensor
    starts: Tensor

    def __init__(self, crosses: Crosses, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        found = {key.partition("/")[2]: key for key in tables if key.partition("/")[2] in crosses.names}
        (self.group,) = {key.partition("/")[0] for key in found.values()}
        parts = [tables[found[name]] for name in crosses.names]
        self.register_buffer("table", torch.cat(parts))
        self.register_buffer("starts", torch.tensor(list(accumulate((len(part) for part in parts[:-1]), initial=0))))

    def forward(self, crossed: Tensor) -> dict[str, Tensor]:
        """int64 ``[rows, crosses]`` -> group -> ``[rows, crosses, dim]``."""
        return {self.group: functional.embedding(crossed + self.starts, self.table)}


class SharedLookup(nn.Module):
    """The shared tables of a unified embedding, and its hashes.

    Args:
        plan: what each group looks up.
        tables: full weights, ``"<group>/shared" -> [rows, dim]``.
    """

    def __init__(self, inputs: Inputs, plan: Sequence[Lookups], tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.single, self.multi = by_kind(inputs)
        self.groups = nn.ModuleDict({p.group.name: _SharedGroup(inputs, p, tables[f"{p.group.name}/{SHARED}"]) for p in plan})

    def forward(self, ids: Mapping[str, Tensor], by_name: Mapping[str, Bag]) -> dict[str, Tensor]:
        """Ids of the single-valued fields, each ``[rows]``, and bags -> what ``UnifiedTables`` gives."""
        stacked = torch.stack([ids[field.name] for field in self.single], dim=1) if self.single else None
        bags = [by_name[field.name] for field in self.multi]
        found: dict[str, Tensor] = {}
        for group in self.groups.values():
            found |= group(stacked, bags)
        return found


class _SharedGroup(nn.Module):
    """One shared table: a Gather for the look-ups of all single-valued fields, and one for those of each bag or sequence by place."""

    table: Tensor
    owner: Tensor
    salts: Tensor
    order: Tensor

    def __init__(self, inputs: Inputs, lookups: Lookups, table: Tensor) -> None:
        super().__init__()
        single, multi = by_kind(inputs)
        self.name = lookups.group.name
        self.by_place = {inputs.id_fields[f].name for f in lookups.by_place}
        counts = dict(zip(inputs.id_fields, lookups.counts, strict=True))
        stored = [(field, k) for field in single + multi for k in range(counts[field])]
        self.counts = [counts[field] for field in multi]
        self.register_buffer("table", torch.cat([torch.zeros_like(table[:1]), table[1:]]))
        self.register_buffer("owner", torch.tensor([i for i, field in enumerate(single) for _ in range(counts[field])], dtype=torch.int64))
        self.register_buffer("salts", torch.tensor([hash_coefficients(field.table, k) for field, k in stored]).T.contiguous())
        pooled = [(field, k) for field, k in stored if field.name not in self.by_place]
        wanted = [(inputs.id_fields[f], k) for f in lookups.pooled for k in range(lookups.counts[f])]
        self.register_buffer("order", torch.tensor([pooled.index(lookup) for lookup in wanted], dtype=torch.int64))

    def forward(self, ids: Tensor | None, bags: Sequence[Bag]) -> dict[str, Tensor]:
        salts = self.salts.split([len(self.owner), *self.counts], dim=1)
        parts, found = [], {}
        if ids is not None:
            parts.append(functional.embedding(hash_ids(ids.index_select(1, self.owner), salts[0], len(self.table)), self.table))
        for bag, mine in zip(bags, salts[1:], strict=True):
            if bag.field.name in self.by_place:
                places = Places(bag)
                rows = hash_ids(places.ids.unsqueeze(2), mine.reshape(len(mine), 1, 1, -1), len(self.table))
                found[f"{self.name}/{bag.field.name}"] = functional.embedding(rows, self.table).flatten(1, 2)
                found[f"mask/{bag.field.name}"] = places.ids != PADDING_ID
            else:
                vectors = functional.embedding(hash_ids(bag.ids.unsqueeze(1), mine.unsqueeze(1), len(self.table)), self.table)
                parts.append(bag.pool(vectors.flatten(1)).unflatten(1, (vectors.shape[1], vectors.shape[2])))
        found[self.name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1).index_select(1, self.order)
        return found


def by_kind(inputs: Inputs) -> tuple[list[IdField], list[IdField]]:
    """Single-valued and multi-valued fields, in the order of the twin's inputs."""
    return [f for f in inputs.id_fields if not f.multi_valued], [f for f in inputs.id_fields if f.multi_valued]


def _order(looked_up: list[IdField], inputs: Inputs) -> Tensor:
    """Where each of the inputs' id fields lies among those looked up; one that is not among them is left out."""
    return torch.tensor([looked_up.index(field) for field in inputs.id_fields if field in looked_up], dtype=torch.int64)


def _starts(rows: Mapping[str, int], inputs: Inputs) -> dict[str, int]:
    """Where each field's rows start when the tables, so many ``rows`` each, lie one after the other; a sequence has its target's."""
    starts = dict(zip(rows, accumulate(rows.values(), initial=0), strict=False))
    return {field.name: starts[field.table] for field in inputs.id_fields}


def _row_of_value(lengths: Tensor, total: int) -> Tensor:
    """The row of each of a bag's values: [2, 0, 1] -> [0, 0, 2].

    Counts the rows that start at or before a value; rows of no values start where the next one does.
    """
    starts = lengths.cumsum(0) - lengths
    started = lengths.new_zeros(total + 1).index_add(0, starts, torch.ones_like(starts))
    return started.cumsum(0)[:total] - 1
