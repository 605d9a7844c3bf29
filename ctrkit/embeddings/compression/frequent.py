"""The ids that are in most training rows."""

import torch
from torch import Tensor

ID_BYTES = 4
"""Of an id in a list of them, int32."""


def most_frequent(counts: Tensor, how_many: int) -> Tensor:
    """The ids that are counted most, rising; of equal ones the smaller. int64 ``[total]`` -> int32 ``[how_many]``."""
    chosen = counts.argsort(descending=True, stable=True)[:how_many]
    return chosen.sort().values.to(torch.int32)
