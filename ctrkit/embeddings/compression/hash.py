"""Hash embedding: all ids share the rows of one small table (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009)::

    v(x) = E[h(x)]        E: [rows, dim]; h: as of the unified embedding, see ``ctrkit.embeddings.unified``

With as many rows as ids h is the identity.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows
from ctrkit.embeddings.unified import hash_coefficients, hash_ids


def random_places(ids: Tensor, salt: str, rows: int) -> Tensor:
    """Ids -> rows 0 .. rows - 1 of a table, by a hash of the salt's own."""
    coefficients = torch.tensor(hash_coefficients(salt, 0), device=ids.device)
    return hash_ids(ids + 1, coefficients, rows + 1) - 1


class HashCodec(Codec):
    def __init__(self, space: IdSpace, dim: int, rows: int) -> None:
        super().__init__(space, dim)
        self.rows = rows
        self.parts = (Part("rows", rows, dim),)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids if self.rows >= self.space.total else random_places(ids, "hash", self.rows)]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0]

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredHash(self, parts["rows"])


class StoredHash(nn.Module):
    def __init__(self, codec: HashCodec, table: Tensor) -> None:
        super().__init__()
        self.places, self.rows = codec.places, StoredRows(table)

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(self.places(ids)[0])


@register(
    "hash",
    kind="inter-feature: hashing",
    paper="Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009",
    sharded="its table",
)
class Hash(Method):
    def __init__(self, settings: MethodSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.rows = self.allowed_bytes // (dim * FLOAT_BYTES)
        if not self.rows:
            raise self.refuse(dim * FLOAT_BYTES, "Give it room for a row")

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return HashCodec(self.space, self.dim, self.rows)
