"""How much each feature alone says about the label, by several measures, and what it is made of."""

from dataclasses import dataclass

import numpy as np

from ctrkit.selection.coded import BATCHES, CodedLog, Column
from ctrkit.selection.information import Cells, cells, information, joint_table
from ctrkit.selection.noise import FAR, Chance, Noise


@dataclass(frozen=True)
class Score:
    """One feature against the label. Information and entropies are in nats.

    Attributes:
        score: what it says of the label beyond chance, as a share of the label's entropy: (MI - E[MI]) / H(label). About 0 for a
            random column whatever its number of values, never above 1. Chance is taken off, not divided by: a column of nearly unique
            values, whose rows cannot tell, is not blown up.
        z: standard deviations above chance, see ``noise.Noise.z``.
        mi: mutual information as counted.
        nmi, ami: normalised and adjusted by the mean of the two entropies, as scikit-learn's.
        correlation: |Pearson's r| of a number, the correlation ratio of categories.
        chance: of ``mi``.
        column: the cells of the feature's table of values.
        missing: share of rows without a value; ``top`` of those with the most frequent one; ``once`` of those whose value is there once.
        covering: values that cover half, nine tenths and 99 in 100 of the rows.
        drift: what it says of the tenth of the log a row is in, beyond chance, as a share of that tenth's entropy.
        fresh: share of the last tenth's rows whose value is nowhere before.
        by_batch: rows without a value in each tenth, as a share.
    """

    name: str
    score: float
    z: float
    mi: float
    nmi: float
    ami: float
    correlation: float
    entropy: float
    chance: Chance
    column: Cells
    missing: float
    top: float
    once: float
    covering: tuple[int, int, int]
    drift: float
    fresh: float
    by_batch: tuple[float, ...]

    @property
    def values(self) -> int:
        """Distinct values, missing among them."""
        return self.column.number

    @property
    def stands_out(self) -> bool:
        return self.z > FAR


def score_features(log: CodedLog, noise: Noise, drift_noise: "DriftNoise") -> list[Score]:
    """All features of a log, in its order."""
    return [score_feature(column, log, noise, drift_noise) for column in log.columns]


class DriftNoise:
    """Chance of information between a feature and the tenth of the log, which has ``BATCHES`` classes."""

    def __init__(self, log: CodedLog, noise: Noise) -> None:
        self.batches = cells(np.bincount(log.batch, minlength=BATCHES))
        self._noise = noise
        self._weights = noise.weights(self.batches)

    def expected(self, weights: np.ndarray) -> float:
        return float(self._noise.between(weights[None], self._weights[None])[0, 0])


def score_feature(column: Column, log: CodedLog, noise: Noise, drift_noise: DriftNoise) -> Score:
    codes = column.codes
    table = joint_table(codes, column.size, log.label, 2)
    by_batch = joint_table(codes, column.size, log.batch, BATCHES)
    counts = table.sum(1)
    alone, label = cells(counts), cells(table.sum(0))
    weights = noise.weights(alone)
    chance = noise.chance(weights, alone.number)
    mi = information(cells(table), alone, label)
    entropy = alone.entropy
    mean_entropy = (entropy + label.entropy) / 2
    drifting = information(cells(by_batch), alone, drift_noise.batches) - drift_noise.expected(weights)
    numbers = column.numbers
    return Score(
        name=column.name,
        score=(mi - chance.mean) / label.entropy,
        z=noise.z(alone, chance, mi),
        mi=mi,
        nmi=mi / mean_entropy if alone.number > 1 else 0.0,
        ami=(mi - chance.mean) / (mean_entropy - chance.mean) if alone.number > 1 else 0.0,
        correlation=_correlation_ratio(table) if numbers is None else _pearson(numbers, log.label),
        entropy=entropy,
        chance=chance,
        column=alone,
        missing=float(counts[0]) / log.rows,
        top=float(counts.max()) / log.rows,
        once=float((counts == 1).sum()) / log.rows,
        covering=_covering(counts),
        drift=drifting / drift_noise.batches.entropy if alone.number > 1 else 0.0,
        fresh=_fresh(by_batch),
        by_batch=tuple((by_batch[0] / np.maximum(by_batch.sum(0), 1)).tolist()),
    )


def _correlation_ratio(table: np.ndarray) -> float:
    """eta: the root of the label's variance between values over all its variance. Sums go in the order of the values' counts."""
    counts, positives = table.sum(1), table[:, 1]
    order = np.lexsort((positives, counts))
    counts, positives = counts[order], positives[order]
    kept = counts > 0
    rows, clicks = counts.sum(), positives.sum()
    explained = (positives[kept] ** 2 / counts[kept]).sum() - clicks**2 / rows
    return float(np.sqrt(max(explained, 0.0) / (clicks * (rows - clicks) / rows)))


def _pearson(numbers: np.ndarray, label: np.ndarray) -> float:
    """|r| over the rows that have a number. Sums go over sorted numbers: the rows' order does not matter."""
    known = np.isfinite(numbers)
    x, y = numbers[known], label[known]
    if not len(x) or y.min() == y.max():
        return 0.0
    x = x / (np.abs(x).max() or 1.0)
    ordered = np.sort(x)
    centred = ordered - ordered.mean()
    deviation = np.sqrt((centred**2).mean())
    if deviation < 1e-15:
        return 0.0
    rate = float(y.mean())
    gap = np.sort(x[y == 1]).mean() - np.sort(x[y == 0]).mean()
    return float(abs(gap) * np.sqrt(rate * (1 - rate)) / deviation)


def _covering(counts: np.ndarray) -> tuple[int, int, int]:
    reached = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    half, most, nearly = (int(np.searchsorted(reached, share - 1e-12)) + 1 for share in (0.5, 0.9, 0.99))
    return half, most, nearly


def _fresh(by_batch: np.ndarray) -> float:
    last = int(np.flatnonzero(by_batch.sum(0))[-1])
    if last == 0:
        return 0.0
    new = by_batch[:, :last].sum(1) == 0
    new[0] = False
    return float(by_batch[new, last].sum() / by_batch[:, last].sum())
