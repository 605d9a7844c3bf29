"""How often an item is in a batch, estimated from the stream of batches alone (Yi et al., RecSys 2019, algorithm 2).

"Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations". Two arrays, A and B; for an item y of batch t in slot h(y)::

    B[h(y)] <- (1 - alpha) B[h(y)] + alpha (t - A[h(y)])        the average gap between two batches that hold y
    A[h(y)] <- t

With that alone an item of few events keeps the initial gap for tens of batches. So the n-th gap of a slot has the weight 1 / (n + 1) while
that is larger than alpha: the first gaps and the initial one are averaged. y is in a batch with probability 1 / B[h(y)]. With several hashes
the largest gap is taken: items that share a slot make it look shorter (section 4.2, "multiple hashings").
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field

from ctrkit import schema
from ctrkit.data.splits import random_keys


class FrequencySettings(schema.Settings):
    learning_rate: float = Field(default=0.05, gt=0, le=1, description="alpha, the least weight of the latest gap")
    buckets: int = Field(default=2**20, ge=2, description="slots of each hash")
    hashes: int = Field(default=2, ge=1)


class FrequencyEstimator:
    """
    Args:
        initial: of all gaps, in batches; the paper's delta_0.
        seed: of the hashes.
    """

    def __init__(self, settings: FrequencySettings, initial: float, seed: int = 0) -> None:
        self._settings = settings
        shape = (settings.hashes, settings.buckets)
        self._latest = np.zeros(shape, np.float64)
        self._gap = np.full(shape, max(initial, 1.0))
        self._gaps_seen = np.zeros(shape, np.int64)
        self._salts = random_keys(0, settings.hashes, seed) | np.uint64(1)
        self._step = 0

    def update(self, items: np.ndarray) -> None:
        """Takes in the next batch; an item that is there twice is there once.

        Args:
            items: of its events, int64 ``[batch]``.
        """
        self._step += 1
        distinct = np.unique(items)
        for row in range(self._settings.hashes):
            slots = np.unique(self._slots(distinct, row))
            self._gaps_seen[row, slots] += 1
            weight = np.maximum(self._settings.learning_rate, 1 / (1 + self._gaps_seen[row, slots]))
            self._gap[row, slots] += weight * (self._step - self._latest[row, slots] - self._gap[row, slots])
            self._latest[row, slots] = self._step

    def log_probability(self, items: np.ndarray) -> np.ndarray:
        """float64 ``[items]``: the logarithm of the probability that a batch holds each."""
        gaps = np.max([self._gap[row, self._slots(items, row)] for row in range(self._settings.hashes)], axis=0)
        return -np.log(gaps)

    def state(self) -> dict[str, Any]:
        """All it has learned, to go on with later."""
        arrays = {"latest": self._latest, "gap": self._gap, "gaps_seen": self._gaps_seen}
        return {**{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, "step": self._step}

    def load(self, state: dict[str, Any]) -> None:
        self._latest, self._gap, self._gaps_seen = (state[name].numpy().copy() for name in ("latest", "gap", "gaps_seen"))
        self._step = state["step"]

    def _slots(self, items: np.ndarray, row: int) -> np.ndarray:
        """Multiply-shift hashing (Dietzfelbinger et al., 1997): the high half of a product, modulo the slots."""
        with np.errstate(over="ignore"):
            mixed = (items.astype(np.uint64) + np.uint64(1)) * self._salts[row]
        return ((mixed >> np.uint64(32)) % np.uint64(self._settings.buckets)).astype(np.int64)
