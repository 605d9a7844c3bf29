"""Which features say the same: a tree of clusters by similarity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from ctrkit.selection.pairs import Pair
from ctrkit.selection.scores import Score

SAME = 0.9
"""Features that are at least so similar, in the mean over their clusters, are one cluster."""


@dataclass(frozen=True)
class Clusters:
    """Features of one cluster say the same.

    Attributes:
        similarity: ``[features, features]``, 1 on the diagonal, pairs that were not counted 0.
        tree: scipy's linkage matrix of the distances 1 - similarity, average linkage; empty for a single feature.
        of: number of each feature's cluster, from 1, in the order of the clusters' best features.
    """

    similarity: np.ndarray
    tree: np.ndarray
    of: tuple[int, ...]


def cluster(scores: Sequence[Score], pairs: Sequence[Pair]) -> Clusters:
    """Average linkage (Sokal & Michener, 1958) cut at ``SAME``."""
    similarity = np.eye(len(scores))
    for pair in pairs:
        similarity[pair.first, pair.second] = similarity[pair.second, pair.first] = np.clip(pair.similarity, 0, 1)
    if len(scores) == 1:
        return Clusters(similarity, np.empty((0, 4)), (1,))
    tree = linkage(squareform(1 - similarity, checks=False), "average")
    found = fcluster(tree, 1 - SAME, "distance")
    numbers: dict[int, int] = {}
    for place in sorted(range(len(scores)), key=lambda place: (-scores[place].score, scores[place].name)):
        numbers.setdefault(int(found[place]), len(numbers) + 1)
    return Clusters(similarity, tree, tuple(numbers[int(number)] for number in found))
