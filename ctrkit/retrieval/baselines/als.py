"""Matrix factorisation of implicit feedback by alternating least squares (Hu, Koren & Volinsky, ICDM 2008), by the ``implicit`` library.

Unseen entries count with confidence 1, seen ones with ``1 + alpha``. A query's user is folded in from the history of its moment, so that a
user who was never trained on, or has had more since, gets factors of his own.
"""

import numpy as np
from pydantic import Field

from ctrkit import schema
from ctrkit.retrieval.baselines.interactions import histories, interactions
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job


class AlsSettings(schema.Settings):
    factors: int = Field(default=64, ge=1)
    iterations: int = Field(default=15, ge=1)
    regularisation: float = Field(default=0.05, ge=0)
    alpha: float = Field(default=10.0, gt=0, description="weight of a seen entry beyond 1")


class Als:
    """
    Args:
        items: factors, float32 ``[items, factors]``.
    """

    def __init__(self, items: np.ndarray, settings: AlsSettings) -> None:
        self.items = items
        self._settings = settings
        self._gram = items.T @ items + settings.regularisation * np.eye(items.shape[1], dtype=np.float32)

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        seen = histories(queries, which, len(self.items))
        return np.stack([self._user(row) for row in np.split(seen.indices, seen.indptr[1:-1])]) @ self.items.T

    def _user(self, history: np.ndarray) -> np.ndarray:
        """``(Y'Y + alpha Y_h'Y_h + lambda I)^-1 (1 + alpha) Y_h' 1``: the factors that minimise the loss given the items'."""
        own = self.items[history]
        return np.linalg.solve(self._gram + self._settings.alpha * own.T @ own, (1 + self._settings.alpha) * own.sum(0))


def fit_als(job: Job, settings: AlsSettings) -> Fitted:
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy import sparse

    training = job.experiment.training
    model = AlternatingLeastSquares(
        factors=settings.factors,
        regularization=settings.regularisation,
        alpha=1.0,
        iterations=settings.iterations,
        num_threads=training.threads or 0,
        random_state=training.seed,
    )
    confidence = sparse.csr_matrix(interactions(job.dataset)) * np.float32(1 + settings.alpha)
    model.fit(confidence, show_progress=False)
    items = np.asarray(model.item_factors, np.float32)
    return Fitted(Als(items, settings), params=items.size + model.user_factors.size, epochs=settings.iterations)
