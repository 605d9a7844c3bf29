"""LightGCN (He et al., SIGIR 2020): vectors of users and items, spread over the graph of training events::

    E_(k+1) = D^-1/2 A D^-1/2 E_k        A: the graph's adjacency, D its degrees
    E       = mean of E_0 .. E_K
    loss    = BPR on E, its penalty on E_0

Vectors start by Xavier's rule, as the paper has it, users and items apart; the authors' later code has a standard deviation of 0.1 instead,
which finds less (docs/benchmarks/retrieval.md).

A user or item without training events has no neighbours; its vector is zero here, not the random one that it started with.
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from ctrkit import schema
from ctrkit.retrieval.baselines.interactions import interactions
from ctrkit.retrieval.baselines.pairwise import Vectors, fit_pairs
from ctrkit.retrieval.job import Fitted, Job


class LightGcnSettings(schema.Settings):
    factors: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    regularisation: float = Field(default=1e-4, ge=0)
    passes: int = Field(default=5, ge=1, description="over the training events before each look at validation, an 'epoch' here")


class LightGcn(Vectors):
    """
    Args:
        seen: training events, a SciPy matrix ``[users, items]``.
    """

    starts: Tensor
    neighbours: Tensor
    weights: Tensor
    known: Tensor

    def __init__(self, seen: Any, settings: LightGcnSettings) -> None:
        super().__init__()
        self.users, items = seen.shape
        self.layers = settings.layers
        self.start = nn.Parameter(torch.empty(self.users + items, settings.factors))
        for rows in (self.start[: self.users], self.start[self.users :]):
            nn.init.xavier_uniform_(rows)
        graph = normalised_graph(seen)
        index = sparse.get_index_dtype((graph.indptr, graph.indices), check_contents=True)
        parts = {"starts": graph.indptr.astype(index), "neighbours": graph.indices.astype(index), "weights": graph.data}
        for name, part in parts.items():
            self.register_buffer(name, torch.from_numpy(part), persistent=False)
        self.register_buffer("known", torch.from_numpy(_degrees(seen) > 0).unsqueeze(1), persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return functional.embedding(rows, self.spread()), functional.embedding(rows, self.start)

    def spread(self) -> Tensor:
        """``E``, ``[users + items, factors]``."""
        layer = self.start * self.known
        total = layer
        for _ in range(self.layers):
            layer = _Spread.apply(self.starts, self.neighbours, self.weights, layer)
            total = total + layer
        return total / (self.layers + 1)


class _Spread(torch.autograd.Function):
    """``graph @ x`` of a symmetric graph: so is its gradient.

    As bags of neighbours: torch's product of a sparse and a dense matrix takes twice as long.
    """

    @staticmethod
    def forward(context: Any, starts: Tensor, neighbours: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        context.save_for_backward(starts, neighbours, weights)
        return _sums(starts, neighbours, weights, x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        starts, neighbours, weights = context.saved_tensors
        return None, None, None, _sums(starts, neighbours, weights, gradients[0].contiguous())


def _sums(starts: Tensor, neighbours: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    return functional.embedding_bag(neighbours, x, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def normalised_graph(seen: Any) -> sparse.csr_array:
    """``D^-1/2 A D^-1/2`` of users and items, float32 ``[users + items, users + items]``."""
    pairs = sparse.csr_array(seen)
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(_degrees(seen), 1)))
    return sparse.csr_array(scale @ sparse.block_array([[None, pairs], [pairs.T, None]]) @ scale, dtype=np.float32)


def _degrees(seen: Any) -> np.ndarray:
    return np.concatenate([np.asarray(seen.sum(1)), np.asarray(seen.sum(0))]).astype(np.float64)


def fit_lightgcn(job: Job, settings: LightGcnSettings) -> Fitted:
    model = LightGcn(interactions(job.dataset), settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    return fit_pairs(job, model, optimizer, settings.regularisation, settings.passes)
