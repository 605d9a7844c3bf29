"""The full table under a mask that a search decided on, for the training after it."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.sparse import StoredSparse


class Masked(FullTable):
    """The full table, of which only what ``mask`` leaves is looked up, trained and stored.

    Args:
        mask: bool ``[total, dim]``.
        store: the masked table -> its stored form.
    """

    mask: Tensor

    def __init__(self, space: IdSpace, dim: int, mask: Tensor, store: Callable[[Tensor], nn.Module] = StoredSparse) -> None:
        super().__init__(space, dim)
        self.store = store
        self.register_buffer("mask", mask, persistent=False)  # it is in the decision

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0] * self.mask[ids]

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return self.store(parts["rows"] * self.mask.to(parts["rows"].device))
