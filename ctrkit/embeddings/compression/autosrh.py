"""AutoSrh (Kong et al., AutoSrh: An Embedding Dimensionality Search Framework for Tabular Data Prediction, TKDE 2022): a soft selection layer
weighs each dimension of ids that are about as frequent::

    v(x) = a[group of x] * V[x]        a: [groups, dim], within 0 .. 1, all 1 at the start

V and a are trained in turn: a on validation rows, with an L1 penalty, and all else on training rows, until the validation is no better. Then
the numbers with the largest |a V| stay, as many as the budget has room for, and are trained on from where they are.

Groups are as large as each other, but ids that are equally frequent are in the same. The authors take steps of a by plain SGD, on gradients
divided by the mean size in their group; here they are Adam's, which divides each by its own size. Their code holds the network still once
the warm-up is over; here it is trained on with V, whose selection is then that of the network which the training goes on from. Nor do they stop early, and they train without a for some epochs first; by default there is no such warm-up
here, because many logs are learned by heart in an epoch (criteo at 0.5, test AUC: .761 as theirs, .768 so).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Shard
from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.masked import Masked
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.sparse import StoredSparse, largest_that_fit, require_room


class AutoSrhSettings(MethodSettings):
    groups: int = Field(default=6, ge=1, le=127, description="of ids, by frequency")
    warmup_epochs: int = Field(default=0, ge=0, description="of the search, before the selection is trained")
    search_epochs: int = Field(default=10, ge=1, description="after those, at most, before the mask is taken")
    selection_learning_rate: float = Field(default=0.01, gt=0, description="of the selection")
    selection_l1: float = Field(default=1e-5, ge=0, description="of the penalty on the sum of the selection")


def frequency_groups(counts: Tensor, groups: int) -> Tensor:
    """The group of each id, rarest first; of as many ids each, but for ids that are equally frequent. int64 ``[total]`` -> int8 ``[total]``."""
    rarer = torch.searchsorted(counts.sort().values, counts)
    return (rarer * groups // len(counts)).to(torch.int8)


class SoftSelection(FullTable):
    """The search's table, and what each group of ids selects of it."""

    group: Tensor

    def __init__(self, space: IdSpace, dim: int, group: Tensor, settings: AutoSrhSettings) -> None:
        super().__init__(space, dim)
        self.l1 = settings.selection_l1
        self.register_buffer("group", group)
        self.selection = nn.Parameter(torch.ones(settings.groups, dim))

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0] * self.selection.clamp(0, 1)[self.group[ids].long()]

    def penalty(self) -> Tensor:
        return self.l1 * self.selection.abs().sum()

    @torch.no_grad()
    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        self.selection.clamp_(0, 1)

    @torch.no_grad()
    def selected(self, rows: Tensor) -> Tensor:
        """The full table as it is selected, ``[total, dim]``."""
        return rows * self.selection[self.group.long()].to(rows.device)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        """Of the search itself: its zeros left out, whatever the budget."""
        return StoredSparse(self.selected(parts["rows"]))

    def deciding(self) -> list[nn.Parameter]:
        return [self.selection]


@register(
    "autosrh",
    kind="intra-feature: pruning, searched",
    paper="Kong et al., AutoSrh: An Embedding Dimensionality Search Framework for Tabular Data Prediction, TKDE 2022",
    sharded="the full table in training; what is served is sparse",
    benchmarked=True,
)
class AutoSrh(Method):
    Settings = AutoSrhSettings
    search_stops_early = True
    starts_from = "end"

    def __init__(self, settings: AutoSrhSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        require_room(self)
        self.search_epochs = settings.warmup_epochs + settings.search_epochs
        self.alternates_from = settings.warmup_epochs
        self.deciding_learning_rate = settings.selection_learning_rate

    def supernet(self, counts: Tensor) -> Codec:
        return SoftSelection(self.space, self.dim, frequency_groups(counts, self.settings.groups), self.settings)

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        assert isinstance(supernet, SoftSelection)
        mask = largest_that_fit(supernet.selected(parts["rows"]).abs().cpu(), self.allowed_bytes)
        return {"mask": mask, "group": supernet.group.cpu(), "selection": supernet.selection.detach().cpu()}

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return Masked(self.space, self.dim, decision["mask"])

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"rows": parts["rows"] * decision["selection"][decision["group"].long()]}
