"""BPR (Rendle et al., UAI 2009): vectors of users and items, trained on pairs of an item that a user had and one that he had not::

    loss = -ln sigmoid(<e_u, e_i> - <e_u, e_j>)  +  lambda / (2 batch) (|u|^2 + |i|^2 + |j|^2)

The other item is drawn uniformly, as in the paper, and so popularity is learned; drawn by popularity, as some libraries do, it is held down.
It is any of the catalogue that the user has not had, with training events or without, as the paper, the authors of LightGCN and RecBole have it;
against items with training events alone BPR finds less on Taobao, LightGCN no more (docs/benchmarks/retrieval.md).
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.data.steps import even_steps
from ctrkit.retrieval.baselines.epochs import fit_epochs
from ctrkit.retrieval.baselines.interactions import interactions
from ctrkit.retrieval.baselines.pairs import unseen_items
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job


class Vectors(nn.Module, ABC):
    """Vectors of users and, after them, of items.

    Attributes:
        users: how many there are.
    """

    users: int

    @abstractmethod
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of some rows, int64 ``[rows]``: the vectors whose inner products are the scores, and those that are learned and punished."""


class FixedVectors:
    """
    Args:
        users: ``[users, width]``; zeros of a user that is not known.
        items: ``[items, width]``.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self.items = users, items

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        return self.users[queries.user[which]] @ self.items.T


def fit_pairs(job: Job, model: Vectors, optimizer: torch.optim.Optimizer, regularisation: float, passes: int) -> Fitted:
    """
    Args:
        passes: over the training events before each look at validation.

    Raises:
        CtrkitError: as ``fit_epochs``.
    """
    dataset, training = job.dataset, job.experiment.training
    seen = interactions(dataset)
    index = dataset.events.of_split("train")
    everything = np.arange(dataset.items.height)

    def epoch(number: int) -> float:
        random = np.random.default_rng([training.seed, number])
        order, total = np.concatenate([random.permutation(index) for _ in range(passes)]), 0.0
        for start, stop in even_steps(len(order), training.batch_size):
            batch = order[start:stop]
            user, item = dataset.events.user[batch], dataset.events.item[batch]
            other = unseen_items(seen, user, everything, random)
            rows = torch.from_numpy(np.concatenate([user, item + model.users, other + model.users]))
            vectors, learned = model(rows)
            u, i, j = vectors.chunk(3)
            penalty = learned.square().sum() / (2 * len(batch))
            loss = functional.softplus((u * j).sum(1) - (u * i).sum(1)).mean() + regularisation * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        return total / len(order)

    def recommender() -> FixedVectors:
        with torch.no_grad():
            vectors = model(torch.arange(model.users + dataset.items.height))[0].numpy()
        return FixedVectors(vectors[: model.users], vectors[model.users :])

    return fit_epochs(job, model, epoch, recommender, passes * len(index))
