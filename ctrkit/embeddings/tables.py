"""The sparse arch: TorchRec tables, one an id field and group, or one for all fields (``ctrkit.embeddings.unified``)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from ctrkit.config import Embedding
from ctrkit.schema import Inputs

WIDTH_UNIT = 4
"""FBGEMM's kernels take widths that are multiples of it; a narrower group is padded with columns nobody reads."""

_POOLING = {"mean": PoolingType.MEAN, "sum": PoolingType.SUM}


@dataclass(frozen=True)
class Group:
    """Vectors of this width, one an id field: ``Group("embedding", 16)``, ``Group("linear", 1)``."""

    name: str
    dim: int

    @property
    def width(self) -> int:
        """Columns of the stored tables: ``dim`` rounded up to a multiple of ``WIDTH_UNIT``."""
        return -(-self.dim // WIDTH_UNIT) * WIDTH_UNIT


@dataclass(frozen=True)
class Table:
    """One stored table.

    Attributes:
        group: whose vectors it holds.
        owner: with the group's name, its own: a field, or what the fields share.
        rows: padding included.
        keys: of the ``KeyedJaggedTensor``, whose ids are looked up in it.
        pooling: of a key's ids in a row.
    """

    group: Group
    owner: str
    rows: int
    keys: tuple[str, ...]
    pooling: PoolingType

    @property
    def name(self) -> str:
        """Its name inside TorchRec."""
        return table_name(self.group.name, self.owner)


def own_tables(inputs: Inputs, groups: Sequence[Group]) -> list[Table]:
    """A table of its own for every id field, in every group."""
    bags = {field.pooling for field in inputs.id_fields if field.multi_valued}
    one = PoolingType.MEAN if bags == {"mean"} else PoolingType.SUM
    return [
        Table(group, field.name, field.rows, (field.name,), _POOLING[field.pooling] if field.multi_valued else one)
        for group in groups
        for field in inputs.id_fields
    ]


class Tables(nn.Module):
    """Looks ids up: ``KeyedJaggedTensor -> {group: [batch, keys, dim]}``; with ``own_tables`` the keys are the id fields.

    A bag (multi-valued field) is pooled to its mean or sum; an empty bag is the zero vector. Padding (id 0) is never
    among the ids of a batch, so its row keeps the zeros it was made with.

    With ``l2_rows: touched`` the penalty ``l2 / 2`` x the mean over the batch of ``||looked-up embeddings||^2`` is added to the
    gradient here rather than in the optimizer: FBGEMM's CPU kernels know weight decay for row-wise Adagrad only. ``l2_rows: all``
    is the dense optimizer's work (``ctrkit.training.distributed``).

    Args:
        groups: all of them, those that no table was made for because there are no id fields too.
        device: ``meta`` until the tables are sharded.
    """

    def __init__(self, tables: Sequence[Table], groups: Sequence[Group], settings: Embedding, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.init_std = settings.init_std
        self.touched_l2 = settings.l2 if settings.l2_rows == "touched" else 0.0
        self.weight_names = {table.name: f"{table.group.name}/{table.owner}" for table in tables}
        self.dims = {table.name: table.group.dim for table in tables}
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
        uses = Counter(key for table in tables for key in table.keys)
        self.keys = {
            group.name: [f"{key}@{t.name}" if uses[key] > 1 else key for t in tables if t.group == group for key in t.keys]
            for group in groups
        }

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        rows = sparse.stride()
        if not self.configs:
            return {group.name: torch.zeros(rows, 0, group.dim, device=sparse.device()) for group in self.groups}
        embeddings = self.look_up(sparse)
        if self.touched_l2 and torch.is_grad_enabled():
            scale = self.touched_l2 / average_rows(rows, sparse.device())
            embeddings = {name: _add_decay(e, scale) for name, e in embeddings.items()}
        return embeddings

    def look_up(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The pooled vectors of every group."""
        pooled = self.collection(sparse)
        return {g.name: _field_vectors(pooled, self.keys[g.name], g.width)[:, :, : g.dim] for g in self.groups}


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
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return float(rows)
    total = torch.tensor([rows], device=device)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


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
