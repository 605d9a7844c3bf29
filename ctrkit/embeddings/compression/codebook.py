"""The codewords of product quantisation, and how they follow the queries.

A vector's columns are cut into subspaces, as even as they go; in each, a query is coded by the nearest codeword. A codeword is the mean of
the queries that chose it, a moving one over training steps (the codebook of van den Oord et al., Neural Discrete Representation Learning,
2017, appendix A.1). One that hardly any query chooses is put beside the codeword with the largest squared error, whose queries they
then share (Linde, Buzo and Gray, An Algorithm for Vector Quantizer Design, 1980).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_DECAY = 0.9
_START_STD = 0.01
_UNUSED = 0.1
"""A codeword chosen less often than this share of the mean is put elsewhere."""
_ROUNDING = 1e-5
"""Of the mean square: a variance below it is that of equal queries, which nothing can set apart."""
_EXACT = "donot_use_mm_for_euclid_dist"
_LEAST = 1e-6
"""Choices, on average over steps, without which a codeword stays where it is."""


def widths_of(dim: int, subspaces: int) -> list[int]:
    """The columns of each subspace."""
    return [dim // subspaces + (s < dim % subspaces) for s in range(subspaces)]


def columns_of(dim: int, subspaces: int) -> Tensor:
    """The subspace of each column, int64 ``[dim]``."""
    return torch.arange(subspaces).repeat_interleave(torch.tensor(widths_of(dim, subspaces)))


def nearest(queries: Tensor, words: Tensor) -> Tensor:
    """The nearest word, by number. ``[n, width]`` and ``[words, width]`` -> int64 ``[n]``. Numbers are looked up among the middles of words."""
    if words.shape[1] > 1:
        return torch.cdist(queries, words, compute_mode=_EXACT).argmin(1)
    ordered, number = words.squeeze(1).sort(stable=True)
    return number[torch.bucketize(queries[:, 0].contiguous(), (ordered[1:] + ordered[:-1]) / 2)]


class Codebook(nn.Module):
    """
    Args:
        dim: columns.
        subspaces: they are cut into.
        allowed: for each tier of queries the number of codewords, the first ones, that it may choose; falling.

    Attributes:
        words: in all subspaces side by side, ``[codewords, dim]``.
        moments: for each tier and codeword its choices in each subspace, and of the queries that chose it the sum and the sum of squares
            in each column, averaged over steps: ``[tiers, codewords, subspaces + 2 dim]``.
    """

    words: Tensor
    moments: Tensor
    seen: Tensor
    column: Tensor
    subspace_of: Tensor

    def __init__(self, dim: int, subspaces: int, allowed: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.subspaces, self.allowed = dim, subspaces, tuple(allowed)
        self.widths = widths_of(dim, subspaces)
        column = columns_of(dim, subspaces)
        moments = torch.zeros(len(allowed), allowed[0], subspaces + 2 * dim)
        self.register_buffer("words", torch.randn(allowed[0], dim) * _START_STD)
        self.register_buffer("moments", moments)
        self.register_buffer("seen", torch.zeros_like(moments), persistent=False)
        self.register_buffer("column", column, persistent=False)
        self.register_buffer("subspace_of", torch.cat([torch.arange(subspaces), column, column]), persistent=False)

    def codes(self, queries: Tensor, tiers: Tensor) -> Tensor:
        """The nearest codewords, by number. ``[n, dim]`` and int64 ``[n]`` -> int64 ``[n, subspaces]``."""
        codes = torch.empty(len(queries), self.subspaces, dtype=torch.int64, device=queries.device)
        for tier, allowed in enumerate(self.allowed):
            (rows,) = (tiers == tier).nonzero(as_tuple=True)
            pairs = zip(queries[rows].split(self.widths, 1), self.words[:allowed].split(self.widths, 1), strict=True)
            codes[rows] = torch.stack([nearest(query, words) for query, words in pairs], 1)
        return codes

    def vectors(self, codes: Tensor) -> Tensor:
        """int64 ``[n, subspaces]`` -> ``[n, dim]``."""
        return self.words.gather(0, codes[:, self.column])

    def observe(self, queries: Tensor, tiers: Tensor, codes: Tensor, times: Tensor) -> None:
        """Keeps what the queries of a step chose, for ``learn``; each counts ``times``, int64 ``[n]``."""
        chosen = (tiers.unsqueeze(1) * len(self.words) + codes)[:, self.subspace_of]
        values = torch.cat([torch.ones_like(codes, dtype=queries.dtype), queries, queries.square()], 1) * times.unsqueeze(1)
        self.seen = torch.zeros_like(self.moments).flatten(0, 1).scatter_add(0, chosen, values).view_as(self.moments)

    def learn(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Moves the codewords. ``add_up``: a tensor -> its sum over all processes."""
        self.moments.mul_(_DECAY).add_(add_up(self.seen), alpha=1 - _DECAY)
        for tier in reversed(range(len(self.allowed))):
            first = self.allowed[tier + 1] if tier + 1 < len(self.allowed) else 0
            self._put_unused(first, tier)
        choices, sums, _ = self._split(self.moments.sum(0))
        self.words.copy_(torch.where(choices > _LEAST, sums / choices, self.words))

    def _put_unused(self, first: int, tier: int) -> None:
        """Halves the choices of codewords with large errors between them and the unused ones from ``first`` to the last of a tier.

        Only tiers up to this one may choose those, so choices and errors are those of their queries.
        """
        moments = self.moments[: tier + 1]
        last = self.allowed[tier]
        used = moments.sum(0)[:, : self.subspaces]
        unused = used < _UNUSED * used.mean(0)
        choices, sums, squares = self._split(moments.sum(0))
        square = squares / choices
        variance = square - (sums / choices).square()
        variance = variance.where((choices > _LEAST) & (variance > _ROUNDING * square), 0.0)
        error = torch.zeros_like(used).index_add(1, self.column, variance * choices)
        error = error.masked_fill(unused, 0.0)
        source = error.argsort(dim=0, descending=True, stable=True)[: last - first]
        target = first + unused[first:last].to(torch.int8).argsort(dim=0, descending=True, stable=True)
        moves = (unused.gather(0, target) & (error.gather(0, source) > 0))[:, self.subspace_of]
        source, target = (rows[:, self.subspace_of].expand(tier + 1, -1, -1) for rows in (source, target))
        apart = self._widest(variance.gather(0, source[0, :, self.subspaces : self.subspaces + self.dim])).sqrt()
        taken = moments.gather(1, source)
        moments.scatter_(1, source, torch.where(moves, self._half(taken, -apart), taken))
        moments.scatter_(1, target, torch.where(moves, self._half(taken, apart), moments.gather(1, target)))

    def _widest(self, variance: Tensor) -> Tensor:
        """Of each subspace the largest column alone. ``[n, dim]`` -> ``[n, dim]``."""
        parts = variance.split(self.widths, 1)
        return torch.cat([part.where(part == part.amax(1, keepdim=True), 0.0) for part in parts], 1)

    def _half(self, moments: Tensor, apart: Tensor) -> Tensor:
        """Those of half of the choices, their mean moved and no variance left."""
        choices, sums, _ = self._split(moments / 2)
        sums = sums + choices * apart
        squares = torch.where(choices > 0, sums.square() / choices, 0.0)
        return torch.cat([moments[..., : self.subspaces] / 2, sums, squares], -1)

    def _split(self, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choices, sums and sums of squares, each of every column."""
        choices, sums, squares = moments.split([self.subspaces, self.dim, self.dim], -1)
        return choices[..., self.column], sums, squares
