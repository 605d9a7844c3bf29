"""Compressed groups: their parts as TorchRec tables, and what is made of the rows looked up in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor, PoolingType

from ctrkit.config import Embedding
from ctrkit.embeddings.bags import pool_bag
from ctrkit.embeddings.compression.codec import Codec, Shard
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.tables import Group, Table, Tables, table_name
from ctrkit.schema import IdField, Inputs

T = TypeVar("T")


class Codecs(nn.Module):
    """The codecs of all groups.

    Attributes:
        of: group -> its codec.
    """

    def __init__(self, inputs: Inputs, groups: Sequence[Group], codecs: Mapping[str, Codec]) -> None:
        super().__init__()
        self.inputs, self.groups = inputs, tuple(groups)
        self.space = IdSpace(inputs)
        self.of = nn.ModuleDict({group.name: codecs[group.name] for group in groups})

    def forward(self, parts: Mapping[str, Tensor], sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """What ``CompressedTables`` looked up for a batch -> what ``RankingModel.forward`` takes."""
        ids = self.space.ids(sparse)
        embeddings: dict[str, Tensor] = {}
        for group in self.groups:
            codec = self.codec(group.name)
            vectors = codec.combine(ids, [parts[f"{group.name}/{name}"] for name, _ in codec.lookups])
            embeddings |= lay_out(vectors, sparse, self.inputs, group)
        return embeddings

    def stored(self, tables: Mapping[str, Tensor]) -> nn.ModuleDict:
        """Group -> its stored form, out of the full tables ``"<group>/<part>" -> [rows, width]``."""
        return nn.ModuleDict({name: codec.stored(_parts_of(name, tables)) for name, codec in self})

    def codec(self, group: str) -> Codec:
        return cast(Codec, self.of[group])

    def advance(self, epoch: float, step: int) -> None:
        for _, codec in self:
            codec.advance(epoch, step)

    def penalty(self) -> Tensor | None:
        """The sum of all codecs', None if there is none."""
        penalties = [penalty for _, codec in self if (penalty := codec.penalty()) is not None]
        return torch.stack(penalties).sum() if penalties else None

    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        """Arguments as of ``Codec.after_step``, the shards' keys being ``<group>/<part>``."""
        for name, codec in self:
            codec.after_step(_parts_of(name, shards), add_up)

    def __iter__(self) -> Iterator[tuple[str, Codec]]:
        return ((group.name, self.codec(group.name)) for group in self.groups)


class CompressedTables(Tables):
    """Looks ids up value by value: ``KeyedJaggedTensor -> {<group>/<look-up>: [values, width]}``, for ``Codecs`` to go on with."""

    def __init__(self, codecs: Codecs, settings: Embedding, device: torch.device | str = "meta") -> None:
        tables, outputs = [], {}
        for group in codecs.groups:
            codec = codecs.codec(group.name)
            for part in codec.parts:
                own = replace(group, dim=part.width, start=part.start)
                keys = tuple(f"{group.name}/{name}" for name, of in codec.lookups if of is part)
                tables.append(Table(own, part.name, part.rows, keys, PoolingType.SUM, padded=False, init_std=part.init_std))
                outputs |= {key: (own, [(table_name(group.name, part.name), key)]) for key in keys}
        super().__init__(tables, outputs, settings, device=device)
        self.places = {name: codec.places for name, codec in codecs}
        self.space = codecs.space

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        if not self.configs:
            return {}
        ids = self.space.ids(sparse)
        rows = [place for places in self.places.values() for place in places(ids)]
        lengths = sparse.lengths().new_ones(len(rows) * len(ids))
        by_part = KeyedJaggedTensor(keys=list(self.columns), values=torch.cat(rows), lengths=lengths, stride=len(ids))
        looked_up = {name: vectors.squeeze(1) for name, vectors in self.look_up(by_part).items()}
        return self.decayed(looked_up, sparse)


class StoredTables(Tables):
    """Looks ids up in stored forms: ``KeyedJaggedTensor ->`` what ``RankingModel.forward`` takes. Nothing of it is trained or sharded."""

    def __init__(self, inputs: Inputs, groups: Sequence[Group], stored: nn.ModuleDict, settings: Embedding) -> None:
        super().__init__([], {}, settings)
        self.inputs, self.groups, self.space, self.stored = inputs, tuple(groups), IdSpace(inputs), stored

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        ids, place = self.space.ids(sparse).unique(return_inverse=True)
        embeddings: dict[str, Tensor] = {}
        for group in self.groups:
            embeddings |= lay_out(self.stored[group.name](ids)[place], sparse, self.inputs, group)
        return embeddings


def lay_out(vectors: Tensor, sparse: KeyedJaggedTensor, inputs: Inputs, group: Group) -> dict[str, Tensor]:
    """A vector for each value of a batch, in its order, ``[values, dim]`` -> what ``Tables`` gives of the group, bags pooled."""
    rows, counts = sparse.stride(), sparse.length_per_key()
    fields = [*zip(inputs.id_fields, vectors.split(counts), sparse.lengths().view(len(counts), rows), strict=True)]
    pooled: list[Tensor] = []
    found: dict[str, Tensor] = {}
    for field, part, lengths in fields:
        if not field.multi_valued:
            pooled.append(part)
        elif field.of is not None and group.unpooled:
            found[f"{group.name}/{field.name}"], found[f"mask/{field.name}"] = _by_place(part, lengths, field)
        else:
            pooled.append(pool_bag(part, lengths, field.pooling))
    return found | {group.name: torch.stack(pooled, dim=1)}


def _by_place(vectors: Tensor, lengths: Tensor, sequence: IdField) -> tuple[Tensor, Tensor]:
    """A sequence's values in order -> ``[rows, length, dim]``, the most recent last, and where there is one, ``[rows, length]``."""
    rows, length = len(lengths), sequence.length
    row = torch.arange(rows, device=vectors.device).repeat_interleave(lengths, output_size=len(vectors))
    number = torch.arange(len(vectors), device=vectors.device) - (lengths.cumsum(0) - lengths)[row]
    place = row * length + length - lengths[row] + number
    laid_out = vectors.new_zeros(rows * length, vectors.shape[1]).index_add(0, place, vectors)
    present = torch.zeros(rows * length, dtype=torch.bool, device=vectors.device)
    present[place] = True
    return laid_out.view(rows, length, -1), present.view(rows, length)


def _parts_of(group: str, named: Mapping[str, T]) -> dict[str, T]:
    return {name.removeprefix(f"{group}/"): value for name, value in named.items() if name.startswith(f"{group}/")}
