"""What there is to say about a model, as plain values: what the page shows and what the JSON holds."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
        kind: ``categorical``, ``multi_valued`` or ``numeric``.
        auc_drop, logloss_rise: permutation importance.
        attribution: mean of the absolute contribution to the logit.
    """

    field: str
    kind: str
    auc_drop: Spread
    logloss_rise: Spread
    attribution: float


@dataclass(frozen=True)
class FieldMap:
    """A ``[fields, fields]`` matrix, of one row or the mean over a sample."""

    name: str
    values: np.ndarray


@dataclass(frozen=True)
class MapSection:
    """What a model shows of its own; see ``ctrkit.models.base.FieldMaps``."""

    title: str
    about: str
    neutral: float
    fields: list[str]
    maps: list[FieldMap]

    @property
    def mean(self) -> np.ndarray:
        return np.mean([m.values for m in self.maps], axis=0)

    def strongest_pairs(self, count: int) -> list[tuple[str, str, float]]:
        """The largest entries of the mean over all maps, a field with itself left out: (row's field, column's field, value)."""
        off_diagonal = np.where(np.eye(len(self.fields), dtype=bool), -np.inf, self.mean)
        order = np.argsort(off_diagonal, axis=None)[::-1][: min(count, len(self.fields) * (len(self.fields) - 1))]
        places = [divmod(int(place), len(self.fields)) for place in order]
        return [(self.fields[row], self.fields[column], float(self.mean[row, column])) for row, column in places]

    def to_json(self) -> dict[str, Any]:
        maps = [{"name": m.name, "values": np.round(m.values, 6).tolist()} for m in self.maps]
        pairs = [{"field": a, "other": b, "value": value} for a, b, value in self.strongest_pairs(20)]
        return {"title": self.title, "about": self.about, "neutral": self.neutral, "fields": self.fields, "maps": maps, "pairs": pairs}


@dataclass(frozen=True)
class FieldShare:
    """A field of one row.

    Attributes:
        value: raw, as a client would send it; None is missing.
        unseen: the training rows' vocabulary does not hold it, so that the model only sees "unknown".
        contribution: to the logit, against the average row.
    """

    field: str
    value: Any
    unseen: bool
    contribution: float


@dataclass(frozen=True)
class RowExplanation:
    """One row.

    Attributes:
        name: of the row, for titles and file names.
        label: 1 for a click, 0 for none, None if not known.
        base_logit: of the average row.
        fields: the largest contribution first; with ``base_logit`` they add up to ``logit``, but for ``gap``.
        sections: the model's own pictures of this row.
    """

    name: str
    label: int | None
    logit: float
    base_logit: float
    gap: float
    fields: list[FieldShare]
    sections: list[MapSection]

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
    """The model that is explained."""

    run: str
    model: str
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
        sections: the model's own pictures, means over the sample.
        examples: some rows explained one by one.
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
    sections: list[MapSection]
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
