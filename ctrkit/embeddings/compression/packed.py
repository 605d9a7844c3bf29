"""Codes of any number of bits, those of a row packed bit by bit into whole bytes."""

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
    """

    octets: Tensor

    def __init__(self, codes: Tensor, bits: int) -> None:
        super().__init__()
        self.codes, self.bits = codes.shape[1], bits
        on = (codes.unsqueeze(2) // 2 ** torch.arange(bits) % 2).flatten(1)
        octets = functional.pad(on, (0, -on.shape[1] % 8)).unflatten(1, (-1, 8))
        self.register_buffer("octets", (octets * 2 ** torch.arange(8)).sum(2).to(torch.uint8))

    def forward(self, places: Tensor) -> Tensor:
        on = (self.octets[places].to(torch.int64).unsqueeze(2) // 2 ** torch.arange(8) % 2).flatten(1)
        return (on[:, : self.codes * self.bits].unflatten(1, (self.codes, self.bits)) * 2 ** torch.arange(self.bits)).sum(2)
