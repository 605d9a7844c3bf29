"""The full table, for methods that make it smaller once it is trained, or while it is."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows


class FullTable(Codec):
    """A row for each id, in the part ``rows``."""

    def __init__(self, space: IdSpace, dim: int) -> None:
        super().__init__(space, dim)
        self.parts = (Part("rows", space.total, dim),)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0]


class WholeTable(FullTable):
    """It is stored as it is."""

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredRows(parts["rows"])
