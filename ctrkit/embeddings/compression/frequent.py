"""The ids that are in most training rows, which have rows of their own."""

import torch
from torch import Tensor

from ctrkit.embeddings.compression.method import Method

ID_BYTES = 4
"""Of an id in a list of them, int32."""


def most_frequent(counts: Tensor, how_many: int) -> Tensor:
    """The ids that are counted most, rising; of equal ones the smaller. int64 ``[total]`` -> int32 ``[how_many]``."""
    chosen = counts.argsort(descending=True, stable=True)[:how_many]
    return chosen.sort().values.to(torch.int32)


def split_budget(method: Method, share: float, own: int, shared: int) -> tuple[int, int]:
    """How many frequent ids have rows of their own, as many as go into a share of the budget, and how many shared rows take the rest.

    Args:
        share: of the budget.
        own: bytes of a frequent id's own rows, those of its number in the list not counted.
        shared: bytes of a shared row.

    Raises:
        CtrkitError: there is no room for one of each.
    """
    allowed = method.allowed_bytes
    least = own + ID_BYTES + shared
    if allowed < least:
        raise method.refuse(least, "Give it room for the row of a frequent id and a shared one")
    frequent = max(min(int(share * allowed), allowed - shared) // (own + ID_BYTES), 1)
    return frequent, (allowed - frequent * (own + ID_BYTES)) // shared
