"""What mutual information comes to by chance: the same column with its rows shuffled, averaged over all shuffles.

A column of many values says much about any label in the rows it was counted on. Under a random permutation of the rows the count of a cell
whose margins are a and b is hypergeometric, so with n rows

    n E[MI] = sum over cells of psi(a, b),    psi(a, b) = E[N log(N n / (a b))],  N ~ Hypergeometric(n, a, b)

which is exact (Vinh, Epps & Bailey, Information Theoretic Measures for Clusterings Comparison, JMLR 2010) and costs less than one shuffle:
psi is smooth, so it is computed at some 150 nodes and interpolated between them: exactly up to 64 rows a value, beyond that within some
millionths of itself. No random number is drawn.

The spread over shuffles has no closed form. Against a label of two classes it is that of independent binomial cells conditioned on
their sum (Holst, Two Conditional Limit Theorems, Annals of Statistics 1979): exact as values become many, and as the rows of a value
become many, where 2 n MI is chi-squared with V - 1 degrees of freedom. Between the two it agrees with shuffles within their own error.

Where clicks are few and values many, two clicks seldom share a rare value, each time they do is a leap of the information, and no smooth
curve has its tail. A column that seems to stand out is then held against shuffles indeed, which are drawn with a seed (``Noise.z``).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtri

from ctrkit.selection.information import Cells

FAR = 3.0
"""A z above it stands out from chance: one shuffled column in 740 does."""
_SHUFFLES = 2000, 10_000
"""The least and the most; between them as many as draw ``_DRAWS`` rows."""
_DRAWS = 5_000_000
_FEW_MEETINGS = 30
"""Of clicks on values so rare that one is not expected there: with more of them the information is smooth."""
_AT_ONCE = 2_000_000
_EXACT = 64
_BEYOND = 40


@dataclass(frozen=True)
class Chance:
    """MI of a shuffled column with the label: nats.

    Attributes:
        mean: over all shuffles.
        spread: one standard deviation.
    """

    mean: float
    spread: float

    def z(self, information: float) -> float:
        """How far above chance, in standard deviations of a normal variable of the same tail.

        MI over shuffles has the tail of a gamma variable; Wilson & Hilferty (1931) make that a normal one. 0 for a column whose every
        shuffle says the same, such as a constant or one of unique values.
        """
        if self.spread <= 1e-9 * self.mean:
            return 0.0
        shape = (self.mean / self.spread) ** 2
        third = 1 / (9 * shape)
        return float((np.cbrt(information / self.mean) - 1 + third) / np.sqrt(third))


class Noise:
    """Chance for a log of so many rows.

    Args:
        rows: n.
        positives: rows whose label is 1.
    """

    def __init__(self, rows: int, positives: int) -> None:
        self.rows = rows
        self.positives = positives
        self.nodes = _nodes(rows)
        self._places = _place(self.nodes.astype(float), rows)
        self._with_label = np.array([sum(psi(rows, int(a), b) for b in (positives, rows - positives)) for a in self.nodes])
        self._variance, self._covariance = np.array([_binomial_moments(int(a), positives / rows) for a in self.nodes]).T

    def weights(self, column: Cells) -> np.ndarray:
        """``[nodes]``: the sum of any smooth f over the column's counts is that of weight times f over the nodes."""
        size = len(self.nodes)
        if size <= 4:
            return np.bincount(np.searchsorted(self.nodes, column.counts), weights=column.times, minlength=size)
        x = _place(column.counts.astype(float), self.rows)
        first = np.clip(np.searchsorted(self._places, x, side="right") - 2, 0, size - 4)
        near = first[:, None] + np.arange(4)
        points = self._places[near]
        basis = np.ones((len(x), 4))
        for k in range(4):
            for other in range(4):
                if other != k:
                    basis[:, k] *= (x - points[:, other]) / (points[:, k] - points[:, other])
        return np.bincount(near.ravel(), weights=(basis * column.times[:, None]).ravel(), minlength=size)

    def with_label(self, column: Cells) -> Chance:
        """Of a column, or of several crossed into one."""
        return self.chance(self.weights(column), column.number)

    def z(self, column: Cells, chance: Chance, information: float) -> float:
        """``chance.z``; where that is far and few meetings of clicks may have brought it about, what the share of shuffles that have as much
        information says, if any of some thousands has."""
        z = chance.z(information)
        if z <= FAR or not 1e-4 < self._meetings(column) < _FEW_MEETINGS:
            return z
        reached = self._reached(column, information)
        return z if reached == 0 else min(z, float(-ndtri(reached)))

    def _meetings(self, column: Cells) -> float:
        """How many pairs of rows of the rarer class are expected to share a value on which less than one row of it is expected."""
        share = min(self.positives, self.rows - self.positives) / self.rows
        pairs = column.times * column.counts * (column.counts - 1.0) / 2 * share**2
        return float(pairs[column.counts * share < 1].sum())

    def _reached(self, column: Cells, information: float) -> float:
        """The share of shuffles that have as much information. Only the values that rows of the rarer class fall on are looked at."""
        few, rows = min(self.positives, self.rows - self.positives), self.rows
        counts = np.repeat(column.counts, column.times)
        ends = np.cumsum(counts)
        random = np.random.default_rng(0)
        alone = np.log(rows / (rows - few))
        number = min(max(_DRAWS // few, _SHUFFLES[0]), _SHUFFLES[1])
        reached, size = 0, max(1, _AT_ONCE // few)
        for start in range(0, number, size):
            shuffles = min(size, number - start)
            drawn = np.concatenate([random.choice(rows, few, replace=False, shuffle=False) for _ in range(shuffles)])
            cell = np.repeat(np.arange(shuffles), few) * len(counts) + np.searchsorted(ends, drawn, side="right")
            met, times = np.unique(cell, return_counts=True)
            size_of = counts[met % len(counts)].astype(float)
            gain = _x_log_ratio(times, size_of * few / rows) + _x_log_ratio(size_of - times, size_of * (1 - few / rows)) - size_of * alone
            found = np.bincount(met // len(counts), weights=gain, minlength=shuffles) / rows + alone
            reached += int((found >= information * (1 - 1e-9)).sum())
        return reached / number

    def chance(self, weights: np.ndarray, values: int) -> Chance:
        share = self.positives / self.rows
        within = self.rows * share * (1 - share)
        if values < 2 or within == 0:
            return Chance(0.0, 0.0)
        mean = float(weights @ self._with_label) / self.rows
        squared = float(weights @ self._variance) - float(weights @ self._covariance) ** 2 / within
        return Chance(max(mean, 0.0), float(np.sqrt(max(squared, 0.0) * (1 - 1 / values))) / self.rows)

    @cached_property
    def _between(self) -> np.ndarray:
        """psi of all nodes with one another ``[nodes, nodes]``."""
        table = np.empty((len(self.nodes), len(self.nodes)))
        for i, a in enumerate(self.nodes):
            for j, b in enumerate(self.nodes[: i + 1]):
                table[i, j] = table[j, i] = psi(self.rows, int(a), int(b))
        return table

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Expected MI of columns, from their weights ``[.., nodes]``: ``[first, second]``."""
        return np.maximum(first @ self._between @ second.T, 0.0) / self.rows


def psi(rows: int, a: int, b: int) -> float:
    """E[N log(N n / (a b))] of a cell with margins ``a`` and ``b`` under a random permutation of ``rows`` rows."""
    if a == 0 or b == 0:
        return 0.0
    low, high = max(0, a + b - rows), min(a, b)
    mean = a * b / rows
    spread = np.sqrt(mean * (rows - a) / rows * (rows - b) / max(rows - 1, 1))
    k = np.arange(max(low, int(mean - 12 * spread - 40)), min(high, int(mean + 12 * spread + 40)) + 1, dtype=np.float64)
    steps = np.log((a - k[:-1]) * (b - k[:-1])) - np.log(k[1:] * (rows - a - b + k[1:]))
    return float((_normalised(steps) * _x_log_ratio(k, mean)).sum())


def _binomial_moments(a: int, p: float) -> tuple[float, float]:
    """Var g and Cov(g, N) of N ~ Binomial(a, p); g is what a value of ``a`` rows adds to n MI with two classes, up to a multiple of N."""
    if p in (0.0, 1.0):
        return 0.0, 0.0
    mean, spread = a * p, np.sqrt(a * p * (1 - p))
    k = np.arange(max(0, int(mean - 12 * spread - 40)), min(a, int(mean + 12 * spread + 40)) + 1, dtype=np.float64)
    steps = np.log((a - k[:-1]) * p) - np.log(k[1:] * (1 - p))
    share = _normalised(steps)
    gain = _x_log_ratio(k, mean) + _x_log_ratio(a - k, a - mean)
    centred = gain - (share * gain).sum()
    return float((share * centred**2).sum()), float((share * centred * (k - mean)).sum())


def _normalised(log_ratios: np.ndarray) -> np.ndarray:
    """Probabilities whose neighbours have these ratios."""
    logs = np.concatenate([[0.0], np.cumsum(log_ratios)])
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


def _x_log_ratio(x: np.ndarray, mean: float | np.ndarray) -> np.ndarray:
    """x log(x / mean), 0 where x is 0."""
    return x * np.log(np.maximum(x, 1e-300) / mean)


def _nodes(rows: int) -> np.ndarray:
    """Counts of rows, rising from 1 to ``rows``: all small ones, and further apart where psi changes little."""
    if rows <= 2 * _EXACT + _BEYOND:
        return np.arange(1, rows + 1)
    half = np.geomspace(_EXACT, rows / 2, _BEYOND)
    lower = np.concatenate([np.arange(1, _EXACT), half.round()])
    upper = rows - np.concatenate([[0, 1, 2, 4, 8, 16, 32], half]).round()
    return np.unique(np.concatenate([lower, upper])).astype(np.int64)


def _place(counts: np.ndarray, rows: int) -> np.ndarray:
    """Where counts lie on the axis of interpolation: logarithmic towards both ends."""
    return np.log(counts) - np.log(rows + 1 - counts)
