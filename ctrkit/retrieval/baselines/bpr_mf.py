"""Matrix factorisation for ranked pairs: BPR-MF (Rendle et al., UAI 2009).

``score(u, i) = <p_u, q_i> + b_i``; the bias is that of the authors' own library, MyMediaLite: it answers users without training events. A user
or item without any has a vector of zeros. Steps are Adam's over the rows of a batch alone.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.retrieval.baselines.pairwise import Vectors, fit_pairs
from ctrkit.retrieval.job import Fitted, Job


class BprSettings(schema.Settings):
    factors: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    regularisation: float = Field(default=3e-3, ge=0)
    passes: int = Field(default=5, ge=1, description="over the training events before each look at validation, an 'epoch' here")


class MatrixFactors(Vectors):
    """
    Args:
        known: users with training events, bool ``[users]``.
        trained: items with some, bool ``[items]``.
    """

    def __init__(self, known: Tensor, trained: Tensor, factors: int) -> None:
        super().__init__()
        self.users = len(known)
        start = torch.randn(len(known) + len(trained), factors) * 0.01
        start[~torch.cat([known, trained])] = 0  # a user stays so, in no pair; an item is learned as the other one
        self.factors = nn.Embedding.from_pretrained(start, freeze=False, sparse=True)
        self.bias = nn.Embedding.from_pretrained(torch.zeros(len(trained), 1), freeze=False, sparse=True)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        factors, is_item = self.factors(rows), rows >= self.users
        ones = factors.new_ones(len(rows), 1)
        last = ones.masked_scatter(is_item.unsqueeze(1), self.bias(rows[is_item] - self.users))
        return torch.cat([factors, last], dim=1), factors


def fit_bpr(job: Job, settings: BprSettings) -> Fitted:
    known, trained = (torch.from_numpy(counts > 0) for counts in (job.dataset.user_counts, job.dataset.counts))
    model = MatrixFactors(known, trained, settings.factors)
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=settings.learning_rate)
    return fit_pairs(job, model, optimizer, settings.regularisation, settings.passes)
