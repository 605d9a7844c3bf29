"""OptEmbed (Lyu et al., OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction, CIKM 2022): which rows are kept is
learned with the table, how wide they are in each field is searched for with its weights.

The supernet's vectors in training, of an id x of field f::

    v(x) = step(|E[x]|_1 - t_f) E[x] m_d        t_f: the field's threshold, 0 at first
                                                m_d: the first d numbers; d is drawn uniformly from 1 .. dim for each field and step
    loss + alpha sum_f exp(-t_f)                draws the thresholds up

``step`` is 1 above 0, else 0, and has the derivative of the long-tailed estimator: 2 - 4|z| up to |z| = 0.4, then 0.4 up to 1, then 0. A
draw for each field and step is the same in all processes; the authors' program and the benchmark of Zhang et al. draw for each example too,
which came out the same on Frappe. In evaluation vectors have their full width.

Then an evolutionary search for the width of each field: a candidate is judged by the validation metric of the supernet under it. The
paper has no budget; here it is met by rows: under each candidate those with the largest |E[x]|_1 - t_f are kept, as many as the budget has
room for (see ``ctrkit.embeddings.compression.kept``), however many are above their thresholds. The first generation holds full width
everywhere, and else what the paper draws. The paper's 30 generations of 20 would take longer than the training of a small log.

With these rates, the paper's, thresholds hardly move on short logs, and rows are kept by their norm (docs/benchmarks/compression.md).

What is left is trained on from the supernet's weights, as in that benchmark; the authors' program goes back to its first ones,
which gave .002 to .003 less test AUC on Frappe at a tenth of the bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, seeded
from ctrkit.embeddings.compression.evolution import Candidate, evolve
from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.kept import kept_bytes, store_kept
from ctrkit.embeddings.compression.masked import Masked
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.stored import StoredRows


class OptEmbedSettings(MethodSettings):
    alpha: float = Field(default=1e-5, ge=0, description="how strongly thresholds are drawn up")
    threshold_learning_rate: float = Field(default=1e-4, gt=0)
    search_epochs: int = Field(default=5, ge=1, description="of the supernet, at most: it stops as a training does")
    generations: int = Field(default=8, ge=1, description="of the search for widths")
    population: int = Field(default=12, ge=2, description="candidates of a generation")
    mutation: float = Field(default=0.1, ge=0, le=1, description="the chance of a width to be drawn anew")
    rows: int = Field(default=16_384, ge=1, description="validation rows that a candidate is judged on, in whole batches")


class Step(torch.autograd.Function):
    """1 above 0, else 0; see above for its derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        size = z.abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, 0.4).masked_fill(size > 1, 0.0)
        return gradients[0] * slope


class Supernet(FullTable):
    """In evaluation rows whose norm is no more than ``level`` above their threshold are left out, and those of each field cut to its width.

    Attributes:
        level: 0 but while candidates are judged.
        widths: dim but while candidates are judged, int64 ``[fields]``.
        drawn: widths in training, int64 ``[fields]``.
    """

    drawn: Tensor
    level: Tensor
    widths: Tensor

    def __init__(self, space: IdSpace, dim: int, alpha: float) -> None:
        super().__init__(space, dim)
        self.alpha = alpha
        self.thresholds = nn.Parameter(torch.zeros(len(space.rows)))
        self.register_buffer("level", torch.zeros(()), persistent=False)
        self.register_buffer("drawn", torch.full((len(space.rows),), dim), persistent=False)
        self.register_buffer("widths", torch.full((len(space.rows),), dim), persistent=False)

    def advance(self, epoch: float, step: int) -> None:
        self.drawn.copy_(torch.randint(1, self.dim + 1, self.drawn.shape, generator=seeded("optembed", step)))

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        field = self.space.table_of(ids)
        margin = vectors[0].abs().sum(1) - self.thresholds[field]
        if self.training:
            kept, width = Step.apply(margin), self.drawn[field]
        else:
            kept, width = margin > self.level, self.widths[field]
        return vectors[0] * kept.unsqueeze(1) * (torch.arange(self.dim, device=ids.device) < width.unsqueeze(1))

    def penalty(self) -> Tensor:
        return self.alpha * (-self.thresholds).exp().sum()

    def deciding(self) -> list[nn.Parameter]:
        return [self.thresholds]

    def show(self, widths: Sequence[int], level: float) -> None:
        """Takes on the form of a candidate, in evaluation."""
        self.widths.copy_(torch.tensor(widths))
        self.level.fill_(level)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        """The table that the search starts from: nothing is left out yet."""
        return StoredRows(parts["rows"])


@register(
    "optembed",
    kind="intra-feature: mixed dimension and pruning",
    paper="Lyu et al., OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction, CIKM 2022",
    sharded="the full table in training; what is served are the rows that are kept, each field's at its width",
    benchmarked=True,
)
class OptEmbed(Method):
    Settings = OptEmbedSettings
    search_stops_early = True
    starts_from = "end"

    def __init__(self, settings: OptEmbedSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.search_epochs = settings.search_epochs
        self.deciding_learning_rate = settings.threshold_learning_rate
        least = int(kept_bytes(space.rows, dim, torch.tensor([1]), torch.tensor([dim])))
        if least > self.allowed_bytes:
            raise self.refuse(least, "Give it room for a row")

    def supernet(self, counts: Tensor) -> Supernet:
        return Supernet(self.space, self.dim, self.settings.alpha)

    @torch.no_grad()
    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        assert isinstance(supernet, Supernet)
        field = torch.arange(len(self.space.rows)).repeat_interleave(torch.tensor(self.space.rows))
        margins = parts["rows"].abs().sum(1) - supernet.thresholds.cpu()[field]
        order = margins.argsort(descending=True, stable=True)
        fields = field[order]

        def show(candidate: Candidate) -> int:
            """How many rows it keeps."""
            kept = self._fit(torch.tensor(candidate)[fields])
            supernet.show(candidate, float(margins[order[kept]]) if kept < len(order) else -torch.inf)
            return kept

        def fitness(candidate: Candidate) -> float:
            show(candidate)
            return evaluate(self.settings.rows)

        full = (self.dim,) * len(self.space.rows)
        s = self.settings
        best = evolve(fitness, [full], self.dim, s.generations, s.population, s.mutation, Random(0))
        kept = torch.zeros(len(order), dtype=torch.bool)
        kept[order[: show(best)]] = True
        return {"kept": kept, "widths": torch.tensor(best)}

    def _fit(self, widths: Tensor) -> int:
        """How many rows there is room for, of rows so wide, in this order. int64 ``[total]``."""
        left = torch.arange(1, len(widths) + 1)
        fits = kept_bytes(self.space.rows, self.dim, left, widths.cumsum(0)) <= self.allowed_bytes
        return int(left[fits].max())

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        kept, widths = decision["kept"], decision["widths"]
        of_rows = widths.repeat_interleave(torch.tensor(self.space.rows))
        mask = (torch.arange(self.dim) < of_rows.unsqueeze(1)) & kept.unsqueeze(1)
        return Masked(self.space, self.dim, mask, partial(store_kept, rows=self.space.rows, kept=kept, widths=widths))
