"""Rows as a model's dense arch sees them: looked up in its tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from ctrkit.data.batch import Batch
from ctrkit.models.base import CTRModel, RankingModel
from ctrkit.schema import Inputs


@dataclass(frozen=True)
class Lookups:
    """Looked-up rows, bags pooled.

    Attributes:
        embeddings: group -> ``[rows, id fields, dim]``.
        dense: ``[rows, numeric fields]``, NaN is missing.
        labels: ``[rows]``.
    """

    embeddings: dict[str, Tensor]
    dense: Tensor
    labels: Tensor

    @property
    def rows(self) -> int:
        return self.dense.shape[0]

    def __getitem__(self, rows: slice) -> "Lookups":
        return Lookups({name: e[rows] for name, e in self.embeddings.items()}, self.dense[rows], self.labels[rows])

    def split(self, rows: int) -> Iterator["Lookups"]:
        """Pieces of so many rows, in order."""
        return (self[slice(start, start + rows)] for start in range(0, self.rows, rows))


def look_up(model: DistributedModelParallel, batch: Batch, device: torch.device) -> Lookups:
    """What the tables hold for a batch's ids."""
    batch = batch.to(device)
    with torch.no_grad():
        embeddings = cast(CTRModel, model.module).look_up(batch)
    return Lookups({name: e.clone() for name, e in embeddings.items()}, batch.dense, batch.labels)


def dense_arch_of(model: DistributedModelParallel) -> RankingModel:
    """The dense arch, out of what averages its gradients over processes, its weights frozen."""
    arch = cast(CTRModel, model.module).dense_arch
    return cast(RankingModel, getattr(arch, "module", arch)).eval().requires_grad_(False)


def field_names(inputs: Inputs) -> list[str]:
    """All fields in the order of a model's vectors: id fields, then numeric ones."""
    return [*(field.name for field in inputs.id_fields), *inputs.numeric_fields]
