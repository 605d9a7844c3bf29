"""The sparse arch: one TorchRec table an id field and group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from ctrkit.config import Embedding
from ctrkit.embeddings.bags import one_value_a_row, pool
from ctrkit.schema import Inputs

WIDTH_UNIT = 4
"""FBGEMM's kernels take widths that are multiples of it; a narrower group is padded with columns nobody reads."""

_POOLING = {"mean": PoolingType.MEAN, "sum": PoolingType.SUM}


@dataclass(frozen=True)
class Group:
    """One table an id field, of this width: ``Group("embedding", 16)``, ``Group("linear", 1)``.

    Attributes:
        gates: its one column gates the other groups' rows of the same id, see ``Tables``; Adam trains it, whatever
            ``embedding.optimizer`` is, since a penalty on gates is on all of them.
        start: of every row; None draws them at random.
    """

    name: str
    dim: int
    gates: bool = False
    start: float | None = None

    @property
    def width(self) -> int:
        """Columns of the stored tables: ``dim`` rounded up to a multiple of ``WIDTH_UNIT``."""
        return -(-self.dim // WIDTH_UNIT) * WIDTH_UNIT


class Tables(nn.Module):
    """Looks ids up: ``KeyedJaggedTensor -> {group: [batch, id fields, dim]}``.

    A bag (multi-valued field) is pooled to its mean or sum; an empty bag is the zero vector. Padding (id 0) is never
    among the ids of a batch, so its row keeps the zeros it was made with.

    With ``l2_rows: touched`` the penalty ``l2 / 2`` x the mean over the batch of ``||looked-up embeddings||^2`` is added to the
    gradient here rather than in the optimizer: FBGEMM's CPU kernels know weight decay for row-wise Adagrad only. ``l2_rows: all``
    is the dense optimizer's work (``ctrkit.training.distributed``).

    With a group of gates every other group's row is multiplied by its id's gate before bags are pooled, so bags are looked up value by
    value. A gated table never pools by itself: that leaves the pooling type free to tell gates from the rest, which TorchRec then keeps
    in a kernel of their own.

    Args:
        device: ``meta`` until the tables are sharded.
    """

    def __init__(self, inputs: Inputs, groups: Sequence[Group], settings: Embedding, device: torch.device | str = "meta") -> None:
        super().__init__()
        self.inputs = inputs
        self.fields = tuple(field.name for field in inputs.id_fields)
        self.groups = tuple(groups)
        self.gates = [group.name for group in groups if group.gates]
        self.has_bags = any(field.multi_valued for field in inputs.id_fields)
        self.init_std = settings.init_std
        self.touched_l2 = settings.l2 if settings.l2_rows == "touched" else 0.0
        self.weight_names = {table_name(g.name, f): f"{g.name}/{f}" for g in groups for f in self.fields}
        self.dims = {table_name(g.name, f): g.dim for g in groups for f in self.fields}
        self.starts = {table_name(g.name, f): g.start for g in groups for f in self.fields if g.start is not None}
        self.gate_tables = frozenset(table_name(g.name, f) for g in groups for f in self.fields if g.gates)
        bags = {field.pooling for field in inputs.id_fields if field.multi_valued}
        one = PoolingType.MEAN if bags == {"mean"} and not self.gates else PoolingType.SUM
        self.configs = [
            EmbeddingBagConfig(
                name=table_name(group.name, field.name),
                embedding_dim=group.width,
                num_embeddings=field.rows,
                feature_names=[field.name],
                pooling=PoolingType.MEAN if group.gates else _POOLING[field.pooling] if field.multi_valued and not self.gates else one,
                init_fn=_leave,
            )
            for group in groups
            for field in inputs.id_fields
        ]
        self.collection = EmbeddingBagCollection(self.configs, device=torch.device(device))
        shared = len(self.groups) > 1
        self.keys = {g.name: [f"{f}@{table_name(g.name, f)}" if shared else f for f in self.fields] for g in self.groups}

    def forward(self, sparse: KeyedJaggedTensor, gate: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """
        Args:
            gate: what a gate's number does to a row: c -> the factor. Of tables with a group of gates.
        """
        rows = sparse.stride()
        if not self.fields or not self.groups:
            return {g.name: torch.zeros(rows, 0, g.dim, device=sparse.device()) for g in self.groups if not g.gates}
        by_value = bool(self.gates) and self.has_bags
        pooled = self.collection(one_value_a_row(sparse) if by_value else sparse)
        embeddings = {g.name: _field_vectors(pooled, self.keys[g.name], g.width)[:, :, : g.dim] for g in self.groups}
        gates = [embeddings.pop(name) for name in self.gates]
        if self.touched_l2 and torch.is_grad_enabled():
            scale = self.touched_l2 / average_rows(rows, sparse.device())
            embeddings = {name: _add_decay(e, scale) for name, e in embeddings.items()}
        for c in gates:
            assert gate is not None
            factor = gate(c)
            embeddings = {name: e * factor for name, e in embeddings.items()}
        return {name: pool(e, sparse, self.inputs) for name, e in embeddings.items()} if by_value else embeddings


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
