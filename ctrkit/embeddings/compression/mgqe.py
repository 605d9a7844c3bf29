"""Multi-granular quantised embedding: frequent ids choose among all codewords, the others among the first quarter of them (Kang et al.,
Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical Features in Recommender Systems, WWW 2020, arXiv 2002.08530)::

    v(x) = W_1[c_1(x)] || .. || W_S[c_S(x)]        c_s(x): of a frequent id 0 .. K - 1, of another one 0 .. K / 4 - 1

Of the paper's variants it is the one with a shared codebook and fewer codewords, as in the benchmark of Zhang et al. (K is 256, a tenth of
the ids are frequent). S and K follow from the budget: those with the most bits of code. How the codewords are learned is told in
``ctrkit.embeddings.compression.codebook``; where it departs from the paper, see ``dpq``.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.frequent import ID_BYTES, most_frequent
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.packed import PackedCodes, packed_bytes
from ctrkit.embeddings.compression.product import ProductCodec, StoredWords, codebook_bytes, largest_sizes
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import find_sorted

_FEWER_BITS = 2
_BITS = range(_FEWER_BITS + 1, 9)


class MGQECodec(ProductCodec):
    """
    Args:
        bits: of a frequent id's code.
        frequent: ids, rising, at least one and not all. int32 ``[k]``.
    """

    frequent: Tensor

    def __init__(self, space: IdSpace, dim: int, subspaces: int, bits: int, frequent: Tensor) -> None:
        super().__init__(space, dim, subspaces, (2**bits, 2 ** (bits - _FEWER_BITS)))
        self.bits = bits
        self.register_buffer("frequent", frequent, persistent=False)

    def tiers(self, ids: Tensor) -> Tensor:
        _, there = find_sorted(self.frequent, ids)
        return (~there).to(torch.int64)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredMGQE(self, self.codes(parts))


class StoredMGQE(nn.Module):
    """
    Args:
        codes: of all ids, int64 ``[total, subspaces]``.
    """

    frequent: Tensor

    def __init__(self, codec: MGQECodec, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequent", codec.frequent.clone())
        own = codec.frequent.to(torch.int64)
        others = torch.ones(len(codes), dtype=torch.bool).index_fill(0, own, False)
        self.own, self.others = PackedCodes(codes[own], codec.bits), PackedCodes(codes[others], codec.bits - _FEWER_BITS)
        self.last_other = len(codes) - len(own) - 1
        self.words = StoredWords(codec.codebook.words, codec.codebook.subspaces)

    def forward(self, ids: Tensor) -> Tensor:
        place, there = find_sorted(self.frequent, ids)
        before = place + (self.frequent[place] < ids)
        other = self.others((ids - before).clamp(max=self.last_other))
        return self.words(torch.where(there.unsqueeze(1), self.own(place), other))


class MGQESettings(MethodSettings):
    frequent: float = Field(default=0.1, gt=0, lt=1, description="of the ids, with all codewords to choose from")


@register(
    "mgqe",
    kind="intra-feature: quantisation, by product",
    paper="Kang et al., Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical Features in Recommender Systems, WWW 2020",
    sharded="the full table of queries in training; what is served is codes",
    benchmarked=True,
)
class MGQE(Method):
    Settings = MGQESettings

    def __init__(self, settings: MGQESettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.frequent = min(max(int(settings.frequent * space.total), 1), space.total - 1)
        self.subspaces, self.bits = largest_sizes(self, _BITS, self._takes, self._code_bits)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return MGQECodec(self.space, self.dim, self.subspaces, self.bits, most_frequent(counts, self.frequent))

    def _takes(self, subspaces: int, bits: int) -> int:
        own = packed_bytes(self.frequent, subspaces, bits) + self.frequent * ID_BYTES
        others = packed_bytes(self.space.total - self.frequent, subspaces, bits - _FEWER_BITS)
        return own + others + codebook_bytes(self.dim, bits)

    def _code_bits(self, subspaces: int, bits: int) -> int:
        return subspaces * (self.space.total * (bits - _FEWER_BITS) + self.frequent * _FEWER_BITS)
