"""What there is to say about a model, as plain values: what the page shows and what the JSON holds."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ctrkit.explain.markup import Shown
from ctrkit.training.tracking import without_nan


@dataclass(frozen=True)
class Spread:
    """A figure over repeats: mean and standard deviation."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        return cls(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class FieldScore:
    """A field over the whole sample.

    Attributes:
        kind: ``categorical``, ``multi_valued``, ``sequence`` or ``numeric``.
        auc_drop, logloss_rise: permutation importance.
        attribution: mean of the absolute contribution to the logit.
    """

    field: str
    kind: str
    auc_drop: Spread
    logloss_rise: Spread
    attribution: float


class Section(Protocol):
    """A part of an explanation that only some models have."""

    @property
    def title(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...

    def show(self, name: str) -> Shown:
        """On the page; names of pictures begin with ``name``."""
        ...


@dataclass(frozen=True)
class FieldShare:
    """A field of one row.

    Attributes:
        value: raw, as a client would send it; None is missing.
        unseen: the training rows' vocabulary does not hold it, so that the model only sees "unknown".
        pruned: the model was trained without it, or without all of a bag; see ``ctrkit.explain.decisions``.
        contribution: to the logit, against the average row.
    """

    field: str
    value: Any
    unseen: bool
    pruned: bool
    contribution: float


@dataclass(frozen=True)
class RowExplanation:
    """One row.

    Attributes:
        name: of the row, for titles and file names.
        label: 1 or 0, None if not known.
        base_logit: of the average row.
        fields: the largest contribution first; with ``base_logit`` they add up to ``logit``, but for ``gap``.
        sections: what this model shows of this row.
    """

    name: str
    label: int | None
    logit: float
    base_logit: float
    gap: float
    fields: list[FieldShare]
    sections: list[Section]

    @property
    def probability(self) -> float:
        return float(1 / (1 + np.exp(-self.logit)))

    def to_json(self) -> dict[str, Any]:
        return {
            "row": self.name,
            "label": self.label,
            "probability": self.probability,
            "logit": self.logit,
            "base_logit": self.base_logit,
            "gap": self.gap,
            "fields": [asdict(share) for share in self.fields],
            "sections": [section.to_json() for section in self.sections],
        }


@dataclass(frozen=True)
class About:
    """The model that is explained.

    Attributes:
        label: what is predicted and explained: of several labels the task, otherwise the log's column or expression.
        tasks: names of several labels, the main one first.
        metrics: of that label, by split.
    """

    run: str
    model: str
    label: str
    tasks: tuple[str, ...]
    paper: str
    parameters: int
    metrics: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": {split: without_nan(values) for split, values in self.metrics.items()}}


@dataclass(frozen=True)
class SplitExplanation:
    """A model over a sample of a split.

    Attributes:
        rows: sampled; ``integrated_rows`` of them for the attributions.
        of_rows: rows of the split.
        auc, logloss: of the sample.
        base_logit: of the average row.
        largest_gap: of the integrated gradients, in logits.
        fields: the most important first, by the drop of AUC.
        agreement: Spearman's rank correlation of AUC drop and attribution; NaN when one of them is the same for all fields.
        sections: what this model shows over the sample.
        raw_split: the split whose first rows were kept in raw form; ``examples``: some of those, explained one by one.
    """

    split: str
    rows: int
    integrated_rows: int
    of_rows: int
    repeats: int
    auc: float
    logloss: float
    base_logit: float
    largest_gap: float
    fields: list[FieldScore]
    agreement: float
    sections: list[Section]
    raw_split: str
    examples: list[RowExplanation]

    def to_json(self) -> dict[str, Any]:
        plain = ("split", "rows", "integrated_rows", "of_rows", "repeats", "auc", "logloss", "base_logit", "largest_gap")
        return {
            **{name: getattr(self, name) for name in plain},
            "agreement": None if np.isnan(self.agreement) else self.agreement,
            "fields": [asdict(score) for score in self.fields],
            "sections": [section.to_json() for section in self.sections],
            "examples": [example.to_json() for example in self.examples],
        }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; ties share their mean rank. NaN when all of one are tied."""
    ranks = [_ranks(a), _ranks(b)]
    if any(r.std() == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
