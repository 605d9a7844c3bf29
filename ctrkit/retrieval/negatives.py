"""Which items a user's positive is set against, and how often each is expected to be among them.

The kinds add up, so that ``in_batch`` alone is Yi et al. (RecSys 2019), ``uniform`` alone or ``popularity`` alone the classical sampled
softmax, ``in_batch`` with ``uniform`` mixed negative sampling (Yang et al., WWW 2020), and ``in_batch`` with ``memory`` cross-batch
negative sampling (Wang et al., SIGIR 2021). ``hard`` keeps of all these, for each row, those that its user scores highest: dynamic negative
sampling (Zhang et al., SIGIR 2013).
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ctrkit import schema
from ctrkit.retrieval.frequency import FrequencyEstimator, FrequencySettings


class NegativeSettings(schema.Settings):
    in_batch: bool = Field(default=True, description="the other positives of the batch")
    uniform: int = Field(default=0, ge=0, description="items a step drawn uniformly from those trained on")
    popularity: int = Field(default=0, ge=0, description="items a step drawn by training events to the power 'power'")
    power: float = Field(default=1.0, gt=0)
    memory: int = Field(default=0, ge=0, description="batches before this one whose positives' vectors are kept")
    memory_warmup: int = Field(default=100, ge=0, description="steps before any are kept: early vectors move too fast")
    hard: int | None = Field(default=None, ge=1, description="only so many candidates count for a row, those of the highest scores")
    frequency: FrequencySettings = Field(default_factory=FrequencySettings)

    @model_validator(mode="after")
    def _some(self) -> "NegativeSettings":
        if not (self.in_batch or self.uniform or self.popularity):
            raise ValueError("choose one kind of negatives at least: in_batch, uniform or popularity; a memory is empty at first")
        return self


@dataclass(frozen=True)
class Candidates:
    """What every row of a batch is compared with.

    Attributes:
        items: int64 ``[candidates]``.
        vectors: ``[candidates, width]``.
    """

    items: np.ndarray
    vectors: Tensor


class Negatives:
    """Draws negatives, remembers vectors, and knows how often an item is expected among the candidates of a step.

    It is told of training batches alone.

    Args:
        counts: training events of each item, ``[items]``.
        batch_size: events a step.
    """

    def __init__(self, settings: NegativeSettings, counts: np.ndarray, batch_size: int) -> None:
        self._settings = settings
        self._trained = np.flatnonzero(counts)
        weights = np.where(counts > 0, counts.astype(np.float64) ** settings.power, 0.0)
        self._shares = weights / weights.sum()
        self._cumulative = np.cumsum(self._shares)
        self._uniform_share = (counts > 0) / len(self._trained)
        self.frequency = FrequencyEstimator(settings.frequency, len(self._trained) / batch_size)
        self._memory: deque[tuple[np.ndarray, Tensor]] = deque(maxlen=settings.memory)
        self._step = 0

    def draw(self, positives: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The items beside the batch's own that are to be encoded in this step, int64 ``[drawn]``."""
        self._step += 1
        self.frequency.update(positives)
        uniform = random.choice(self._trained, self._settings.uniform)
        places = np.searchsorted(self._cumulative, random.random(self._settings.popularity) * self._cumulative[-1], side="right")
        return np.concatenate([uniform, np.minimum(places, len(self._shares) - 1)]).astype(np.int64)

    def candidates(self, positives: np.ndarray, positive_vectors: Tensor, drawn: np.ndarray, drawn_vectors: Tensor) -> Candidates:
        """All candidates of the step.

        An item that several of a batch's events have is one candidate: how often one is *expected* counts the batches that hold it.
        """
        parts = [(drawn, drawn_vectors), *self._memory]
        if self._settings.in_batch:
            parts.insert(0, _distinct(positives, positive_vectors))
        return Candidates(np.concatenate([items for items, _ in parts]), torch.cat([vectors for _, vectors in parts]))

    def log_expected(self, items: np.ndarray) -> Tensor:
        """Logarithm of how often each item is expected among the candidates of this step, float32 ``[items]``: the kinds' expectations added up."""
        expected = self._settings.uniform * self._uniform_share[items] + self._settings.popularity * self._shares[items]
        batches = self._settings.in_batch + len(self._memory)
        if batches:
            expected = expected + batches * np.exp(self.frequency.log_probability(items))
        return torch.from_numpy(np.log(np.maximum(expected, 1e-12)).astype(np.float32))

    def remember(self, positives: np.ndarray, positive_vectors: Tensor) -> None:
        """Ends the step: its positives are candidates of the steps to come."""
        if self._settings.memory and self._step > self._settings.memory_warmup:
            self._memory.append(_distinct(positives, positive_vectors.detach()))

    def state(self) -> dict[str, Any]:
        """All it has learned, to go on with later."""
        memory = [{"items": torch.from_numpy(items), "vectors": vectors} for items, vectors in self._memory]
        return {"frequency": self.frequency.state(), "memory": memory, "step": self._step}

    def load(self, state: dict[str, Any]) -> None:
        self.frequency.load(state["frequency"])
        self._memory.extend((part["items"].numpy(), part["vectors"]) for part in state["memory"])
        self._step = state["step"]


def _distinct(items: np.ndarray, vectors: Tensor) -> tuple[np.ndarray, Tensor]:
    """Each item once, with one of its vectors."""
    items, first = np.unique(items, return_index=True)
    return items, vectors[torch.from_numpy(first).to(vectors.device)]
