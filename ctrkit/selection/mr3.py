"""Ranking by relevance, redundancy and relation together: 3MR.

One feature after the other, each time the one that adds most to those chosen before it:

    relevance(f) - redundancy * max over s of similarity(f, s) * relevance(f) + relation * related(f)

with s over the chosen ones. Relevance is the score, where it stands out from chance. Similarity is ``Pair.similarity``, so a copy adds
nothing, and the country of a chosen city something: it has more rows a value. Related is what f and another feature say of the label only together
(``Pair.synergy``, where the pair stands out): all of it if the other is chosen, else half, as two features have to be chosen for it. The
largest of each counts, not the mean: one copy makes a feature redundant however many others are chosen.
"""

from collections.abc import Sequence

import numpy as np

from ctrkit.selection.noise import FAR
from ctrkit.selection.pairs import Pair
from ctrkit.selection.scores import Score


def rank_3mr(scores: Sequence[Score], pairs: Sequence[Pair], redundancy: float = 1.0, relation: float = 1.0) -> list[tuple[int, float]]:
    """(place of a feature, what it added when it was chosen), the first chosen first; equals go by score, then by name.

    Args:
        pairs: of those places; a pair that is not there counts as neither redundant nor related.
    """
    similar, related = np.zeros((2, len(scores), len(scores)))
    for pair in pairs:
        similar[pair.first, pair.second] = similar[pair.second, pair.first] = max(pair.similarity, 0.0)
        if pair.z > FAR:
            related[pair.first, pair.second] = related[pair.second, pair.first] = max(pair.synergy, 0.0)
    relevance = np.array([score.score if score.stands_out else min(score.score, 0.0) for score in scores])
    most_similar = np.zeros(len(scores))
    most_related = related.max(1) / 2
    left = sorted(range(len(scores)), key=lambda place: (-scores[place].score, scores[place].name))
    chosen: list[tuple[int, float]] = []
    while left:
        gains = relevance - redundancy * most_similar * np.maximum(relevance, 0.0) + relation * most_related
        best = max(left, key=lambda place: gains[place])
        chosen.append((best, float(gains[best])))
        left.remove(best)
        most_similar = np.maximum(most_similar, similar[:, best])
        most_related = np.maximum(most_related, related[:, best])
    return chosen
