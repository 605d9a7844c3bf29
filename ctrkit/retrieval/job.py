"""What a method is given to train, and what it gives back."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.evaluate import Recommender, measure, rank_catalogue
from ctrkit.retrieval.events import Queries


@dataclass(frozen=True)
class Job:
    """One training: its experiment, its dataset, the run's folder and where to say how it goes."""

    experiment: RetrievalExperiment
    dataset: RetrievalDataset
    folder: Path
    console: Console

    def validate(self, recommender: Recommender) -> dict[str, float]:
        """Metrics on the valid split."""
        queries, at = self._valid, self.experiment.evaluation.at
        ranked = rank_catalogue(recommender, queries, self.dataset, max(at))
        return measure(ranked, queries, self.dataset.counts, at)

    @cached_property
    def _valid(self) -> Queries:
        return self.dataset.queries("valid", self.experiment.evaluation.valid_queries)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


@dataclass(frozen=True)
class Fitted:
    """A trained method.

    Attributes:
        recommender: with its best weights.
        params: numbers that were learned.
        embedding_bytes: of the tables; 0 for a method without.
        epochs: trained.
        best_epoch: whose weights were kept.
        samples_per_s: training events a second; None where that says nothing.
    """

    recommender: Recommender
    params: int
    embedding_bytes: int = 0
    epochs: int = 0
    best_epoch: int = 0
    samples_per_s: float | None = None
