"""Residual quantisation of a trained table (Chen, Guan and Wang, Approximate Nearest Neighbor Search by Residual Vector Quantization, Sensors
2010)::

    v(x) = W_1[c_1(x)] + .. + W_L[c_L(x)]        c_l(x): of the codeword nearest to what levels 1 .. l - 1 leave of x's trained row

A full table is trained first. The codewords of a level are the k-means of what the levels before it leave, see
``ctrkit.embeddings.compression.clusters``; codes stay as they are then, and codewords are trained on. L, at most the width, and the number
of a level's codewords follow from the budget: those with the most bits of code.
"""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from ctrkit.embeddings.compression.clusters import cluster
from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.coded import CodedCodec
from ctrkit.embeddings.compression.full import WholeTable
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.packed import packed_bytes
from ctrkit.embeddings.compression.product import codebook_bytes, largest_sizes
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace

_BITS = range(1, 9)


class RQSettings(MethodSettings):
    search_epochs: int = Field(default=10, ge=1, description="of the full table's training, at most")


def added_up(codes: Tensor, words: Tensor) -> Tensor:
    """int64 ``[n, levels]`` and codewords ``[levels, K, dim]`` -> ``[n, dim]``."""
    levels, count, _ = words.shape
    return words.flatten(0, 1)[codes + torch.arange(levels, device=codes.device) * count].sum(1)


@register(
    "rq",
    kind="intra-feature: quantisation, of residuals, after training",
    paper="Chen et al., Approximate Nearest Neighbor Search by Residual Vector Quantization, Sensors 2010",
    sharded="the full table, before it is quantised; codewords are in every process",
)
class RQ(Method):
    Settings = RQSettings
    search_stops_early = True
    starts_from = "end"

    def __init__(self, settings: RQSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.search_epochs = settings.search_epochs
        self.levels, self.bits = largest_sizes(
            self,
            _BITS,
            lambda levels, bits: packed_bytes(space.total, levels, bits) + levels * codebook_bytes(dim, bits),
            lambda levels, bits: levels * bits,
        )

    def supernet(self, counts: Tensor) -> WholeTable:
        return WholeTable(self.space, self.dim)

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        left, words, codes = parts["rows"], [], []
        for _ in range(self.levels):
            own, chosen = cluster(left, counts, 2**self.bits)
            left = left - own[chosen]
            words.append(own)
            codes.append(chosen)
        return {"words": torch.stack(words), "codes": torch.stack(codes, 1).to(torch.uint8)}

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> CodedCodec:
        return CodedCodec(self.space, self.dim, decision["codes"], self.bits, decision["words"], added_up)
