"""Items by their number of training events, the same for everyone."""

import numpy as np

from ctrkit import schema
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job


class PopularitySettings(schema.Settings):
    """None."""


class Popularity:
    """
    Args:
        counts: training events of each item, ``[items]``.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts.astype(np.float32)

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        return np.tile(self.counts, (len(which), 1))


def fit_popularity(job: Job, settings: PopularitySettings) -> Fitted:
    return Fitted(Popularity(job.dataset.counts), params=0)
