"""How far the rows that were asked lately are from those of the training, feature by feature, and the scores from those on held-out rows."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from ctrkit.bundle import Bundle, output_names
from ctrkit.drift import Bins, feature_bins, population_stability, score_bins

BLOCKS = 64
"""However few rows come at a time, a window has hardly more blocks."""

Counts = Mapping[str, np.ndarray]
"""A column's name -> rows or values in each of its bins."""


class Drift:
    """One version's sliding window, in some ``BLOCKS`` blocks of rows: each as counts, no row is kept.

    Args:
        most_rows: of the window; the oldest blocks make room.
        fewest_rows: with fewer there is no index: it would be chance.

    Attributes:
        features: bins of each feature that the bundle's profile has them for.
        scores: bins of each of the graph's outputs, likewise.
    """

    def __init__(self, bundle: Bundle, most_rows: int, fewest_rows: int) -> None:
        profile = bundle.manifest.profile
        features = {feature.name: feature_bins(profile, feature) for feature in bundle.features}
        scores = {output: score_bins(profile, output) for output in output_names(bundle.tasks)}
        self.features: dict[str, Bins] = {name: bins for name, bins in features.items() if bins is not None}
        self.scores: dict[str, Bins] = {name: bins for name, bins in scores.items() if bins is not None}
        self._most, self._fewest = most_rows, fewest_rows
        self._blocks: deque[tuple[int, Counts, Counts]] = deque()
        self.rows = 0

    def add(self, rows: int, features: Counts, scores: Counts) -> None:
        """Rows that were asked, later than all before them: a block of their own, or more of the last one while that is short."""
        if self._blocks and BLOCKS * self._blocks[-1][0] < self._most:
            before = self._blocks.pop()
            self._blocks.append((before[0] + rows, _sum(before[1], features), _sum(before[2], scores)))
        else:
            self._blocks.append((rows, features, scores))
        self.rows += rows
        while len(self._blocks) > 1 and self.rows - self._blocks[0][0] >= self._most:
            self.rows -= self._blocks.popleft()[0]

    def of_features(self) -> dict[str, float]:
        """The population stability index of each feature in the window; none while it has too few rows."""
        return self._indices(self.features, [features for _, features, _ in self._blocks])

    def of_scores(self) -> dict[str, float]:
        """The same of each of the graph's outputs."""
        return self._indices(self.scores, [scores for _, _, scores in self._blocks])

    def _indices(self, bins: Mapping[str, Bins], blocks: list[Counts]) -> dict[str, float]:
        if self.rows < self._fewest:
            return {}
        totals = {name: np.sum([block[name] for block in blocks], axis=0) for name in bins}
        return {name: population_stability(bins[name].shares, total) for name, total in totals.items() if total.sum()}


def _sum(one: Counts, other: Counts) -> Counts:
    return {name: counts + other[name] for name, counts in one.items()}
