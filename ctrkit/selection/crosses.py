"""Crosses of three and more features: what they say of the label together that no smaller cross says.

Triples and so on are too many to try, so the best crosses of one order are extended by every feature, the most promising first, until the
budget of the order is spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrkit.selection.coded import CodedLog
from ctrkit.selection.information import cells, crossed, information, joint_table
from ctrkit.selection.noise import Noise
from ctrkit.selection.pairs import Pair
from ctrkit.selection.scores import Score


@dataclass(frozen=True)
class Cross:
    """Several features as one.

    Attributes:
        places: of the features in the log's columns, rising.
        score, z: of the cross, see ``scores.Score``.
        gain: how much the score is above that of the best cross of one feature less.
        values: combinations that occur.
    """

    places: tuple[int, ...]
    score: float
    z: float
    gain: float
    values: int


def search_crosses(log: CodedLog, scores: Sequence[Score], pairs: Sequence[Pair], noise: Noise, order: int, budget: int) -> list[Cross]:
    """Crosses of 3 to ``order`` features, at most ``budget`` tried of each order, the best scores first.

    The most promising are those whose smaller cross and further feature have the largest scores together.
    """
    known: dict[tuple[int, ...], float] = {(pair.first, pair.second): pair.score for pair in pairs}
    single = [score.score for score in scores]
    found: list[Cross] = []
    for size in range(3, order + 1):
        tried: dict[tuple[int, ...], Cross] = {}
        for places in _candidates(known, single, budget):
            smaller = [known[part] for part in _parts(places) if part in known]
            score, z, values = _score(log, places, noise)
            tried[places] = Cross(places, score, z, score - max(smaller), values)
        assert all(len(places) == size for places in tried)
        known = {places: cross.score for places, cross in tried.items()}
        found += tried.values()
    return sorted(found, key=lambda cross: (-cross.score, cross.places))


def _candidates(known: dict[tuple[int, ...], float], single: Sequence[float], budget: int) -> list[tuple[int, ...]]:
    promise: dict[tuple[int, ...], float] = {}
    for places, score in sorted(known.items(), key=lambda item: (-item[1], item[0]))[:budget]:
        for further in range(len(single)):
            if further not in places:
                larger = tuple(sorted((*places, further)))
                promise[larger] = max(promise.get(larger, -np.inf), score + single[further])
    return sorted(promise, key=lambda places: (-promise[places], places))[:budget]


def _parts(places: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [places[:i] + places[i + 1 :] for i in range(len(places))]


def _score(log: CodedLog, places: tuple[int, ...], noise: Noise) -> tuple[float, float, int]:
    columns = [log.columns[place] for place in places]
    codes, size = columns[0].codes, columns[0].size
    for column in columns[1:]:
        codes, size = crossed(codes, column.codes, column.size)
    table = joint_table(codes, size, log.label, 2)
    alone, label = cells(table.sum(1)), cells(table.sum(0))
    mi, chance = information(cells(table), alone, label), noise.with_label(alone)
    return (mi - chance.mean) / label.entropy, noise.z(alone, chance, mi), alone.number
