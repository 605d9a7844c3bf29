"""Low-precision numbers with a scale for each field's table (Xu et al., Agile and Accurate CTR Prediction Model Training for Massive-Scale
Online Advertising Systems, SIGMOD 2021; Guan et al., Post-Training 4-bit Quantization on Embedding Tables, 2019)::

    v(x) = scale[table of x] * code[x]        code: integers of 16, 8 or 4 bits

In training the vectors looked up are rounded stochastically, in evaluation to the nearest integer; the gradient goes straight through.
Xu et al. keep the integers alone in training too; here float32 rows remain until the end, because an optimizer that moves every row at
every step (dense Adam) would lose them in the noise of the rounding.

Where their scale is fixed by hand, a scale follows its table: it is the one with the least squared error of rounding and clipping, judged
by a histogram of the table's magnitudes. It is taken anew after steps 1, 2, 4, .. 64, and then after every 64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Shard
from ctrkit.embeddings.compression.codes import WIDTHS, StoredCodes, code_bytes, largest_code, stochastically
from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import ByTable

_TABLE_BYTES = 2 * FLOAT_BYTES
"""Of a table: its scale and, int32, where its ids start."""
_OFTEN = 64
_BIN_BITS, _LOWEST, _BINS = 3, -40 * 8, 60 * 8
"""Bins of the histogram: eight an octave, from 2^-40 to 2^20."""


def magnitudes(numbers: Tensor) -> Tensor:
    """Histogram of ``|numbers|`` by its logarithm, int64 ``[bins]``. Zeros, which any scale keeps, are left out."""
    absolute = numbers[numbers != 0].abs()
    place = (absolute.log2() * 2**_BIN_BITS).floor().to(torch.int64) - _LOWEST
    return torch.bincount(place.clamp(0, _BINS - 1), minlength=_BINS)


def best_clips(histograms: Tensor, largest: int) -> Tensor:
    """The upper edge of a bin at which clipping and rounding to ``largest`` steps has the least squared error. ``[tables, bins]`` -> ``[tables]``.

    A table of zeros has a clip of 1.
    """
    edges = torch.exp2((torch.arange(_BINS, dtype=torch.float64, device=histograms.device) + _LOWEST + 1) / 2**_BIN_BITS)
    value, clip = (edges * 2 ** (-0.5 / 2**_BIN_BITS)).unsqueeze(1), edges
    rounding = torch.minimum((clip / largest).square() / 12, value.square())
    clipping = (value - clip).clamp(min=0).square()
    error = histograms.to(torch.float64) @ torch.where(value > clip, clipping, rounding)
    return torch.where(histograms.sum(1) > 0, edges[error.argmin(1)], 1.0).to(torch.float32)


class QuantisedCodec(FullTable):
    scales: Tensor

    def __init__(self, space: IdSpace, dim: int, bits: int) -> None:
        super().__init__(space, dim)
        self.bits, self.largest = bits, largest_code(bits)
        self.step = 0
        self.register_buffer("scales", torch.full((len(space.rows),), 1 / self.largest))

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        scales, rows = self.scales[self.space.table_of(ids)].unsqueeze(1), vectors[0]
        rounded = self.codes(rows.detach(), scales, self.training) * scales
        return rounded + (rows - rows.detach())

    def codes(self, rows: Tensor, scales: Tensor, by_chance: bool) -> Tensor:
        steps = (rows / scales).clamp(-self.largest, self.largest)
        return stochastically(steps, torch.rand_like(steps)) if by_chance else steps.round()

    def advance(self, epoch: float, step: int) -> None:
        self.step = step + 1

    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        if self.step % _OFTEN and self.step & (self.step - 1):
            return
        seen = torch.zeros(len(self.space.rows), _BINS, dtype=torch.int64, device=self.scales.device)
        for shard in shards["rows"]:
            for table, (start, rows) in enumerate(zip(self.space.starts.tolist(), self.space.rows, strict=True)):
                low, high = max(start - shard.first, 0), min(start + rows - shard.first, len(shard.weights))
                if low < high:
                    seen[table] += magnitudes(shard.weights[low:high])
        self.scales.copy_(best_clips(add_up(seen), self.largest) / self.largest)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        rows = parts["rows"].detach()
        scales = self.scales.repeat_interleave(torch.tensor(self.space.rows)).unsqueeze(1)
        return StoredQuantised(StoredCodes(self.codes(rows, scales, by_chance=False), self.bits), self.scales, self.space.starts)


class StoredQuantised(ByTable):
    scales: Tensor

    def __init__(self, codes: StoredCodes, scales: Tensor, starts: Tensor) -> None:
        super().__init__(starts)
        self.codes = codes
        self.register_buffer("scales", scales.detach().clone())

    def vectors(self, ids: Tensor, tables: Tensor) -> Tensor:
        scales = self.scales[tables].unsqueeze(-1)
        return self.codes(ids) * scales.expand(*tables.shape, self.codes.dim)  # to multiply 16 at a time takes longer than to look up


class QuantisedSettings(MethodSettings):
    bits: Literal[16, 8, 4] | None = Field(default=None, description="of a number; default the most that the budget has room for")


def possible_widths(settings: QuantisedSettings) -> tuple[int, ...]:
    """Bits of a number, widest first."""
    return WIDTHS if settings.bits is None else (settings.bits,)


def quantised_bytes(space: IdSpace, dim: int, bits: int) -> int:
    """What is stored of vectors of so many numbers."""
    return code_bytes(space.total, dim, bits) + len(space.rows) * _TABLE_BYTES


@register(
    "quantised",
    kind="intra-feature: quantisation, while training",
    paper="Xu et al., Agile and Accurate CTR Prediction Model Training for Massive-Scale Online Advertising Systems, SIGMOD 2021",
    sharded="the full table in training; what is served are integers",
    benchmarked=True,
)
class Quantised(Method):
    Settings = QuantisedSettings

    def __init__(self, settings: QuantisedSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        takes = {bits: quantised_bytes(space, dim, bits) for bits in possible_widths(settings)}
        fitting = [bits for bits, size in takes.items() if size <= self.allowed_bytes]
        if not fitting:
            fewer = "" if settings.bits in (None, 4) else ", or set fewer bits"
            raise self.refuse(min(takes.values()), f"Raise the budget{fewer}; below four bits a number, another method has to be used")
        self.bits = fitting[0]

    @classmethod
    def takes_single(cls, settings: QuantisedSettings, space: IdSpace) -> bool:
        """To be looked up as integers takes less time than to be hashed, and no two share a number."""
        allowed = settings.budget * space.total * FLOAT_BYTES
        return any(quantised_bytes(space, 1, bits) <= allowed for bits in possible_widths(settings))

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> QuantisedCodec:
        return QuantisedCodec(self.space, self.dim, self.bits)
