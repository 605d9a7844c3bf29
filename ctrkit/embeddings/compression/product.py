"""Product quantisation learned in training: what ``dpq`` and ``mgqe`` share.

An id's vector is made of a codeword for each subspace, see ``ctrkit.embeddings.compression.codebook``; in training the codewords are those
nearest to its query, and the gradient of the vector goes straight through to the query.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codebook import Codebook, columns_of
from ctrkit.embeddings.compression.codec import Codec, Part, Shard
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method
from ctrkit.embeddings.compression.space import IdSpace

_START_STD = 0.01
_CHUNK = 1 << 16


def codebook_bytes(dim: int, bits: int) -> int:
    """Of codewords for so many bits."""
    return 2**bits * dim * FLOAT_BYTES


def largest_sizes(method: Method, bits: range, takes: Callable[[int, int], int], worth: Callable[[int, int], int]) -> tuple[int, int]:
    """Subspaces and bits of a code: of those that the budget has room for the ones worth most, of equal ones those with more bits.

    Raises:
        CtrkitError: there is room for none.

    Args:
        bits: of a code, that may be chosen.
        takes: subspaces and bits -> bytes stored.
        worth: subspaces and bits -> bits of all ids' codes.
    """
    possible = [(subspaces, each) for each in bits for subspaces in range(1, method.dim + 1)]
    fitting = [sizes for sizes in possible if takes(*sizes) <= method.allowed_bytes]
    if not fitting:
        least = min(takes(*sizes) for sizes in possible)
        raise method.refuse(least, "Every id has a byte of codes at the least: raise it, or take a method whose ids share rows")
    return max(fitting, key=lambda sizes: (worth(*sizes), sizes[1]))


class ProductCodec(Codec):
    """A query for each id, in the part ``queries``.

    Args:
        allowed: of each tier, as of ``Codebook``.
    """

    def __init__(self, space: IdSpace, dim: int, subspaces: int, allowed: Sequence[int]) -> None:
        super().__init__(space, dim)
        self.parts = (Part("queries", space.total, dim, init_std=_START_STD),)
        self.codebook = Codebook(dim, subspaces, allowed)

    def tiers(self, ids: Tensor) -> Tensor:
        """int64 ``[n]`` -> int64 ``[n]``."""
        return torch.zeros_like(ids)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        distinct, place, times = ids.unique(return_inverse=True, return_counts=True)
        somewhere = torch.empty_like(distinct).scatter_(0, place, torch.arange(len(ids), device=ids.device))
        queries, tiers = vectors[0].detach()[somewhere], self.tiers(distinct)
        codes = self.codebook.codes(queries, tiers)
        if self.training:
            self.codebook.observe(queries, tiers, codes, times)
        return functional.embedding(place, self.codebook.vectors(codes)) + (vectors[0] - vectors[0].detach())

    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        self.codebook.learn(add_up)

    def codes(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Of all ids, int64 ``[total, subspaces]``."""
        ids, queries = torch.arange(self.space.total), parts["queries"].detach()
        chunks = zip(ids.split(_CHUNK), queries.split(_CHUNK), strict=True)
        return torch.cat([self.codebook.codes(rows, self.tiers(some)) for some, rows in chunks])


class StoredWords(nn.Module):
    """Codewords ``[codewords, dim]``: codes int64 ``[n, subspaces]`` -> ``[n, dim]``."""

    words: Tensor

    def __init__(self, words: Tensor, subspaces: int) -> None:
        super().__init__()
        self.columns = columns_of(words.shape[1], subspaces).tolist()
        self.register_buffer("words", words.detach().clone())

    def forward(self, codes: Tensor) -> Tensor:
        return self.words.gather(0, codes[:, torch.tensor(self.columns, device=codes.device)])
