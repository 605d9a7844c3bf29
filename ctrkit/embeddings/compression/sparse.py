"""A table of mostly zeros, stored without them: of each row that has something a bit for each column and the numbers that are not zero.

Two layouts, of which the smaller one is taken::

    some rows   the ids of the rows that have something, rising, and where the numbers of each start: 8 bytes a row that has something
    all rows    where the numbers of every row start: 4 bytes a row of the table
    both        a bit for each column, in bytes, of the rows listed; the numbers, row by row: 4 bytes each

If even the plain table is no larger (nothing is zero), it is stored as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.method import Method
from ctrkit.embeddings.compression.stored import find_sorted

_INT, _FLOAT = 4, 4


def sparse_bytes(rows: int, dim: int, rows_left: int, numbers: int) -> int:
    """What ``StoredSparse`` takes.

    Args:
        rows: of the table.
        rows_left: of them with a number that is not zero; one is listed even if there is none.
        numbers: that are not zero.
    """
    mask = -(-dim // 8)
    listed = min(max(rows_left, 1) * (2 * _INT + mask), rows * (_INT + mask))
    return min(listed + max(numbers, 1) * _FLOAT, rows * dim * _FLOAT)


def require_room(method: Method) -> None:
    """Raises CtrkitError if a budget has no room for one number of a table that is stored sparse."""
    least = sparse_bytes(method.space.total, method.dim, 1, 1)
    if least > method.allowed_bytes:
        raise method.refuse(least, "Give it room for one number")


def largest_that_fit(scores: Tensor, allowed: int) -> Tensor:
    """A mask of the largest scores, as many as ``StoredSparse`` has room for in so many bytes. ``[rows, dim]`` -> bool ``[rows, dim]``."""
    rows, dim = scores.shape
    order = scores.flatten().argsort(descending=True, stable=True)
    first = torch.full((rows,), order.numel(), dtype=torch.int64)
    first.scatter_reduce_(0, order // dim, torch.arange(order.numel()), "amin")
    new_rows = torch.zeros(order.numel() + 1, dtype=torch.int64).index_add(0, first, torch.ones(rows, dtype=torch.int64))
    rows_left = new_rows.cumsum(0)
    fewest, most = 0, order.numel()
    while fewest < most:  # bytes never fall with one number more
        middle = (fewest + most + 1) // 2
        fits = sparse_bytes(rows, dim, int(rows_left[middle - 1]), middle) <= allowed
        fewest, most = (middle, most) if fits else (fewest, middle - 1)
    mask = torch.zeros(order.numel(), dtype=torch.bool)
    mask[order[:fewest]] = True
    return mask.view(rows, dim)


class StoredSparse(nn.Module):
    """``table [rows, dim]`` without its zeros: place int64 ``[n]`` -> ``[n, dim]``."""

    numbers: Tensor
    bits: Tensor
    starts: Tensor
    listed: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        rows, self.dim = table.shape
        kept = table != 0
        left = kept.any(1).nonzero().squeeze(1)
        left = left if len(left) else left.new_zeros(1)
        mask = -(-self.dim // 8)
        numbers = table[kept]
        numbers = numbers if len(numbers) else table.new_zeros(1)
        self.plain = sparse_bytes(rows, self.dim, len(left), len(numbers)) == rows * self.dim * _FLOAT
        if self.plain:
            self.register_buffer("numbers", table.detach().clone())
            return
        self.some = len(left) * (2 * _INT + mask) < rows * (_INT + mask)
        stay = left if self.some else torch.arange(rows)
        counts = kept[stay].sum(1)
        weights = 2 ** torch.arange(8)
        octets = functional.pad(kept[stay].to(torch.int64), (0, mask * 8 - self.dim)).view(len(stay), mask, 8)
        self.register_buffer("numbers", numbers.detach().clone())
        self.register_buffer("starts", (counts.cumsum(0) - counts).to(torch.int32))
        self.register_buffer("bits", (octets * weights).sum(2).to(torch.uint8))
        if self.some:
            self.register_buffer("listed", left.to(torch.int32))

    def forward(self, places: Tensor) -> Tensor:
        if self.plain:
            return functional.embedding(places, self.numbers)
        row, there = find_sorted(self.listed, places) if self.some else (places, None)
        octets = self.bits[row].to(torch.int64).unsqueeze(2)
        on = (octets // (2 ** torch.arange(8, device=places.device))) % 2
        on = on.flatten(1)[:, : self.dim]
        if there is not None:
            on = on * there.unsqueeze(1)
        number = self.starts[row].to(torch.int64).unsqueeze(1) + on.cumsum(1) - on
        return self.numbers[number.clamp(max=len(self.numbers) - 1)] * on
