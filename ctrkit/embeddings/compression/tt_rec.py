"""Tensor-train embedding in three cores (Yin et al., TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models, MLSys 2021,
arXiv 2101.11714)::

    v(x) = G1[x1] G2[x2] G3[x3]        x = (x1 n2 + x2) n3 + x3; Gk[xk]: [r_k-1, d_k, r_k], r_0 = r_3 = 1, r_1 = r_2 = rank

with ``n1 n2 n3 >= ids`` and ``d1 d2 d3 = dim``, each as even as can be and rising. A core is a table of nk rows. The rank is solved from
the budget.

Cores start so that a vector's numbers have the variance the paper aims at, 1 / (3 ids). The paper draws them from a Gaussian without its
middle, |z| < 2, so that fewer products are near zero; here it is a plain Gaussian, as all rows of tables are.
"""

from collections.abc import Mapping, Sequence
from math import isqrt

from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows

_CORES = ("first", "second", "third")

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
        widths = (self.factors[0] * rank, rank * self.factors[1] * rank, rank * self.factors[2])
        self.parts = tuple(Part(name, rows, width, std) for name, rows, width in zip(_CORES, self.rows, widths, strict=True))

    def places(self, ids: Tensor) -> list[Tensor]:
        _, second, third = self.rows
        return [ids // (second * third), ids // third % second, ids % third]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        first, second, third = vectors
        d1, d2, d3 = self.factors
        left = first.view(-1, d1, self.rank) @ second.view(-1, self.rank, d2 * self.rank)
        return (left.view(-1, d1 * d2, self.rank) @ third.view(-1, self.rank, d3)).view(-1, self.dim)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredTT(self, parts)


class StoredTT(nn.Module):
    def __init__(self, codec: TTCodec, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.places, self.combine = codec.places, codec.combine
        self.cores = nn.ModuleList(StoredRows(parts[name]) for name in _CORES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.combine(ids, [core(place) for core, place in zip(self.cores, self.places(ids), strict=True)])


@register(
    "tt_rec",
    kind="inter-feature: tensor decomposition",
    paper="Yin et al., TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models, MLSys 2021",
    sharded="its three cores",
    benchmarked=True,
)
class TTRec(Method):
    """The cores' numbers, ``n2 d2 rank^2 + (n1 d1 + n3 d3) rank``, are to be at most those allowed: the larger root, rounded down."""

    def __init__(self, settings: MethodSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        outer, middle, last = (n * d for n, d in zip(even_rows(space.total), even_factors(dim), strict=True))
        ends, allowed = outer + last, self.allowed_bytes // FLOAT_BYTES
        self.rank = (isqrt(ends**2 + 4 * middle * allowed) - ends) // (2 * middle)
        if not self.rank:
            raise self.refuse((ends + middle) * FLOAT_BYTES, "Raise it, or take a method that goes lower, such as hash or robe")

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return TTCodec(self.space, self.dim, self.rank)
