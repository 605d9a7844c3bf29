"""The sparse arch: TorchRec tables, one an id field and group, or one for all fields (``ctrkit.embeddings.unified``).

A sequence is looked up in the table of the field it is a history of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from ctrkit.config import Embedding
from ctrkit.schema import PADDING_ID, IdField, Inputs

WIDTH_UNIT = 4
"""FBGEMM's kernels take widths that are multiples of it; a narrower group is padded with columns nobody reads."""


def stored_width(dim: int) -> int:
    """``dim`` rounded up to a multiple of ``WIDTH_UNIT``."""
    return -(-dim // WIDTH_UNIT) * WIDTH_UNIT


_POOLING = {"mean": PoolingType.MEAN, "sum": PoolingType.SUM}


@dataclass(frozen=True)
class Group:
    """Vectors of this width, one an id field: ``Group("embedding", 16)``, ``Group("linear", 1)``.

    Attributes:
        unpooled: whether the model wants a vector for each place of a sequence, not their mean.
        gates: its one column gates the other groups' rows of the same id, see ``ctrkit.embeddings.gated``; Adam trains it, whatever
            ``embedding.optimizer`` is, since a penalty on gates is on all of them.
        start: of every row; None draws them at random.
        fields: names of the id fields that it has vectors of; None: of all.
    """

    name: str
    dim: int
    unpooled: bool = False
    gates: bool = False
    start: float | None = None
    fields: frozenset[str] | None = None

    def has(self, field: IdField) -> bool:
        return self.fields is None or field.table in self.fields

    @property
    def width(self) -> int:
        """Columns of the stored tables."""
        return stored_width(self.dim)


@dataclass(frozen=True)
class Table:
    """One stored table.

    Attributes:
        group: whose vectors it holds.
        owner: with the group's name, its own: a field, or what the fields share.
        rows: padding included.
        keys: of the ``KeyedJaggedTensor``, whose ids are looked up in it.
        pooling: of a key's ids in a row.
        padded: whether row 0 is padding, which stays zero.
        init_std: of its rows at the start; None: ``embedding.init_std``.
    """

    group: Group
    owner: str
    rows: int
    keys: tuple[str, ...]
    pooling: PoolingType
    padded: bool = True
    init_std: float | None = None

    @property
    def name(self) -> str:
        """Its name inside TorchRec."""
        return table_name(self.group.name, self.owner)


Outputs = Mapping[str, tuple[Group, list[tuple[str, str]]]]
"""What is looked up under a name: the group, and the (table, key) of each vector, in order."""


def own_tables(inputs: Inputs, groups: Sequence[Group]) -> list[Table]:
    """A table of its own for every id field, in every group; a sequence's keys are those of the field it is a history of."""
    bags = {field.pooling for field in inputs.id_fields if field.multi_valued}
    one = PoolingType.MEAN if bags == {"mean"} else PoolingType.SUM
    histories = {sequence.of: PoolingType.MEAN for sequence in inputs.sequences}
    return [
        Table(
            group,
            field.name,
            field.rows,
            (field.name, *(key for s in inputs.sequences if s.of == field.name for key in _keys(s, group))),
            _POOLING[field.pooling] if field.multi_valued else histories.get(field.name, one),
        )
        for group in groups
        for field in inputs.tables
        if group.has(field)
    ]


def own_outputs(inputs: Inputs, groups: Sequence[Group]) -> Outputs:
    """Of ``own_tables``: a vector a field under the group's name, and one a place of each sequence that an unpooled group leaves out."""
    outputs = {}
    for group in groups:
        fields = [f for f in inputs.id_fields if group.has(f) and (f.of is None or not group.unpooled)]
        outputs[group.name] = group, [(table_name(group.name, f.table), f.name) for f in fields]
        if group.unpooled:
            for s in inputs.sequences:
                outputs[f"{group.name}/{s.name}"] = group, [(table_name(group.name, s.table), place) for place in _keys(s, group)]
    return outputs


class Tables(nn.Module):
    """Looks ids up: ``KeyedJaggedTensor -> {group: [batch, keys, dim]}``; with ``own_tables`` a key is an id field.

    A bag (multi-valued field) is pooled to its mean or sum; an empty bag is the zero vector. Padding (id 0) is never
    among the ids of a batch, so its row keeps the zeros it was made with.

    An unpooled group leaves sequences out of that tensor and gives each its own, ``<group>/<field>`` ``[batch, length, dim]``: the most
    recent last, zeros in front of a shorter history; and ``mask/<field>`` ``[batch, length]`` says where there is an id. For TorchRec
    each place of a sequence is a bag of one or none, a feature of its own with the target's table: one collection, so one table, which
    any plan may shard and whose fused optimizer adds up the gradients of all its uses. (A table of an ``EmbeddingCollection``, which
    does not pool, cannot be one of an ``EmbeddingBagCollection``.)

    With ``l2_rows: touched`` the penalty ``l2 / 2`` x the mean over the batch of ``||looked-up embeddings||^2`` is added to the
    gradient here rather than in the optimizer: FBGEMM's CPU kernels know weight decay for row-wise Adagrad only. ``l2_rows: all``
    is the dense optimizer's work (``ctrkit.training.distributed``).

    Args:
        outputs: all of them, those that no table was made for because there are no id fields too.
        unpooled: sequences whose places are looked up one by one.
        device: ``meta`` until the tables are sharded.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        outputs: Outputs,
        settings: Embedding,
        unpooled: Sequence[IdField] = (),
        device: torch.device | str = "meta",
    ) -> None:
        super().__init__()
        self.unpooled = tuple(unpooled)
        self.touched_l2 = settings.l2 if settings.l2_rows == "touched" else 0.0
        self.weight_names = {table.name: f"{table.group.name}/{table.owner}" for table in tables}
        self.dims = {table.name: table.group.dim for table in tables}
        self.stds = {table.name: table.init_std or settings.init_std for table in tables}
        self.padded = {table.name for table in tables if table.padded}
        self.starts = {table.name: table.group.start for table in tables if table.group.start is not None}
        self.gate_tables = frozenset(table.name for table in tables if table.group.gates)
        self.configs = [
            EmbeddingBagConfig(
                name=table.name,
                embedding_dim=table.group.width,
                num_embeddings=table.rows,
                feature_names=list(table.keys),
                pooling=table.pooling,
                init_fn=_leave,
            )
            for table in tables
        ]
        self.collection = EmbeddingBagCollection(self.configs, device=torch.device(device))
        names = get_embedding_names_by_table(self.configs)
        key = {(c.name, f): name for c, row in zip(self.configs, names, strict=True) for f, name in zip(c.feature_names, row, strict=True)}
        self.columns = {name: (group, [key[pair] for pair in pairs]) for name, (group, pairs) in outputs.items()}

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        rows = sparse.stride()
        if not self.configs:
            return {name: torch.zeros(rows, 0, group.dim, device=sparse.device()) for name, (group, _) in self.columns.items()}
        places = {sequence.name: _places(sparse, sequence) for sequence in self.unpooled}
        embeddings = self.look_up(_with_places(sparse, places))
        return self.decayed(embeddings, sparse) | {f"mask/{name}": ids != PADDING_ID for name, ids in places.items()}

    def look_up(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The pooled vectors of every output."""
        pooled = self.collection(sparse)
        return {name: _field_vectors(pooled, keys, group.width)[:, :, : group.dim] for name, (group, keys) in self.columns.items()}

    def decayed(self, embeddings: dict[str, Tensor], sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """What was looked up for a batch, with the penalty ``l2_rows: touched`` in its gradient."""
        if not self.touched_l2 or not torch.is_grad_enabled():
            return embeddings
        scale = self.touched_l2 / average_rows(sparse.stride(), sparse.device())
        return {name: _add_decay(e, scale) for name, e in embeddings.items()}


def place_keys(sequence: IdField) -> list[str]:
    """TorchRec's names of a sequence's places."""
    return [f"{sequence.name}:{place}" for place in range(sequence.length)]


def _keys(sequence: IdField, group: Group) -> list[str]:
    """TorchRec's names of the sequence's features in a group: itself, or each of its places."""
    return place_keys(sequence) if group.unpooled else [sequence.name]


def _places(sparse: KeyedJaggedTensor, sequence: IdField) -> Tensor:
    """A sequence's ids by place, ``[batch, length]``: the most recent last, padding in front of a shorter history."""
    history = sparse[sequence.name]
    from_end = torch.arange(-sequence.length, 0, device=sparse.device())
    present = -from_end <= history.lengths().unsqueeze(1)
    index = history.offsets()[1:].unsqueeze(1) + from_end
    ids = torch.full(index.shape, PADDING_ID, dtype=history.values().dtype, device=sparse.device())
    ids[present] = history.values()[index[present]]
    return ids


def _with_places(sparse: KeyedJaggedTensor, places: dict[str, Tensor]) -> KeyedJaggedTensor:
    """The batch with a feature for each place of the sequences: a bag of its id, or of none."""
    if not places:
        return sparse
    by_place = torch.cat([ids.t() for ids in places.values()])
    present = by_place != PADDING_ID
    return KeyedJaggedTensor(
        keys=[*sparse.keys(), *(f"{name}:{place}" for name, ids in places.items() for place in range(ids.shape[1]))],
        values=torch.cat([sparse.values(), by_place[present]]),
        lengths=torch.cat([sparse.lengths(), present.flatten().to(sparse.lengths().dtype)]),
        stride=sparse.stride(),
    )


def _field_vectors(pooled: KeyedTensor, keys: list[str], width: int) -> Tensor:
    """The named columns as ``[batch, keys, width]``: a view where they lie side by side, as they do in one process."""
    values, all_keys = pooled.values(), pooled.keys()
    first = all_keys.index(keys[0])
    if all_keys[first : first + len(keys)] == keys:
        start = pooled.offset_per_key()[first]
        return values[:, start : start + len(keys) * width].unflatten(1, (len(keys), width))
    columns = dict(zip(all_keys, values.split(pooled.length_per_key(), dim=1), strict=True))
    return torch.stack([columns[key] for key in keys], dim=1)


def table_name(group: str, field: str) -> str:
    """A table's name inside TorchRec, where a module's name may hold no full stop."""
    return f"{group}/{field}".replace(".", "\N{ONE DOT LEADER}")


def average_rows(rows: int, device: torch.device) -> float:
    """Rows a process has in this step, averaged over the processes.

    Gradients are averaged over processes; a sum of the local rows' losses divided by this is the mean over all rows, whatever
    each process' share.
    """
    return all_rows(rows, device) / (dist.get_world_size() if dist.is_initialized() else 1)


def all_rows(rows: int, device: torch.device) -> int:
    """Rows of a step over all processes, of which this one has so many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    total = torch.tensor([rows], device=device)
    dist.all_reduce(total)
    return int(total.item())


class _Decay(torch.autograd.Function):
    """Identity whose gradient has ``scale * input`` added."""

    @staticmethod
    def forward(ctx, embeddings: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(embeddings)
        ctx.scale = scale
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (embeddings,) = ctx.saved_tensors
        return torch.add(gradients[0], embeddings, alpha=ctx.scale), None


def _add_decay(embeddings: Tensor, scale: float) -> Tensor:
    return _Decay.apply(embeddings, scale)  # pyright: ignore[reportReturnType]


def _leave(weight: Tensor) -> Tensor:
    """TorchRec's initialiser, doing nothing: ``initialise_tables`` fills the shards."""
    return weight
