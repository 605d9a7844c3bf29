"""Compositional embedding by quotient and remainder (Shi et al., Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems, KDD 2020, arXiv 1909.02107)::

    v(x) = R[x mod m] * (1 + Q[x // m])        R: [m, dim]; Q: [ceil(ids / m), dim]; or R[..] + Q[..]

No two ids have both rows in common, so every id has a vector of its own. Of the two m that fill a budget this takes the larger one, as the
paper does (few ids to a remainder's row): ids that are neighbours, often about as frequent, then share rows of the small table only.

The paper multiplies by Q itself. Counted from 1 the products are the same, but start as R does, learn as fast as a plain table, and a decay of
rows pulls Q's towards doing nothing instead of both factors towards zero.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows

Operation = Literal["product", "sum"]


class CompositionalSettings(MethodSettings):
    operation: Operation = Field(default="product", description="what is made of an id's two rows")


class Compositional(Codec):
    """Args:
    remainders: m.
    """

    def __init__(self, space: IdSpace, dim: int, remainders: int, operation: Operation) -> None:
        super().__init__(space, dim)
        self.remainders, self.operation = remainders, operation
        self.parts = (Part("remainder", remainders, dim), Part("quotient", -(-space.total // remainders), dim))

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids % self.remainders, ids // self.remainders]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        remainder, quotient = vectors
        return remainder * (1 + quotient) if self.operation == "product" else remainder + quotient

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredCompositional(self, parts["remainder"], parts["quotient"])


class StoredCompositional(nn.Module):
    def __init__(self, codec: Compositional, remainder: Tensor, quotient: Tensor) -> None:
        super().__init__()
        self.places, self.combine = codec.places, codec.combine
        self.remainder, self.quotient = StoredRows(remainder), StoredRows(quotient)

    def forward(self, ids: Tensor) -> Tensor:
        remainder, quotient = self.places(ids)
        return self.combine(ids, [self.remainder(remainder), self.quotient(quotient)])


@register(
    "compositional",
    kind="inter-feature: hashing, composed",
    paper="Shi et al., Compositional Embeddings Using Complementary Partitions, KDD 2020",
    sharded="its two tables",
    benchmarked=True,
)
class QuotientRemainder(Method):
    """``m + ceil(ids / m) <= rows`` is, in whole numbers, ``m (rows - m) >= ids``: the larger root, rounded down."""

    Settings = CompositionalSettings

    def __init__(self, settings: CompositionalSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        rows = self.allowed_bytes // (dim * FLOAT_BYTES)
        square = rows**2 - 4 * space.total
        if square < 0:
            least = 1 + isqrt(4 * space.total - 1)
            raise self.refuse(least * dim * FLOAT_BYTES, "Raise it, or take a method that goes lower, such as hash or robe")
        self.remainders = (rows + isqrt(square)) // 2

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return Compositional(self.space, self.dim, self.remainders, self.settings.operation)
