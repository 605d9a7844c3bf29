"""Tensor-train embedding in three cores (Yin et al., TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models, MLSys 2021,
arXiv 2101.11714)::

    v(x) = G1[x1] G2[x2] G3[x3]        x = (x1 n2 + x2) n3 + x3; Gk[xk]: [r_k-1, d_k, r_k], r_0 = r_3 = 1, r_1 = r_2 = rank

with ``n1 n2 n3 >= ids`` and ``d1 d2 d3 = dim``, each as even as can be and rising. The rank is solved from the budget.

A number of a vector is a sum of products of three. Cores start so that it has the variance the paper aims at, 1 / (3 ids), and, as the paper
has it, out of a Gaussian without its middle, |z| < 2, so that fewer products are near zero.

A row of the middle core is as long as ``d2 rank^2``: to look it up for every value of a batch would move gigabytes. Unless there are very
many, the first two cores are multiplied for all pairs of their rows, and of that a row is looked up.
"""

import math
from collections.abc import Mapping, Sequence
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace

_CUT = 2.0
_PAIRS = 65_536
"""Of rows of the first two cores, at most, to multiply them all: up to 16 million ids."""

Three = tuple[int, int, int]


def even_rows(total: int) -> Three:
    """Three rising numbers, nearly equal, whose product is no less than ``total``."""
    first = next(n for n in range(1, total + 1) if n**3 >= total)
    second = isqrt(-(-total // first) - 1) + 1
    third = -(-total // (first * second))
    smallest, middle, largest = sorted((first, second, third))
    return smallest, middle, largest


def even_factors(dim: int) -> Three:
    """Three rising numbers whose product is ``dim``, with the least sum."""
    divisors = [n for n in range(1, dim + 1) if dim % n == 0]
    triples = [(a, b, dim // (a * b)) for a in divisors for b in divisors if dim % (a * b) == 0]
    return min((sum(triple), triple) for triple in triples if triple[0] <= triple[1] <= triple[2])[1]


class TTCodec(Codec):
    def __init__(self, space: IdSpace, dim: int, rank: int) -> None:
        super().__init__(space, dim)
        self.rank, self.rows, self.factors = rank, even_rows(space.total), even_factors(dim)
        std = ((1 / (3 * space.total)) ** 0.5 / rank) ** (1 / 3)
        (n1, n2, n3), (d1, d2, d3) = self.rows, self.factors
        shapes = ((n1, d1, rank), (n2, rank, d2, rank), (n3, rank, d3))
        self.first, self.second, self.third = (nn.Parameter(without_middle(shape) * std) for shape in shapes)

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return multiplied(ids, self.first, self.second, self.third)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredTT(self)


def without_middle(shape: Sequence[int]) -> Tensor:
    """Numbers of variance 1 from a Gaussian of which |z| < 2 was cut out."""
    rest = torch.special.ndtr(torch.tensor(-_CUT, dtype=torch.float64))
    density = math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 + _CUT * density / rest
    tail = torch.special.ndtri(torch.rand(*shape, dtype=torch.float64).clamp(min=1e-12) * rest)
    return (torch.where(torch.rand(*shape) < 0.5, tail, -tail) / variance.sqrt()).to(torch.float32)


def multiplied(ids: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """int64 ``[n]`` -> ``[n, dim]``, of the cores ``[n1, d1, r]``, ``[n2, r, d2, r]`` and ``[n3, r, d3]``."""
    (n1, d1, rank), (n2, _, d2, _), (n3, _, d3) = first.shape, second.shape, third.shape
    pair = ids // n3
    if n1 * n2 <= _PAIRS:
        pairs = first.reshape(n1 * d1, rank) @ second.permute(1, 0, 2, 3).reshape(rank, n2 * d2 * rank)
        pairs = pairs.view(n1, d1, n2, d2 * rank).permute(0, 2, 1, 3).reshape(n1 * n2, d1 * d2 * rank)
        left = functional.embedding(pair, pairs).view(-1, d1 * d2, rank)
    else:
        left = (first[pair // n2] @ second[pair % n2].flatten(2)).view(-1, d1 * d2, rank)
    return (left @ third[ids % n3]).view(-1, d1 * d2 * d3)


class StoredTT(nn.Module):
    first: Tensor
    second: Tensor
    third: Tensor

    def __init__(self, codec: TTCodec) -> None:
        super().__init__()
        for name in ("first", "second", "third"):
            self.register_buffer(name, getattr(codec, name).detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return multiplied(ids, self.first, self.second, self.third)


@register(
    "tt_rec",
    kind="inter-feature: tensor decomposition",
    paper="Yin et al., TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models, MLSys 2021",
    sharded="nothing: the cores are in every process",
    benchmarked=True,
)
class TTRec(Method):
    """The cores' numbers, ``n2 d2 rank^2 + (n1 d1 + n3 d3) rank``, are to be at most those allowed: the larger root, rounded down."""

    has_rows = False

    def __init__(self, settings: MethodSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        outer, middle, last = (n * d for n, d in zip(even_rows(space.total), even_factors(dim), strict=True))
        ends, allowed = outer + last, self.allowed_bytes // FLOAT_BYTES
        self.rank = (isqrt(ends**2 + 4 * middle * allowed) - ends) // (2 * middle)
        if not self.rank:
            raise self.refuse((ends + middle) * FLOAT_BYTES, "Raise it, or take a method that goes lower, such as hash or robe")

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return TTCodec(self.space, self.dim, self.rank)
