"""Differentiable product quantisation: every id has a code in each subspace, learned together with the codewords (Chen et al., Differentiable
Product Quantization for End-to-End Embedding Compression, ICML 2020, arXiv 1908.09756)::

    v(x) = W_1[c_1(x)] || .. || W_S[c_S(x)]        c_s(x): of the codeword nearest to columns of x's query, 0 .. K - 1

It is the paper's DPQ-VQ, as in the benchmark of Zhang et al. S and K follow from the budget: those with the most bits of code. Two things
differ. Codewords are moving means of their queries, where the paper moves them there by gradient; and the paper normalises distances over a
batch, codeword by codeword, so that all are chosen, which makes the chosen one not the nearest: here unused ones are put elsewhere. See
``ctrkit.embeddings.compression.codebook``.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.packed import PackedCodes, packed_bytes
from ctrkit.embeddings.compression.product import ProductCodec, StoredWords, codebook_bytes, largest_sizes
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace

_BITS = range(1, 9)


class DPQCodec(ProductCodec):
    def __init__(self, space: IdSpace, dim: int, subspaces: int, bits: int) -> None:
        super().__init__(space, dim, subspaces, (2**bits,))
        self.bits = bits

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return nn.Sequential(PackedCodes(self.codes(parts), self.bits), StoredWords(self.codebook.words, self.codebook.subspaces))


@register(
    "dpq",
    kind="intra-feature: quantisation, by product",
    paper="Chen et al., Differentiable Product Quantization for End-to-End Embedding Compression, ICML 2020",
    sharded="the full table of queries in training; what is served is codes",
)
class DPQ(Method):
    def __init__(self, settings: MethodSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.subspaces, self.bits = largest_sizes(
            self,
            _BITS,
            lambda subspaces, bits: packed_bytes(space.total, subspaces, bits) + codebook_bytes(dim, bits),
            lambda subspaces, bits: subspaces * bits,
        )

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return DPQCodec(self.space, self.dim, self.subspaces, self.bits)
