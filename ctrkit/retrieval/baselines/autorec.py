"""U-AutoRec (Sedhain et al., WWW 2015): a user's items are reconstructed from themselves through a narrow layer::

    r' = W sigmoid(V r + mu) + b
    loss = sum_i c_i (r_i - r'_i)^2 + lambda / 2 (|W|^2 + |V|^2)

The paper has ratings and sums over the observed ones. Of events there are no others: unseen items count as zeros, with a weight of their
own, as Hu, Koren & Volinsky (ICDM 2008) have it. A query's user is read off the history of its moment.

A user has few of the items, and so V is looked up; the penalty is the optimizer's, which adds its gradient. W and b start at zero, of which
the paper says nothing: what most items should get is near zero, and a random start leaves scores that stand above it for many epochs.
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.data.steps import even_steps
from ctrkit.retrieval.baselines.epochs import fit_epochs
from ctrkit.retrieval.baselines.interactions import histories, interactions
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job


class AutoRecSettings(schema.Settings):
    hidden: int = Field(default=500, ge=1)
    regularisation: float = Field(default=1e-4, ge=0)
    unseen: float = Field(default=0.1, gt=0, le=1, description="weight of an unseen item's zero; a seen one's is 1")
    users: int = Field(default=128, ge=1, description="of a step")


class AutoRec(nn.Module):
    """Rows of a CSR matrix ``[users, items]`` with an entry where a user has an item, each once -> scores, float32 of that shape."""

    def __init__(self, items: int, hidden: int) -> None:
        super().__init__()
        self.encode = nn.EmbeddingBag(items, hidden, mode="sum")
        self.bias = nn.Parameter(torch.empty(hidden))
        self.decode = nn.Linear(hidden, items)
        bound = items**-0.5  # as of a linear layer
        for parameter in (self.encode.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)
        for parameter in self.decode.parameters():
            nn.init.zeros_(parameter)

    def forward(self, seen: Any) -> Tensor:
        items, starts = (torch.from_numpy(part).long() for part in (seen.indices, seen.indptr[:-1]))
        return self.decode(torch.sigmoid(self.encode(items, starts) + self.bias))

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        seen = histories(queries, which, self.decode.out_features)
        seen.sum_duplicates()
        with torch.no_grad():
            return self(seen).numpy()


def loss_of(model: AutoRec, seen: Any, unseen: float) -> Tensor:
    """The mean over users of the weighted squares.

    Args:
        unseen: weight of a zero.
    """
    rebuilt = model(seen)
    own = rebuilt[torch.from_numpy(np.repeat(np.arange(len(rebuilt)), np.diff(seen.indptr))), torch.from_numpy(seen.indices).long()]
    return (unseen * rebuilt.square().sum() + ((1 - own).square() - unseen * own.square()).sum()) / len(rebuilt)


def fit_autorec(job: Job, settings: AutoRecSettings) -> Fitted:
    training = job.experiment.training
    seen: Any = interactions(job.dataset)
    known = np.flatnonzero(np.diff(seen.indptr))
    model = AutoRec(seen.shape[1], settings.hidden)
    groups = [
        {"params": [model.encode.weight, model.decode.weight], "weight_decay": settings.regularisation},
        {"params": [model.bias, model.decode.bias]},
    ]
    optimizer = torch.optim.Adam(groups, lr=training.learning_rate, fused=True)

    def epoch(number: int) -> float:
        order, total = np.random.default_rng([training.seed, number]).permutation(known), 0.0
        for start, stop in even_steps(len(order), settings.users):
            users = order[start:stop]
            loss = loss_of(model, seen[users], settings.unseen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(users)
        return total / len(order)

    return fit_epochs(job, model, epoch, lambda: model, seen.nnz)
