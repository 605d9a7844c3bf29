"""Product quantisation of a trained table (Jegou, Douze and Schmid, Product Quantization for Nearest Neighbor Search, TPAMI 2011)::

    v(x) = W_1[c_1(x)] || .. || W_S[c_S(x)]        c_s(x): of the codeword nearest to columns s of x's trained row, 0 .. K - 1

A full table is trained first. The codewords of each subspace are the k-means of its columns, see ``ctrkit.embeddings.compression.clusters``;
codes stay as they are then, and codewords are trained on. S and K follow from the budget: those with the most bits of code.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from ctrkit.embeddings.compression.clusters import cluster
from ctrkit.embeddings.compression.codebook import columns_of, widths_of
from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.coded import CodedCodec
from ctrkit.embeddings.compression.full import WholeTable
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.packed import packed_bytes
from ctrkit.embeddings.compression.product import codebook_bytes, largest_sizes
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace

_BITS = range(1, 9)


class PQSettings(MethodSettings):
    search_epochs: int = Field(default=10, ge=1, description="of the full table's training, at most")


def side_by_side(codes: Tensor, words: Tensor, subspace_of: Sequence[int]) -> Tensor:
    """int64 ``[n, subspaces]`` and codewords ``[K, dim]``, column k in subspace ``subspace_of[k]`` -> ``[n, dim]``."""
    return words.gather(0, codes[:, torch.tensor(subspace_of, device=codes.device)])


@register(
    "pq",
    kind="intra-feature: quantisation, by product, after training",
    paper="Jegou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011",
    sharded="the full table, before it is quantised; codewords are in every process",
)
class PQ(Method):
    Settings = PQSettings
    search_stops_early = True
    starts_from = "end"

    def __init__(self, settings: PQSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.search_epochs = settings.search_epochs
        self.subspaces, self.bits = largest_sizes(
            self,
            _BITS,
            lambda subspaces, bits: packed_bytes(space.total, subspaces, bits) + codebook_bytes(dim, bits),
            lambda subspaces, bits: subspaces * bits,
        )

    def supernet(self, counts: Tensor) -> WholeTable:
        return WholeTable(self.space, self.dim)

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        columns = parts["rows"].split(widths_of(self.dim, self.subspaces), 1)
        words, codes = zip(*(cluster(part, counts, 2**self.bits) for part in columns), strict=True)
        return {"words": torch.cat(words, 1), "codes": torch.stack(codes, 1).to(torch.uint8)}

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> CodedCodec:
        decode = partial(side_by_side, subspace_of=columns_of(self.dim, self.subspaces).tolist())
        return CodedCodec(self.space, self.dim, decision["codes"], self.bits, decision["words"], decode)
