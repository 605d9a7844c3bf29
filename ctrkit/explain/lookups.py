"""Rows as a model's dense arch sees them: looked up in its tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from ctrkit.data.batch import Batch
from ctrkit.models.base import CTRModel, RankingModel


@dataclass(frozen=True)
class Lookups:
    """Looked-up rows, bags pooled.

    Attributes:
        embeddings: as ``RankingModel.forward`` takes them: group -> ``[rows, id fields, dim]``, and of a sequence place by place
            ``<group>/<field>`` ``[rows, length, dim]`` and ``mask/<field>`` ``[rows, length]``.
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

    def mask_of(self, name: str) -> Tensor | None:
        """Where a sequence's vectors ``<group>/<field>`` are those of a value; None for other tensors."""
        group, _, field = name.partition("/")
        return None if group == "mask" else self.embeddings.get(f"mask/{field}")


def look_up(model: DistributedModelParallel, batch: Batch, device: torch.device, task: int | None = None) -> Lookups:
    """What the tables hold for a batch's ids.

    Args:
        task: whose labels, as the model is measured against them; None for one label.
    """
    batch = batch.to(device)
    trained = cast(CTRModel, model.module)
    with torch.no_grad():
        embeddings = trained.look_up(batch)
    labels = batch.labels if task is None else trained.targets(batch.labels)[:, task]
    return Lookups({name: e.clone() for name, e in embeddings.items()}, batch.dense, labels)


def dense_arch_of(model: DistributedModelParallel) -> RankingModel:
    """The dense arch, out of what averages its gradients over processes, its weights frozen."""
    arch = cast(CTRModel, model.module).dense_arch
    return cast(RankingModel, getattr(arch, "module", arch)).eval().requires_grad_(False)
