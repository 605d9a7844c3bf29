"""What the loader hands to a model."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor


@dataclass
class Batch:
    """One batch of encoded rows.

    Attributes:
        sparse: ids of all id fields; keys in the order of ``Inputs.id_fields``, values int64.
        dense: ``[batch, numeric fields]`` float32; NaN is missing.
        labels: ``[batch]`` float32, 0 or 1; ``[batch, tasks]`` of several labels.
        groups: int64 ``[batch]`` group ids for gauc, None without a group column.
    """

    sparse: KeyedJaggedTensor
    dense: Tensor
    labels: Tensor
    groups: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.sparse.to(device), self.dense.to(device), self.labels.to(device), self.groups)
