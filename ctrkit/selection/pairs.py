"""All pairs of features: how much one says of the other, and what both together say of the label.

A pair costs one joint table with the label, see ``information.joint_cells``. Pairs are counted by as many processes as there are cores;
each maps the columns' files, so the columns are in memory once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context

import numpy as np

from ctrkit.selection.coded import CodedLog, Column
from ctrkit.selection.information import Cells, cells, information, joint_cells
from ctrkit.selection.noise import Chance, Noise
from ctrkit.selection.scores import Score

_FEW_CELLS = 20_000_000
"""Rows times pairs up to which processes are not worth their start."""
_TELLING = 0.01
"""Columns that chance explains all but so small a share of cannot be told apart by counting."""


@dataclass(frozen=True)
class Pair:
    """Two features, ``first`` and ``second`` being places in the log's columns.

    Attributes:
        information: mutual information of the two, nats, as counted; ``expected`` by chance.
        similarity: (MI - E[MI]) / (larger entropy - E[MI]): 0 for independent columns, 1 for columns that say the same.
        first_told, second_told: the share of its own entropy that the other tells, beyond chance: 1 for the country of a city.
        score: of both crossed into one, see ``Score.score``; ``z`` of that is ``Chance.z``, too large where clicks are few.
        synergy: how much more that is than both scores added: above 0 only together, below 0 where they say the same of the label.
        values: pairs of values that occur.
    """

    first: int
    second: int
    information: float
    expected: float
    similarity: float
    first_told: float
    second_told: float
    score: float
    z: float
    synergy: float
    values: int


@dataclass(frozen=True)
class _Counted:
    information: float
    label_information: float
    chance: Chance
    values: int


def all_pairs(
    log: CodedLog,
    scores: Sequence[Score],
    noise: Noise,
    *,
    most: int | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Pairs of the log's features; with ``most``, those among as many of the best features as make no more pairs.

    Args:
        scores: of all the log's features, in its order.
        processes: default as many as cores.
        progress: told how many pairs are done, and of how many.
    """
    chosen = _places(scores, most)
    places = list(combinations(chosen, 2))
    weights = np.array([noise.weights(score.column) for score in scores])
    expected = noise.between(weights, weights) if places else np.empty(0)
    found = []
    label_entropy = cells(np.bincount(log.label)).entropy
    for (i, j), counted in zip(places, _count(log, scores, noise, places, processes), strict=True):
        found.append(_pair(i, j, counted, scores, float(expected[i, j]), label_entropy))
        if progress is not None:
            progress(len(found), len(places))
    return found


def _places(scores: Sequence[Score], most: int | None) -> list[int]:
    places = range(len(scores))
    if most is None or len(scores) * (len(scores) - 1) // 2 <= most:
        return list(places)
    count = int((1 + np.sqrt(1 + 8 * most)) // 2)
    return sorted(sorted(places, key=lambda place: (-scores[place].score, scores[place].name))[:count])


def _pair(i: int, j: int, counted: _Counted, scores: Sequence[Score], expected: float, label_entropy: float) -> Pair:
    first, second = scores[i], scores[j]
    score = (counted.label_information - counted.chance.mean) / label_entropy
    told = [_share(counted.information, expected, *of) for of in ((first.entropy, second.entropy), (second.entropy, first.entropy))]
    return Pair(
        first=i,
        second=j,
        information=counted.information,
        expected=expected,
        similarity=min(told),
        first_told=told[0],
        second_told=told[1],
        score=score,
        z=counted.chance.z(counted.label_information),
        synergy=score - first.score - second.score,
        values=counted.values,
    )


def _share(information: float, expected: float, entropy: float, other: float) -> float:
    """Of an entropy, what a column of the ``other`` tells beyond chance.

    Copies tell all even where chance would, such as two columns of unique values. One such column tells nothing of any other but a copy.
    """
    if entropy < 1e-12:
        return 0.0
    if max(entropy, other) - information < 1e-9 * max(1.0, entropy):
        return 1.0
    if entropy - expected < _TELLING * entropy:
        return 0.0
    return (information - expected) / (entropy - expected)


def _count(
    log: CodedLog, scores: Sequence[Score], noise: Noise, places: Sequence[tuple[int, int]], processes: int | None
) -> Iterator[_Counted]:
    worker = (log.columns, [score.column for score in scores], log.label, noise)
    if processes == 1 or log.rows * len(places) <= _FEW_CELLS:
        counter = _Counter(*worker)
        yield from map(counter.count, places)
        return
    with ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn"), _start, worker) as pool:
        yield from pool.map(_run, places, chunksize=8)


class _Counter:
    """Counts pairs of columns."""

    def __init__(self, columns: Sequence[Column], alone: Sequence[Cells], label: np.ndarray, noise: Noise) -> None:
        self._columns = columns
        self._alone = alone
        self._label = label
        self._label_cells = cells(np.bincount(label, minlength=2))
        self._noise = noise

    def count(self, places: tuple[int, int]) -> _Counted:
        a, b = (self._columns[place] for place in places)
        joint, with_label = joint_cells(a.codes, a.size, b.codes, b.size, self._label)
        return _Counted(
            information=information(joint, *(self._alone[place] for place in places)),
            label_information=information(with_label, joint, self._label_cells),
            chance=self._noise.with_label(joint),
            values=joint.number,
        )


_counter: _Counter | None = None
"""A worker process's own."""


def _start(columns: Sequence[Column], alone: Sequence[Cells], label: np.ndarray, noise: Noise) -> None:
    global _counter
    _counter = _Counter(columns, alone, label, noise)


def _run(places: tuple[int, int]) -> _Counted:
    assert _counter is not None
    return _counter.count(places)
