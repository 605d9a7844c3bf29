"""ROBE-Z, random offset block embedding: all vectors are read out of one circular array (Desai et al., Random Offset Block Embedding Array
for CriteoTB Benchmark MLPerf DLRM Model, MLSys 2022, arXiv 2108.02191)::

    v(x)_i = g(p) A[(h(p // Z) + p mod Z) mod size]        p = x dim + i, a number's place in the full table; A: [size]

h hashes blocks of Z numbers, g gives each number a sign. A block may start anywhere, and may hold a part of a vector or several.

Z is 16 here, not 1 as in the benchmark of Zhang et al.: it takes fewer hashes and fewer reads, and the paper finds no quality lost.
With room for the full table h(b) is Z b: nothing collides.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.hash import random_places
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace

_INIT_STD = 0.01


class RobeSettings(MethodSettings):
    block: int = Field(default=16, ge=1, description="numbers that stay side by side: the paper's Z")


class RobeCodec(Codec):
    """Args:
    size: numbers in the array.
    block: Z.
    """

    def __init__(self, space: IdSpace, dim: int, size: int, block: int) -> None:
        super().__init__(space, dim)
        self.size, self.block = size, block
        self.array = nn.Parameter(torch.randn(size) * _INIT_STD)

    def read(self, ids: Tensor, array: Tensor) -> Tensor:
        """The ids' vectors out of an array ``[size]``."""
        together = math.gcd(self.dim, self.block)  # neighbours of one block: hashed once
        first = _first_of_each(ids, self.dim, together)
        if self.size < self.space.total * self.dim:
            first = random_places(first // self.block, "robe", self.size) + first % self.block
        at = first.unsqueeze(2) + torch.arange(together, device=ids.device)
        numbers = array.index_select(0, (at % self.size).flatten()).view(-1, self.dim)
        return numbers * self._signs(ids)

    def _signs(self, ids: Tensor) -> Tensor:
        """1 or -1 for each number: the bits of a hash, up to four neighbours by one of them. ``[n, dim]``."""
        together = math.gcd(self.dim, 4)
        bits = torch.arange(2**together, device=ids.device).unsqueeze(1) // 2 ** torch.arange(together, device=ids.device) % 2
        chosen = random_places(_first_of_each(ids, self.dim, together), "robe signs", 2**together)
        return (2 * bits - 1).to(torch.float32).index_select(0, chosen.flatten()).view(-1, self.dim)

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return self.read(ids, self.array)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredRobe(self)


def _first_of_each(ids: Tensor, dim: int, together: int) -> Tensor:
    """The places in the full table of every ``together``-th number of the ids' vectors, int64 ``[n, dim / together]``."""
    return ids.unsqueeze(1) * dim + torch.arange(0, dim, together, device=ids.device)


class StoredRobe(nn.Module):
    array: Tensor

    def __init__(self, codec: RobeCodec) -> None:
        super().__init__()
        self.read = codec.read
        self.register_buffer("array", codec.array.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(ids, self.array)


@register(
    "robe",
    kind="inter-feature: hashing, of blocks of numbers",
    paper="Desai et al., Random Offset Block Embedding Array for CriteoTB Benchmark MLPerf DLRM Model, MLSys 2022",
    sharded="nothing: the array is a parameter",
    benchmarked=True,
)
class Robe(Method):
    Settings = RobeSettings
    has_rows = False

    def __init__(self, settings: RobeSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.size = self.allowed_bytes // FLOAT_BYTES
        if not self.size:
            raise self.refuse(FLOAT_BYTES, "Give it room for a number")

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return RobeCodec(self.space, self.dim, self.size, self.settings.block)
