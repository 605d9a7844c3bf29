"""AutoDim (Zhao et al., AutoDim: Field-aware Embedding Dimension Search in Recommender Systems, WWW 2021): each field's width is one of 1, 2,
4 .. dim, chosen by what a network that holds all of them learns. In the search a field f has a table of each width d::

    v_f(x) = sum_d p_fd BatchNorm_fd(E_fd[x] P_fd)        E_fd: [n_f, d]; P_fd: [d, dim], none if d = dim
    p_f    = softmax((log softmax(a_f) + g) / t)          g: Gumbel noise, new in every step; t: temperature

a is trained on validation rows, a step before each step of all else on training rows: the paper's first-order DARTS, whose steps of a
may be rarer to save time. t falls from 1 to 0.01 over the search, where the paper's falls by the step, which suits logs of its size.

The paper takes each field's likeliest width, whatever that takes. Here there is a budget, in bytes, projections counted: of the widths that
fit it those are taken that together are the likeliest, by dynamic programming; room that these leave stays free. Narrow rows that take
no less than full ones, because of their projection, are left out. The tables of those widths (``ctrkit.embeddings.compression.mixed``) are
trained anew.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part, seeded
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.mixed import MixedCodec, mixed_bytes
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows
from ctrkit.layers.normalisation import BatchNorm

LEAST_TEMPERATURE = 0.01


class AutoDimSettings(MethodSettings):
    search_epochs: int = Field(default=3, ge=1, description="before the widths are chosen")
    width_learning_rate: float = Field(default=0.01, gt=0, description="of what chooses the widths")


class WidthMixture(Codec):
    """The search's tables: a part for each candidate width.

    Args:
        widths: the candidates, rising to ``dim``.
        epochs: of the search.
    """

    draws: Tensor

    def __init__(self, space: IdSpace, dim: int, widths: Sequence[int], epochs: int) -> None:
        super().__init__(space, dim)
        self.widths, self.epochs, self.temperature = tuple(widths), epochs, 1.0
        self.parts = tuple(Part(f"width_{width}", space.total, width) for width in widths)
        fields = len(space.rows)
        self.projections = nn.ParameterList(torch.randn(fields, width, dim) / width**0.5 for width in widths if width < dim)
        self.norms = nn.ModuleList(BatchNorm(len(widths) * dim, affine=False) for _ in range(fields))
        self.logits = nn.Parameter(torch.zeros(fields, len(widths)))
        self.register_buffer("draws", torch.randint(2**31, ()))  # of noise, counted from a number of this training's own

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids] * len(self.parts)

    def advance(self, epoch: float, step: int) -> None:
        self.temperature = max(LEAST_TEMPERATURE, 1 - epoch / self.epochs)

    def shares(self) -> Tensor:
        """p, ``[fields, widths]``; without noise in evaluation."""
        likely = self.logits.log_softmax(1)
        if self.training:
            self.draws += 1
            uniform = torch.rand(likely.shape, generator=seeded("autodim", int(self.draws))).clamp(min=1e-20)
            likely = likely - (-uniform.log()).log().to(likely.device)
        return (likely / self.temperature).softmax(1)

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        table, shares = self.space.table_of(ids), self.shares()
        places, mixed = [], []
        for field, norm in enumerate(self.norms):
            own = (table == field).nonzero().squeeze(1)
            *narrow, full = (rows[own] for rows in vectors)
            projected = [rows @ projections[field] for rows, projections in zip(narrow, self.projections, strict=True)]
            alike = norm(torch.cat([*projected, full], dim=1)).unflatten(1, (len(self.widths), self.dim))
            places.append(own)
            mixed.append((alike * shares[field].unsqueeze(1)).sum(1))
        found = vectors[0].new_zeros(len(ids), self.dim)
        return found.index_add(0, torch.cat(places), torch.cat(mixed))

    @torch.no_grad()
    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        """Of the search itself: its vectors as evaluation has them, whatever the budget."""
        self.eval()
        return StoredRows(self.combine(torch.arange(self.space.total), [parts[part.name] for part in self.parts]))

    def deciding(self) -> list[nn.Parameter]:
        return [self.logits]


def likeliest(chances: Tensor, sizes: Sequence[Sequence[int]], allowed: int) -> list[int]:
    """A choice for each field, by number: of those whose sizes' sum is allowed, the one whose chances' product is the largest.

    Field by field it keeps the choices so far that are likelier than all that take no more (Nemhauser and Ullmann, 1969).

    Args:
        chances: logarithms, ``[fields, choices]``.
        sizes: of each choice of each field; the sum of the smallest is allowed.
    """
    size, chance = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    least_of_rest = sum(map(min, sizes))
    kept: list[Tensor] = []
    for field, own in enumerate(sizes):
        least_of_rest -= min(own)
        size = (size.unsqueeze(1) + torch.tensor(own)).flatten()
        chance = (chance.unsqueeze(1) + chances[field]).flatten()
        order = chance.argsort(descending=True)
        order = order[size[order].argsort(stable=True)]
        order = order[size[order] + least_of_rest <= allowed]
        likeliest_yet = chance[order].cummax(0).values
        better = torch.cat([torch.tensor([True]), likeliest_yet.diff() > 0])
        kept.append(order[better])
        size, chance = size[kept[-1]], chance[kept[-1]]
    place, choices = len(size) - 1, []
    for order, own in zip(reversed(kept), reversed(sizes), strict=True):
        place, choice = divmod(int(order[place]), len(own))
        choices.append(choice)
    return choices[::-1]


@register(
    "autodim",
    kind="intra-feature: mixed dimension, searched",
    paper="Zhao et al., AutoDim: Field-aware Embedding Dimension Search in Recommender Systems, WWW 2021",
    sharded="its tables, one a width; in the search full tables of all widths",
    benchmarked=True,
)
class AutoDim(Method):
    Settings = AutoDimSettings
    alternates_from = 0

    def __init__(self, settings: AutoDimSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.search_epochs = settings.search_epochs
        self.deciding_learning_rate = settings.width_learning_rate
        self.candidates = [2**k for k in range((dim - 1).bit_length())] + [dim]
        self.sizes = [[mixed_bytes(rows, width, dim) for width in self.candidates] for rows in space.rows]
        if (least := sum(map(min, self.sizes))) > self.allowed_bytes:
            raise self.refuse(
                least, "Every row is at least a number wide: give it a larger budget, or choose a method whose ids share rows"
            )

    def supernet(self, counts: Tensor) -> Codec:
        return WidthMixture(self.space, self.dim, self.candidates, self.search_epochs)

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
        assert isinstance(supernet, WidthMixture)
        chances = supernet.logits.detach().cpu().double().log_softmax(1)
        sizes = torch.tensor(self.sizes)
        chances[(sizes >= sizes[:, -1:]) & (torch.arange(len(self.candidates)) < len(self.candidates) - 1)] = -torch.inf
        chosen = likeliest(chances, self.sizes, self.allowed_bytes)
        return {"widths": torch.tensor(self.candidates)[chosen]}

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return MixedCodec(self.space, self.dim, decision["widths"].tolist())
