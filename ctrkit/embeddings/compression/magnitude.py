"""Magnitude pruning after training: the largest numbers of the table stay, as many as the budget has room for (Han et al., Learning both
Weights and Connections for Efficient Neural Networks, NeurIPS 2015). The sparse form is that of ``ctrkit.embeddings.compression.sparse``."""

from collections.abc import Mapping

from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.sparse import StoredSparse, largest_that_fit, require_room


class Pruned(FullTable):
    """The full table, of which ``stored`` keeps what fits ``allowed_bytes``."""

    def __init__(self, space: IdSpace, dim: int, allowed_bytes: int) -> None:
        super().__init__(space, dim)
        self.allowed_bytes = allowed_bytes

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        table = parts["rows"]
        return StoredSparse(table * largest_that_fit(table.abs(), self.allowed_bytes))


@register(
    "magnitude",
    kind="intra-feature: pruning, after training",
    paper="Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015",
    sharded="the full table in training; what is served is sparse",
)
class Magnitude(Method):
    def __init__(self, settings: MethodSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        require_room(self)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return Pruned(self.space, self.dim, self.allowed_bytes)
