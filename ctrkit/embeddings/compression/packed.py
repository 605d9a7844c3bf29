"""Codes of 1 to 8 bits, those of a row packed bit by bit into whole bytes."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def packed_bytes(rows: int, codes: int, bits: int) -> int:
    """What ``PackedCodes`` takes."""
    return rows * -(-codes * bits // 8)


class PackedCodes(nn.Module):
    """Codes ``[rows, codes]``: place int64 ``[n]`` -> int64 ``[n, codes]``.

    Args:
        codes: int64, ``0 .. 2**bits - 1``.
        bits: at most 8.
    """

    octets: Tensor

    def __init__(self, codes: Tensor, bits: int) -> None:
        super().__init__()
        self.codes, self.bits = codes.shape[1], bits
        on = (codes.unsqueeze(2) // 2 ** torch.arange(bits) % 2).flatten(1)
        octets = functional.pad(on, (0, -on.shape[1] % 8)).unflatten(1, (-1, 8))
        self.register_buffer("octets", (octets * 2 ** torch.arange(8)).sum(2).to(torch.uint8))

    def forward(self, places: Tensor) -> Tensor:
        octets = self.octets.index_select(0, places).to(torch.int64)
        start = torch.arange(self.codes, device=places.device) * self.bits
        low = start // 8
        high = (low + 1).clamp(max=octets.shape[1] - 1)
        return (octets[:, low] + 256 * octets[:, high]) // 2 ** (start % 8) % 2**self.bits
