"""How a number is best made into values: several ways, each scored on the fly as the feature itself is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrkit.selection.coded import CodedLog, number_codes, quantile_codes
from ctrkit.selection.information import cells, information, joint_table, smallest
from ctrkit.selection.noise import Noise

COUNTS = (8, 32, 128)


@dataclass(frozen=True)
class Transformation:
    """One way for one feature; ``score`` and ``z`` as in ``scores.Score``.

    ``quantiles of 8`` and so on are what ``transform: {kind: buckets, count: 8}`` does; ``quantiles beside the most frequent`` are those of
    32 and as many of the other numbers, which features that are not made into buckets are scored by; ``equal widths of 32`` divides the
    range; ``powers of two`` is sign(x) floor(log2(1 + |x|)); ``as it is`` takes every number for a value.
    """

    feature: str
    name: str
    score: float
    z: float
    values: int


def score_transformations(log: CodedLog, noise: Noise) -> list[Transformation]:
    """Of all numeric features, the best of each first."""
    label = cells(np.bincount(log.label, minlength=2))
    found = []
    for column in log.columns:
        numbers = column.numbers
        if numbers is None:
            continue
        ways = []
        for name, codes, size in _ways(np.asarray(numbers)):
            table = joint_table(codes, size, log.label, 2)
            alone = cells(table.sum(1))
            mi, chance = information(cells(table), alone, label), noise.with_label(alone)
            ways.append(Transformation(column.name, name, (mi - chance.mean) / label.entropy, noise.z(alone, chance, mi), alone.number))
        found += sorted(ways, key=lambda way: (-way.score, way.name))
    return found


def _ways(numbers: np.ndarray) -> Sequence[tuple[str, np.ndarray, int]]:
    known = np.isfinite(numbers)
    finite = numbers[known]
    ordered = np.sort(finite)
    ways = [(f"quantiles of {count}", *quantile_codes(numbers, ordered, count)) for count in COUNTS]
    if len(ordered):
        ways.append(("quantiles beside the most frequent", *number_codes(numbers, ordered)))
        low, width = ordered[0], ordered[-1] - ordered[0]
        ways.append(("equal widths of 32", *_from_one(known, np.minimum((finite - low) / (width or 1.0) * 32, 31).astype(np.int64))))
        powers = np.sign(finite) * np.floor(np.log2(1 + np.abs(finite)))
        ways.append(("powers of two", *_from_one(known, np.unique(powers, return_inverse=True)[1])))
        ways.append(("as it is", *_from_one(known, np.unique(finite, return_inverse=True)[1])))
    return ways


def _from_one(known: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes of the known rows as codes of all rows, 0 where missing, and their size."""
    size = int(codes.max()) + 2
    spread = np.zeros(len(known), np.int64)
    spread[known] = codes + 1
    return smallest(spread, size), size
