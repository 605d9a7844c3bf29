"""The full table, for methods that make it smaller once it is trained, or while it is."""

from collections.abc import Sequence

from torch import Tensor

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.space import IdSpace


class FullTable(Codec):
    """A row for each id, in the part ``rows``."""

    def __init__(self, space: IdSpace, dim: int) -> None:
        super().__init__(space, dim)
        self.parts = (Part("rows", space.total, dim),)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0]
