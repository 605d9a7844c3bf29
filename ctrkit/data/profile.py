"""Counts what is in each split, as chunks go by: the profile that ``prepare`` keeps with the dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ctrkit.data.labels import label_columns
from ctrkit.data.splits import SPLITS
from ctrkit.drift import Bins, bins_of_codes, bins_of_numbers, present_codes
from ctrkit.known import codes_of
from ctrkit.schema import MISSING_INT, Feature, Kind, Vocabulary
from ctrkit.transforms.fitted import FittedTransforms

_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_SAMPLE_ROWS = 100_000
_BINNED_ROWS = 20_000


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

    Quantiles of numbers are those of about 100,000 training rows at even distances, bins are filled from about 20,000, all else is exact.

    Args:
        transforms: the fitted ones.
        rows: rows of each split.
        tasks: names of several labels.
        texts: of the columns that hold numbers into a dictionary, the values they stand for; number 0 is the missing one.
    """

    def __init__(
        self, transforms: FittedTransforms, rows: dict[str, int], tasks: Sequence[str] = (), texts: Mapping[str, pl.Series] | None = None
    ) -> None:
        self._transforms = transforms
        self._rows = rows
        self._features = transforms.features
        self._known = [f for f in self._features if isinstance(f.transform, Vocabulary)]
        self._tasks = tasks
        self._labels = label_columns(tasks)
        self._clicks = {split: np.zeros(len(self._labels)) for split in SPLITS}
        self._missing = {f.name: dict.fromkeys(SPLITS, 0) for f in transforms.features}
        self._unknown = {f.name: dict.fromkeys(SPLITS, 0) for f in transforms.features}
        self._values = {f.name: dict.fromkeys(SPLITS, 0) for f in transforms.features}
        self._numbers = {f.name: _Numbers() for f in transforms.features if f.kind is Kind.NUMERIC}
        self._every = max(1, rows["train"] // _SAMPLE_ROWS)
        self._binned = _Binned(transforms, max(1, rows["train"] // _BINNED_ROWS), texts or {})

    def add(self, split: str, raw: pl.DataFrame, encoded: pl.DataFrame) -> None:
        """Takes in rows of a split: canonical values, and their ids with the label."""
        missing = [(encoded if f.multi_valued else raw).select(_missing(f, raw.schema[f.name])).item() for f in self._features]
        for index, feature in enumerate(self._features):
            self._missing[feature.name][split] += missing[index]
        self._clicks[split] += [float(encoded[name].sum()) for name in self._labels]
        if self._known:
            values = encoded.select(_id_count(f) for f in self._known).row(0)
            unknown = encoded.select(_unknown(f) for f in self._known).row(0)
            for index, feature in enumerate(self._known):
                self._values[feature.name][split] += values[index]
                self._unknown[feature.name][split] += unknown[index]
        if split == "train":
            for name, numbers in self._numbers.items():
                numbers.add(raw[name].to_numpy(), self._every)
            self._binned.add(raw)

    def describe(self) -> dict[str, Any]:
        """{splits: {split: {rows, ctr}}, features: {name: {...}}}; with several labels, ``ctr`` is the main one's and ``rates`` all's."""
        splits = {split: self._split(split, rows) for split, rows in self._rows.items() if rows}
        return {"splits": splits, "features": {f.name: self._feature(f) for f in self._transforms.features}}

    def _split(self, split: str, rows: int) -> dict[str, Any]:
        rates = (self._clicks[split] / rows).tolist()
        named = {"rates": dict(zip(self._tasks, rates, strict=True))} if self._tasks else {}
        return {"rows": rows, "ctr": rates[0], **named}

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
        about["bins"] = self._binned.bins(feature).to_json()
        return about


class _Binned:
    """A sample of the training rows, as much of it as bins are made of: numbers, and codes of other values."""

    def __init__(self, transforms: FittedTransforms, every: int, texts: Mapping[str, pl.Series]) -> None:
        self._transforms = transforms
        self._every = every
        self._texts = {name: codes_of(values.to_list()).astype(np.int64) for name, values in texts.items()}
        self._values: dict[str, list[np.ndarray]] = {feature.name: [] for feature in transforms.features}
        self._missing = dict.fromkeys(self._values, 0)

    def add(self, raw: pl.DataFrame) -> None:
        sample = raw.gather_every(self._every)
        for feature in self._transforms.features:
            values, missing = self._taken(feature, sample[feature.name])
            self._values[feature.name].append(values)
            self._missing[feature.name] += missing

    def _taken(self, feature: Feature, column: pl.Series) -> tuple[np.ndarray, int]:
        if feature.kind is Kind.NUMERIC:
            return column.to_numpy(), 0
        if feature.name in self._texts:
            numbers = column.to_numpy()
            return self._texts[feature.name][numbers[numbers != 0]], int((numbers == 0).sum())
        if feature.multi_valued:
            return present_codes(feature, column.explode(empty_as_null=False).to_numpy(), column.list.len().to_numpy())
        return present_codes(feature, column.to_numpy())

    def bins(self, feature: Feature) -> Bins:
        values = np.concatenate(self._values[feature.name])
        if feature.kind is Kind.NUMERIC:
            return bins_of_numbers(values)
        words = self._transforms[feature.name].vocabulary()
        known = None if words is None else np.unique(codes_of(words.to_list()).astype(np.int64))
        return bins_of_codes(values, self._missing[feature.name], known)


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
