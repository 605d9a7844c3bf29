"""Low rank: the trained table is cut to a product of two matrices, by singular value decomposition (Eckart and Young, The Approximation of
One Matrix by Another of Lower Rank, Psychometrika 1936; Sainath et al., Low-rank Matrix Factorization for Deep Neural Network Training with
High-dimensional Output Targets, ICASSP 2013)::

    v(x) = U[x] V        U: [ids, rank], V: [rank, dim]

A full table is trained first. V are the first right singular vectors of its rows, each row weighed by how often its id is counted, at least
once, so that the squared error of what is looked up is the least; U are the rows' coordinates. Both are trained on. With room for the full
table it is kept as it is.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.full import WholeTable
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows


class SVDSettings(MethodSettings):
    search_epochs: int = Field(default=10, ge=1, description="of the full table's training, at most")


def singular_vectors(rows: Tensor, counts: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of ``[n, dim]``, row i times the root of ``counts[i]``: ``[rank, dim]``."""
    weighed = rows.double() * counts.clamp(min=1).double().sqrt().unsqueeze(1)
    _, vectors = torch.linalg.eigh(weighed.T @ weighed)  # of dim x dim, the singular vectors of a table of any length
    return vectors.flip(1)[:, :rank].T.to(rows.dtype).contiguous()


class LowRank(Codec):
    """
    Args:
        right: V to start from, ``[rank, dim]``.
    """

    def __init__(self, space: IdSpace, dim: int, right: Tensor) -> None:
        super().__init__(space, dim)
        self.parts = (Part("left", space.total, len(right)),)
        self.right = nn.Parameter(right.clone())

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0] @ self.right

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredLowRank(parts["left"], self.right)


class StoredLowRank(nn.Module):
    right: Tensor

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.left = StoredRows(left)
        self.register_buffer("right", right.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.left(ids) @ self.right


@register(
    "svd",
    kind="intra-feature: low rank, after training",
    paper="Sainath et al., Low-rank Matrix Factorization for Deep Neural Network Training with High-dimensional Output Targets, ICASSP 2013",
    sharded="the full table, then that of coordinates",
)
class SVD(Method):
    Settings = SVDSettings
    search_stops_early = True
    starts_from = "end"

    def __init__(self, settings: SVDSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.search_epochs = settings.search_epochs
        self.whole = self.allowed_bytes >= self.full_bytes
        one = (space.total + dim) * FLOAT_BYTES
        self.rank = self.allowed_bytes // one
        if not self.rank:
            raise self.refuse(one, "Every id has a number at the least: raise it, or take a method whose ids share rows")

    def supernet(self, counts: Tensor) -> WholeTable:
        return WholeTable(self.space, self.dim)

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        return {} if self.whole else {"right": singular_vectors(parts["rows"], counts, self.rank)}

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(parts) if self.whole else {"left": parts["rows"] @ decision["right"].T}

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return WholeTable(self.space, self.dim) if self.whole else LowRank(self.space, self.dim, decision["right"])
