"""PEP (Liu et al., Learnable Embedding Sizes for Recommender Systems, ICLR 2021): a threshold that is learned with the table takes something
off each number, and those below it are zero::

    v = sign(V) relu(|V| - sigmoid(s))        s: one, one for each dimension, or one for each id

The paper trains until the thresholds have pruned enough; what they leave is trained again from its first weights, without thresholds, and
so is the network. Thresholds start so low that they take nothing off, and the loss hardly sees them there: what makes them rise is the weight
decay that the authors' Adam has on all it trains (https://github.com/ssui-liu/learnable-embed-sizes-for-RecSys), by about their rate a step,
until numbers that the loss needs hold them back. Theirs take 15,000 steps, a part of an epoch of the whole of Criteo but hundreds of a log of
64,000 rows, which is learned by heart in one; here the rate is such that thirty do. (With a rate of 0.01 none comes far enough to be seen
there, and the mask is that of magnitude; docs/benchmarks/compression.md has both.)

Thresholds of ids are a table, which is trained by the tables' optimizer: what it holds is stretched, or they would not come far either.

Here the search stops when the validation is no better, and of its best weights the numbers with the largest |V| - sigmoid(s) stay, as many
as the budget has room for, however far the thresholds have come.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.masked import Masked
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.sparse import StoredSparse, largest_that_fit, require_room

_STRETCH = 50.0
"""Of thresholds of ids, against what their table holds: some hundred look-ups of Adagrad's raise one by fifteen."""


class PepSettings(MethodSettings):
    granularity: Literal["global", "dimension", "feature"] = Field(
        default="dimension", description="one threshold, one for each dimension, or for each id, trained as the tables are"
    )
    threshold: float = Field(default=-15.0, description="s at the start; sigmoid(s) well below embedding.init_std, or all starts as zeros")
    threshold_learning_rate: float = Field(
        default=0.5, gt=0, description="of those that are not one for each id; lower where an epoch has many thousand steps"
    )
    threshold_decay: float = Field(default=1e-5, ge=0, description="weight decay of the thresholds, which makes them rise")
    search_epochs: int = Field(default=10, ge=1, description="at most, before the mask is taken")


class SoftThreshold(FullTable):
    """The search's table. For thresholds for each id there is a part ``thresholds``."""

    def __init__(self, space: IdSpace, dim: int, settings: PepSettings) -> None:
        super().__init__(space, dim)
        self.start, self.decay = settings.threshold, settings.threshold_decay
        self.of_ids = settings.granularity == "feature"
        if self.of_ids:
            self.parts = (*self.parts, Part("thresholds", space.total, 1, start=0.0))
        else:
            self.thresholds = nn.Parameter(torch.full((1 if settings.granularity == "global" else dim,), self.start))

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids] * len(self.parts)

    def s(self, vectors: Sequence[Tensor]) -> Tensor:
        return self.start + _STRETCH * vectors[1] if self.of_ids else self.thresholds

    def margin(self, vectors: Sequence[Tensor]) -> Tensor:
        """|V| - sigmoid(s). Vectors as of ``combine``, or full tables. -> ``[n, dim]``."""
        return vectors[0].abs() - self.s(vectors).sigmoid()

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        if self.training and self.of_ids:
            self.looked_up = self.s(vectors)
        return vectors[0].sign() * functional.relu(self.margin(vectors))

    def penalty(self) -> Tensor:
        """Of thresholds of ids the mean over those looked up."""
        thresholds = self.looked_up if self.of_ids else self.thresholds
        return self.decay / 2 * thresholds.square().sum() / (max(1, len(thresholds)) if self.of_ids else 1)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        """Of the search itself: its zeros left out, whatever the budget."""
        return StoredSparse(self.combine(torch.arange(self.space.total), [parts[part.name] for part in self.parts]).detach())

    def deciding(self) -> list[nn.Parameter]:
        return [] if self.of_ids else [self.thresholds]


@register(
    "pep",
    kind="intra-feature: pruning, in training",
    paper="Liu et al., Learnable Embedding Sizes for Recommender Systems, ICLR 2021",
    sharded="the full table in training, and thresholds of ids; what is served is sparse",
)
class Pep(Method):
    Settings = PepSettings
    search_stops_early = True
    starts_from = 0

    def __init__(self, settings: PepSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        require_room(self)
        self.search_epochs = settings.search_epochs
        self.deciding_learning_rate = settings.threshold_learning_rate

    def supernet(self, counts: Tensor) -> Codec:
        return SoftThreshold(self.space, self.dim, self.settings)

    @torch.no_grad()
    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        assert isinstance(supernet, SoftThreshold)
        tables = [parts[part.name].to(supernet.space.starts.device) for part in supernet.parts]
        return {"mask": largest_that_fit(supernet.margin(tables).cpu(), self.allowed_bytes)}

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return Masked(self.space, self.dim, decision["mask"])

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"rows": parts["rows"]}
