"""Neighbours of the items that a user had: item-based k nearest neighbours (Sarwar et al., WWW 2001; Deshpande & Karypis, TOIS 2004)::

similarity(i, j) = users of both / (sqrt(users of i) sqrt(users of j) + shrinkage)        the k nearest of each i are kept
score(j)         = sum over the history of similarity(i, j)
"""

from typing import Any

import numpy as np
from pydantic import Field
from scipy import sparse

from ctrkit import schema
from ctrkit.retrieval.baselines.interactions import histories, interactions
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job

_ROWS_AT_ONCE = 1024


class ItemKnnSettings(schema.Settings):
    neighbours: int = Field(default=100, ge=1, description="kept of each item")
    shrinkage: float = Field(default=10.0, ge=0, description="added to the denominator: similarities of few users count less")


class ItemKnn:
    """
    Args:
        similarity: a SciPy matrix ``[items, items]``, a row's nearest.
    """

    def __init__(self, similarity: Any) -> None:
        self.similarity = similarity

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        return (histories(queries, which, self.similarity.shape[1]) @ self.similarity).toarray()


def similarities(seen: sparse.csr_array, settings: ItemKnnSettings) -> sparse.csr_array:
    """The nearest of every item, ``[items, items]``; an item is not near itself. Of equal ones the lower numbers.

    Args:
        seen: ``[users, items]``, 0 or 1.
    """
    of_item = sparse.csr_array(seen.T)
    norms = np.sqrt(np.asarray(seen.sum(0), np.float64))
    parts = []
    for start in range(0, len(norms), _ROWS_AT_ONCE):
        together = (of_item[start : start + _ROWS_AT_ONCE] @ seen).toarray()
        rows = np.arange(len(together))
        together[rows, start + rows] = 0
        near = together / np.maximum(norms[start + rows, None] * norms + settings.shrinkage, 1e-12)
        if settings.neighbours < near.shape[1]:
            order = np.argsort(-near, axis=1, kind="stable")[:, settings.neighbours :]
            np.put_along_axis(near, order, 0, axis=1)
        parts.append(sparse.csr_array(near.astype(np.float32)))
    return sparse.csr_array(sparse.vstack(parts))


def fit_item_knn(job: Job, settings: ItemKnnSettings) -> Fitted:
    similarity = similarities(interactions(job.dataset), settings)
    return Fitted(ItemKnn(similarity), params=similarity.nnz)
