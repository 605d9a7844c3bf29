"""U-AutoRec (Sedhain et al., WWW 2015): a user's items are reconstructed from themselves through a narrow layer::

    r' = W sigmoid(V r + mu) + b
    loss = sum_i c_i (r_i - r'_i)^2 + lambda / 2 (|W|^2 + |V|^2)

The paper has ratings and sums over the observed ones. Of events there are no others: unseen items count as zeros, with a weight of their
own, as Hu, Koren & Volinsky (ICDM 2008) have it. A query's user is read off the history of its moment.
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
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
    """Rows of 0 and 1, float32 ``[users, items]`` -> scores of the same shape."""

    def __init__(self, items: int, hidden: int) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(items, hidden), nn.Linear(hidden, items)

    def forward(self, seen: Tensor) -> Tensor:
        return self.decode(torch.sigmoid(self.encode(seen)))

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self(_dense(histories(queries, which, self.encode.in_features))).numpy()


def loss_of(model: AutoRec, seen: Tensor, settings: AutoRecSettings) -> Tensor:
    """The mean over users of the weighted squares, and the penalty."""
    weights = seen + settings.unseen * (1 - seen)
    squares = (weights * (seen - model(seen)).square()).sum(1).mean()
    return squares + settings.regularisation / 2 * (model.encode.weight.square().sum() + model.decode.weight.square().sum())


def fit_autorec(job: Job, settings: AutoRecSettings) -> Fitted:
    training = job.experiment.training
    seen: Any = interactions(job.dataset)
    known = np.flatnonzero(np.diff(seen.indptr))
    model = AutoRec(seen.shape[1], settings.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)

    def epoch(number: int) -> float:
        order, total = np.random.default_rng([training.seed, number]).permutation(known), 0.0
        for start in range(0, len(order), settings.users):
            users = order[start : start + settings.users]
            loss = loss_of(model, _dense(seen[users]), settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(users)
        return total / len(order)

    return fit_epochs(job, model, epoch, lambda: model, seen.nnz)


def _dense(rows: Any) -> Tensor:
    return torch.from_numpy(rows.toarray()).clamp_(max=1)
