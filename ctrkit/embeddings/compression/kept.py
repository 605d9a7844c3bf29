"""The stored form of a table of which some rows are kept, those of each field at a width of its own: the first numbers of them, the others
being zero.

What is stored::

    numbers   of the rows that are kept, row by row: 4 bytes each
    fields    where each field's ids start, its width, and where its numbers are: 20 bytes a field
    index     which rows are kept, the smaller of: their ids, rising, 4 bytes each; or a bit for each row of the table and, every 32 rows,
              how many are kept before: 8 bytes for every 32 rows. None if all are.

A table that is kept whole is stored as it is.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.stored import ByTable, StoredRows, find_sorted

_INT, _FLOAT = 4, 4
_FIELD = _INT + 2 * 8
_BLOCK = 32
"""Rows from count to count."""


def kept_bytes(rows: Sequence[int], dim: int, left: Tensor, numbers: Tensor) -> Tensor:
    """What ``store_kept`` gives takes, of each of several choices.

    Args:
        rows: of each field.
        dim: of the vectors.
        left: rows that are kept, at least one, int64 ``[choices]``.
        numbers: of those rows, int64 ``[choices]``.

    Returns:
        int64 ``[choices]``.
    """
    total = sum(rows)
    index = torch.where(left == total, 0, (left * _INT).clamp(max=_marks_bytes(total)))
    return torch.where(numbers == total * dim, 0, index + len(rows) * _FIELD) + numbers * _FLOAT


def store_kept(table: Tensor, rows: Sequence[int], kept: Tensor, widths: Tensor) -> nn.Module:
    """id int64 ``[n]`` -> ``[n, dim]``, zero where the row is not kept.

    Args:
        table: of all ids, ``[total, dim]``.
        rows: of each field.
        kept: which rows are, at least one, bool ``[total]``.
        widths: of each field, 1 .. dim, int64 ``[fields]``.
    """
    if kept.all() and (widths == table.shape[1]).all():
        return StoredRows(table)
    return StoredKept(table, rows, kept, widths)


class StoredKept(ByTable):
    """As of ``store_kept``."""

    numbers: Tensor
    widths: Tensor
    shifts: Tensor

    def __init__(self, table: Tensor, rows: Sequence[int], kept: Tensor, widths: Tensor) -> None:
        super().__init__(torch.tensor(list(accumulate(rows, initial=0))[:-1]))
        total, self.dim = table.shape
        inside = (torch.arange(self.dim) < widths.repeat_interleave(torch.tensor(rows)).unsqueeze(1)) & kept.unsqueeze(1)
        left = torch.stack([part.sum() for part in kept.split(list(rows))])
        first_number, first_row = (_before(counts) for counts in (left * widths, left))
        self.register_buffer("numbers", table.detach().cpu()[inside])
        self.register_buffer("widths", widths.clone())
        self.register_buffer("shifts", first_number - first_row * widths)
        listed = int(left.sum()) * _INT < _marks_bytes(total)
        self.index = _All() if kept.all() else _Listed(kept) if listed else _Marked(kept)

    def vectors(self, ids: Tensor, tables: Tensor) -> Tensor:
        width, shift = self.widths[tables], self.shifts[tables]
        row, there = self.index(ids)
        columns = torch.arange(self.dim, device=ids.device)
        number = ((shift + row * width).unsqueeze(-1) + columns).clamp(0, len(self.numbers) - 1)
        return torch.where((columns < width.unsqueeze(-1)) & there.unsqueeze(-1), self.numbers[number], 0.0)


class _All(nn.Module):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids, torch.ones_like(ids, dtype=torch.bool)


class _Listed(nn.Module):
    """Ids -> which of the kept rows each one's is, and whether it is kept. int64 ``[..]`` -> int64 ``[..]``, bool ``[..]``."""

    ids: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", kept.nonzero().squeeze(1).to(torch.int32))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return find_sorted(self.ids, ids)


class _Marked(nn.Module):
    """As ``_Listed``."""

    marks: Tensor
    before: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        blocks = functional.pad(kept.to(torch.int64), (0, -len(kept) % _BLOCK)).view(-1, _BLOCK)
        self.register_buffer("marks", (blocks * 2 ** torch.arange(_BLOCK)).sum(1).to(torch.int32))  # the last one is the sign
        self.register_buffer("before", _before(blocks.sum(1)).to(torch.int32))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        block, bit = ids // _BLOCK, 2 ** (ids % _BLOCK)
        marks = self.marks[block].to(torch.int64)
        earlier = (marks & (bit - 1)).unsqueeze(-1) & 2 ** torch.arange(_BLOCK, device=ids.device)
        return self.before[block] + (earlier > 0).sum(-1), (marks & bit) > 0


def _marks_bytes(total: int) -> int:
    return -(-total // _BLOCK) * 2 * _INT


def _before(counts: Tensor) -> Tensor:
    """The sum of those before each."""
    return counts.cumsum(0) - counts
