"""Ranking by relevance, redundancy and relation together: 3MR.

One feature after the other, each time the one that adds most to those chosen before it:

    score(f) - redundancy * max over s of told(f, s) * max(score(f), 0) + relation * max over s of max(synergy(f, s), 0)

with s over the chosen ones. ``told(f, s)`` is the share of f's entropy that s tells, so a copy, or the country of a chosen city, adds
nothing; ``synergy`` is what only both together say of the label, counted where the pair stands out from chance. The largest of each, not the
mean: one copy makes a feature redundant however many others are chosen.
"""

from collections.abc import Sequence

import numpy as np

from ctrkit.selection.pairs import Pair
from ctrkit.selection.scores import FAR, Score


def rank_3mr(scores: Sequence[Score], pairs: Sequence[Pair], redundancy: float = 1.0, relation: float = 1.0) -> list[tuple[int, float]]:
    """(place of a feature, what it added when it was chosen), the first chosen first; equals go by name.

    Args:
        pairs: of those places; a pair that is not there counts as neither redundant nor related.
    """
    told, related = np.zeros((2, len(scores), len(scores)))
    for pair in pairs:
        told[pair.first, pair.second] = max(pair.first_told, 0.0)
        told[pair.second, pair.first] = max(pair.second_told, 0.0)
        if pair.z > FAR:
            related[pair.first, pair.second] = related[pair.second, pair.first] = max(pair.synergy, 0.0)
    alone = np.array([score.score for score in scores])
    most_told, most_related = np.zeros((2, len(scores)))
    left = sorted(range(len(scores)), key=lambda place: scores[place].name)
    chosen: list[tuple[int, float]] = []
    while left:
        gains = alone - redundancy * most_told * np.maximum(alone, 0.0) + relation * most_related
        best = max(left, key=lambda place: gains[place])
        chosen.append((best, float(gains[best])))
        left.remove(best)
        most_told = np.maximum(most_told, told[:, best])
        most_related = np.maximum(most_related, related[:, best])
    return chosen
