"""Mixed dimension embeddings: the more ids a field has, the narrower its rows are (Ginart et al., Mixed Dimension Embeddings with
Application to Memory-Efficient Recommendation Systems, ISIT 2021)::

    v_f(x) = E_f[x] P_f        E_f: [n_f, d_f]; P_f: [d_f, dim], none if d_f = dim
    d_f = lambda p_f^alpha     rounded, between 1 and dim; p_f = 1 / n_f: the chance of a row of a field that every example looks up once

lambda is the largest that the budget has room for. The paper's widths may be rounded to powers of two: any whole number comes nearer to
the budget. A projection that would take more than it saves is left out, and its field is ``dim`` wide.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.mixed import MixedCodec, mixed_bytes
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace


class MixedDimensionSettings(MethodSettings):
    temperature: float = Field(default=0.3, ge=0, le=1, description="alpha: 0 makes all fields equally wide, 1 gives all equal room")


@register(
    "mixed_dimension",
    kind="intra-feature: mixed dimension",
    paper="Ginart et al., Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation Systems, ISIT 2021",
    sharded="its tables, one a width",
    benchmarked=True,
)
class MixedDimension(Method):
    Settings = MixedDimensionSettings

    def __init__(self, settings: MixedDimensionSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.widths = self._widths(0.0)
        if (least := self._bytes(self.widths)) > self.allowed_bytes:
            raise self.refuse(
                least, "Every row is at least a number wide: give it a larger budget, or choose a method whose ids share rows"
            )
        low, high = 0.0, 2.0 * dim * max(space.rows) ** settings.temperature
        for _ in range(100):  # bytes never fall as lambda grows
            middle = (low + high) / 2
            widths = self._widths(middle)
            if self._bytes(widths) <= self.allowed_bytes:
                low, self.widths = middle, widths
            else:
                high = middle

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return MixedCodec(self.space, self.dim, self.widths)

    def _widths(self, scale: float) -> list[int]:
        """Of each table, for a lambda."""
        rounded = [min(max(round(scale * rows**-self.settings.temperature), 1), self.dim) for rows in self.space.rows]
        return [
            width if mixed_bytes(rows, width, self.dim) < mixed_bytes(rows, self.dim, self.dim) else self.dim
            for width, rows in zip(rounded, self.space.rows, strict=True)
        ]

    def _bytes(self, widths: Sequence[int]) -> int:
        return sum(mixed_bytes(rows, width, self.dim) for rows, width in zip(self.space.rows, widths, strict=True))
