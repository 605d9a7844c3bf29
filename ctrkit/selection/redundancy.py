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
        of: number of each feature's cluster, from 1, in the order of the clusters' best features.
    """

    similarity: np.ndarray
    of: tuple[int, ...]


def cluster(scores: Sequence[Score], pairs: Sequence[Pair]) -> Clusters:
    """The tree cut at ``SAME``."""
    similarity = np.eye(len(scores))
    for pair in pairs:
        similarity[pair.first, pair.second] = similarity[pair.second, pair.first] = np.clip(pair.similarity, 0, 1)
    found = fcluster(tree_of(similarity), 1 - SAME, "distance") if len(scores) > 1 else np.ones(1)
    numbers: dict[int, int] = {}
    for place in sorted(range(len(scores)), key=lambda place: (-scores[place].score, scores[place].name)):
        numbers.setdefault(int(found[place]), len(numbers) + 1)
    return Clusters(similarity, tuple(numbers[int(number)] for number in found))


def tree_of(similarity: np.ndarray) -> np.ndarray:
    """Average linkage (Sokal & Michener, 1958) over the distances 1 - similarity, as scipy's linkage matrix.

    Args:
        similarity: ``[features, features]`` of two features or more.
    """
    return linkage(squareform(1 - similarity, checks=False), "average")
