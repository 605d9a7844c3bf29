"""Vectors out of codes that stay as a search left them, and codewords that are trained on: what ``pq`` and ``rq`` share."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.packed import PackedCodes
from ctrkit.embeddings.compression.space import IdSpace

Decode = Callable[[Tensor, Tensor], Tensor]
"""Codes int64 ``[n, codes]`` and codewords of any shape -> ``[n, dim]``."""


class CodedCodec(Codec):
    """
    Args:
        codes: of all ids, uint8 ``[total, codes]``.
        bits: of a code.
        words: to start from.
    """

    codes: Tensor

    def __init__(self, space: IdSpace, dim: int, codes: Tensor, bits: int, words: Tensor, decode: Decode) -> None:
        super().__init__(space, dim)
        self.bits, self.decode = bits, decode
        self.register_buffer("codes", codes, persistent=False)  # they are in the decision
        self.words = nn.Parameter(words.clone())

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return self.decode(self.codes[ids].to(torch.int64), self.words)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredCoded(PackedCodes(self.codes.to(torch.int64), self.bits), self.words, self.decode)


class StoredCoded(nn.Module):
    words: Tensor

    def __init__(self, codes: PackedCodes, words: Tensor, decode: Decode) -> None:
        super().__init__()
        self.codes, self.decode = codes, decode
        self.register_buffer("words", words.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.decode(self.codes(ids), self.words)
