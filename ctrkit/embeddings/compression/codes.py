"""Integers of 4, 8 or 16 bits, kept in as few bytes: two of 4 bits share one."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 8, 4)
_TYPES = {16: torch.int16, 8: torch.int8}


def largest_code(bits: int) -> int:
    """Codes are ``-largest .. largest``: a scale serves both signs."""
    return 2 ** (bits - 1) - 1


def code_bytes(rows: int, dim: int, bits: int) -> int:
    """What ``StoredCodes`` takes."""
    return rows * (-(-dim // 2) if bits == 4 else dim * bits // 8)


def stochastically(numbers: Tensor, draws: Tensor) -> Tensor:
    """Rounds to an integer next to each number, up as often as it is near: the mean is the number.

    Args:
        draws: uniform in [0, 1), of the same shape.
    """
    return (numbers + draws).floor()


class StoredCodes(nn.Module):
    """Codes ``[rows, dim]``: place int64 of any shape ``[..]`` -> float32 ``[.., dim]``, the codes as numbers."""

    codes: Tensor

    def __init__(self, codes: Tensor, bits: int) -> None:
        super().__init__()
        self.dim, self.bits = codes.shape[1], bits
        if bits == 4:
            even = functional.pad(codes.to(torch.int64) + 8, (0, self.dim % 2))
            kept = (even[:, ::2] * 16 + even[:, 1::2]).to(torch.uint8)
        else:
            kept = codes.to(_TYPES[bits])
        self.register_buffer("codes", kept)

    def forward(self, places: Tensor) -> Tensor:
        codes = self.codes.index_select(0, places.flatten()).unflatten(0, places.shape)
        if self.bits != 4:
            return codes.to(torch.float32)
        pairs = codes.to(torch.int64)
        halves = torch.stack([pairs // 16, pairs % 16], dim=-1).flatten(-2)[..., : self.dim]
        return (halves - 8).to(torch.float32)
