"""Pieces of stored forms, in operations that ONNX has."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.space import table_of


class StoredRows(nn.Module):
    """A table as it is: place int64 ``[n]`` -> ``[n, width]``."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.detach().clone())

    def forward(self, places: Tensor) -> Tensor:
        return functional.embedding(places, self.table)


def find_sorted(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Binary search: the place of each wanted number among rising, distinct keys, and whether it is there.

    Args:
        keys: integers ``[k]``, at least one.
        wanted: int64 ``[n]``.

    Returns:
        int64 ``[n]``, some place for those that are not there, and bool ``[n]``.
    """
    place = torch.zeros_like(wanted)
    step = 1 << (len(keys) - 1).bit_length() >> 1
    while step:
        ahead = (place + step).clamp(max=len(keys) - 1)
        place = torch.where(keys[ahead].to(torch.int64) <= wanted, ahead, place)
        step >>= 1
    return place, keys[place].to(torch.int64) == wanted


class ByTable(nn.Module, ABC):
    """A stored form whose vectors depend on the table that an id is of.

    Args:
        starts: where each table's ids start, rising from 0. Kept in int32, and counted as stored.
    """

    starts: Tensor

    def __init__(self, starts: Tensor) -> None:
        super().__init__()
        self.register_buffer("starts", starts.to(torch.int32))

    def forward(self, ids: Tensor, tables: Tensor | None = None) -> Tensor:
        """int64 ``[.., n]`` -> ``[.., n, dim]``.

        Args:
            tables: of the ids, by number, int64 ``[n]``, of a caller that knows them: to find them takes longer than all the rest.
        """
        return self.vectors(ids, table_of(ids, self.starts.to(torch.int64)) if tables is None else tables)

    @abstractmethod
    def vectors(self, ids: Tensor, tables: Tensor) -> Tensor:
        """int64 ``[.., n]``, and ``[n]`` or ``[.., n]`` -> ``[.., n, dim]``."""
