"""Matrix factorisation for ranked pairs: BPR-MF (Rendle et al., UAI 2009), by the ``implicit`` library.

``score(u, i) = <p_u, q_i> + b_i``, trained by stochastic gradient steps on pairs of an item that the user had and one that he had not. A
user without training events gets the items' biases alone.
"""

import numpy as np
from pydantic import Field

from ctrkit import schema
from ctrkit.retrieval.baselines.interactions import interactions
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job


class BprSettings(schema.Settings):
    factors: int = Field(default=64, ge=1)
    iterations: int = Field(default=800, ge=1, description="passes over as many pairs as there are training events")
    learning_rate: float = Field(default=0.05, gt=0)
    regularisation: float = Field(default=0.02, ge=0)


class FixedFactors:
    """
    Args:
        users: ``[users, factors]``; zeros of a user that is not known.
        items: ``[items, factors]``.
        biases: of the items, ``[items]``; None: none.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, biases: np.ndarray | None = None) -> None:
        self.users, self.items, self.biases = users, items, biases

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        found = self.users[queries.user[which]] @ self.items.T
        return found if self.biases is None else found + self.biases


def fit_bpr(job: Job, settings: BprSettings) -> Fitted:
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from scipy import sparse

    training = job.experiment.training
    model = BayesianPersonalizedRanking(
        factors=settings.factors,
        learning_rate=settings.learning_rate,
        regularization=settings.regularisation,
        iterations=settings.iterations,
        verify_negative_samples=True,
        num_threads=1,  # more would update the same factors at once, and no run would be like another
        random_state=training.seed,
    )
    model.fit(sparse.csr_matrix(interactions(job.dataset)), show_progress=False)
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    known = (job.dataset.user_counts > 0)[:, None]
    fitted = FixedFactors(users[:, :-1] * known, items[:, :-1], items[:, -1])  # the last column is the items' bias
    return Fitted(fitted, params=users[:, :-1].size + items.size, epochs=settings.iterations)
