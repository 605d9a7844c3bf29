"""Counts what is in each split, as chunks go by: the profile that ``prepare`` keeps with the dataset."""

from typing import Any

import numpy as np
import polars as pl

from ctrkit.data.labels import LABEL
from ctrkit.data.splits import SPLITS
from ctrkit.schema import MISSING_INT, Feature, Kind, Vocabulary
from ctrkit.transforms.fitted import FittedTransforms

_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_SAMPLE_ROWS = 100_000


class _Numbers:
    """Mean and variance merged over chunks (Chan, Golub & LeVeque, 1979), extremes, and a sample for quantiles."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        self.low, self.high = float("inf"), float("-inf")
        self.sample: list[np.ndarray] = []

    def add(self, column: np.ndarray, every: int) -> None:
        sample = column[::every]
        self.sample.append(sample[np.isfinite(sample)])
        values = column[np.isfinite(column)]
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean, total = float(values.mean()), self.count + len(values)
            gap = mean - self.mean
            self.squares += float(np.square(values - mean).sum()) + gap * gap * self.count * len(values) / total
            self.mean += gap * len(values) / total
        self.count = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def describe(self) -> dict[str, Any]:
        std = (self.squares / self.count) ** 0.5
        sample = np.concatenate(self.sample)
        quantiles = {f"{q:g}": float(np.quantile(sample, q)) for q in _QUANTILES} if len(sample) else {}
        return {
            "mean": self.mean if np.isfinite(self.mean) else None,
            "std": std if np.isfinite(std) else None,
            "min": self.low,
            "max": self.high,
            "quantiles": quantiles,
        }


class Profiler:
    """Gathers the profile of a dataset while it is written.

    Quantiles of numbers are those of about 100,000 training rows at even distances, all else is exact.

    Args:
        transforms: the fitted ones.
        rows: rows of each split.
    """

    def __init__(self, transforms: FittedTransforms, rows: dict[str, int]) -> None:
        self._transforms = transforms
        self._rows = rows
        self._features = transforms.features
        self._known = [f for f in self._features if isinstance(f.transform, Vocabulary)]
        self._clicks = dict.fromkeys(SPLITS, 0.0)
        self._missing = {f.name: dict.fromkeys(SPLITS, 0) for f in transforms.features}
        self._unknown = {f.name: dict.fromkeys(SPLITS, 0) for f in transforms.features}
        self._values = {f.name: dict.fromkeys(SPLITS, 0) for f in transforms.features}
        self._numbers = {f.name: _Numbers() for f in transforms.features if f.kind is Kind.NUMERIC}
        self._every = max(1, rows["train"] // _SAMPLE_ROWS)

    def add(self, split: str, raw: pl.DataFrame, encoded: pl.DataFrame) -> None:
        """Takes in rows of a split: canonical values, and their ids with the label."""
        missing = [(encoded if f.multi_valued else raw).select(_missing(f, raw.schema[f.name])).item() for f in self._features]
        for index, feature in enumerate(self._features):
            self._missing[feature.name][split] += missing[index]
        self._clicks[split] += float(encoded[LABEL].sum())
        if self._known:
            values = encoded.select(_id_count(f) for f in self._known).row(0)
            unknown = encoded.select(_unknown(f) for f in self._known).row(0)
            for index, feature in enumerate(self._known):
                self._values[feature.name][split] += values[index]
                self._unknown[feature.name][split] += unknown[index]
        if split == "train":
            for name, numbers in self._numbers.items():
                numbers.add(raw[name].to_numpy(), self._every)

    def describe(self) -> dict[str, Any]:
        """{splits: {split: {rows, ctr}}, features: {name: {...}}}."""
        splits = {s: {"rows": n, "ctr": self._clicks[s] / n} for s, n in self._rows.items() if n}
        return {"splits": splits, "features": {f.name: self._feature(f) for f in self._transforms.features}}

    def _feature(self, feature: Feature) -> dict[str, Any]:
        present = {s: n for s, n in self._rows.items() if n}
        about: dict[str, Any] = {
            "kind": feature.kind.value,
            "transform": feature.transform.kind,
            "missing": {s: self._missing[feature.name][s] / n for s, n in present.items()},
        }
        transform = self._transforms[feature.name]
        if transform.rows is not None:
            about["table_rows"] = transform.rows
        vocabulary = transform.vocabulary()
        if vocabulary is not None:
            values = self._values[feature.name]
            about["cardinality"] = len(vocabulary)
            about["out_of_vocabulary"] = {s: self._unknown[feature.name][s] / max(values[s], 1) for s in present}
        if feature.name in self._numbers:
            about.update(self._numbers[feature.name].describe())
        return about


def _missing(feature: Feature, dtype: pl.DataType) -> pl.Expr:
    """Number of rows without a value: of ids for bags, else of raw values, where UInt32 is numbers into a dictionary, 0 the missing one."""
    column = pl.col(feature.name)
    if dtype == pl.UInt32:
        return (column == 0).sum()
    if feature.kind is Kind.NUMERIC:
        return column.is_nan().sum()
    if feature.multi_valued:
        return (column.list.len() == 0).sum()
    return (column == ("" if feature.dtype == "string" else MISSING_INT)).sum()


def _id_count(feature: Feature) -> pl.Expr:
    """Number of ids: one a row, or those in bags."""
    column = pl.col(feature.name)
    return (column.list.len().sum() if feature.multi_valued else column.len()).cast(pl.Int64)


def _unknown(feature: Feature) -> pl.Expr:
    """Number of ids that mean unknown."""
    column = pl.col(feature.name)
    if feature.multi_valued:
        column = column.explode(empty_as_null=False)
    assert isinstance(feature.transform, Vocabulary)
    return (column <= feature.transform.oov_buckets).sum().cast(pl.Int64)
