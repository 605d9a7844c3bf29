"""Histories made from the log itself: for each row, what its user did in strictly earlier rows.

A history needs all of a user's rows, wherever they stand in the log: about 100 bytes a row are held in memory for each history.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
import polars as pl

from ctrkit.data.labels import LabelRule, TimeRule, group_ids
from ctrkit.data.readers import Chunk, LogReader
from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT, Feature, History
from ctrkit.transforms.canonical import regroup


class HistoryRule:
    """From the log's columns to what a history is made of: who, when, and whether the row counts.

    Args:
        feature: a sequence with ``history``.
        reader: of the log whose columns it names.

    Raises:
        CtrkitError: no such column.
    """

    def __init__(self, feature: Feature, reader: LogReader) -> None:
        assert isinstance(feature.history, History)
        place = f"features.{feature.name}.history"
        self.feature = feature
        self.by = feature.history.by
        self.time = TimeRule(feature.history.time, f"{place}.time")
        self.where = LabelRule(feature.history.where, reader, setting=f"{place}.where") if feature.history.where else None
        self.columns = [self.by, self.time.column, *(self.where.columns if self.where else ())]

    def values(self, chunk: Chunk) -> list[pl.Series]:
        """``@by``, ``@when`` and ``@counts`` of the chunk's rows, under names of this history's own.

        Raises:
            CtrkitError: a cell that is no time, or no 0 or 1, with its row.
        """
        by = chunk.frame[self.by]
        counts = self.where.values(chunk).cast(pl.Boolean) if self.where else pl.repeat(True, len(by), eager=True)
        columns = (group_ids(by, f"features.{self.feature.name}.history.by").set(by.is_null(), None), self.time.values(chunk), counts)
        return [series.alias(name) for series, name in zip(columns, _hidden(self.feature), strict=True)]


class PartTimes:
    """When the rows of each part of the log lie, by the time of each history."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._when = {feature.name: _hidden(feature)[1] for feature in features if feature.history is not None}
        self._spans: dict[tuple[str, str], tuple[float, float]] = {}

    def add(self, part: str, frame: pl.DataFrame) -> None:
        """Rows with the columns of ``HistoryRule.values``."""
        for name, when in self._when.items() if frame.height else ():
            times = frame[when].to_numpy()
            first, last = self._spans.get((name, part), (np.inf, -np.inf))
            self._spans[name, part] = (min(first, times.min()), max(last, times.max()))

    def check(self) -> None:
        """Training rows come before validation and test rows, and those of validation before those of test; they may share a time.

        Raises:
            CtrkitError: a part has rows later than the first of the next.
        """
        for name in self._when:
            for earlier, later in combinations(("train", "valid", "test"), 2):
                before, after = self._spans.get((name, earlier)), self._spans.get((name, later))
                if before is not None and after is not None and before[1] > after[0]:
                    raise CtrkitError(
                        f"the history '{name}' would tell rows of data.{earlier} of clicks in data.{later}: data.{earlier} has rows later than "
                        f"the first of data.{later}",
                        "Give files that follow one another in time, or all of them as data.path with split.by: time",
                    )


class Histories:
    """Fills in the histories of a log that was read.

    Args:
        frames: all rows of the log in order, with the columns of ``HistoryRule.values`` and the canonical ones of the ``of`` features;
            texts may be numbers into ``texts``.
        texts: of a column that holds numbers, the values they stand for.
    """

    def __init__(self, features: Sequence[Feature], frames: Iterable[pl.DataFrame], texts: dict[str, pl.Series]) -> None:
        self._features = [feature for feature in features if feature.history is not None]
        self._hidden = [name for feature in self._features for name in _hidden(feature)]
        needed = [*self._hidden, *dict.fromkeys(str(feature.of) for feature in self._features)]
        parts = [frame.select(needed) for frame in frames] if self._features else []
        log = pl.concat(parts) if parts else pl.DataFrame()
        self._tables = [_Table(feature, log, texts.get(str(feature.of))) for feature in self._features if parts]

    def fill(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The frames with a canonical column for each history, without what it was made of."""
        first = 0
        for frame in frames:
            columns = [table.lists(first, frame.height) for table in self._tables]
            yield frame.with_columns(columns).drop(self._hidden)
            first += frame.height


class _Table:
    """One history: the rows that count, sorted by user and time, and which of them are each row's."""

    def __init__(self, feature: Feature, log: pl.DataFrame, texts: pl.Series | None) -> None:
        by, when, counts = (log[name] for name in _hidden(feature))
        values = log[str(feature.of)]
        missing = 0 if texts is not None else "" if feature.dtype == "string" else MISSING_INT
        moments = when.rank("dense").cast(pl.Int64).to_numpy()
        users = by.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
        keys = users * (int(moments.max()) + 1) + moments  # by user, then by time; moments count from 1
        events = np.flatnonzero((counts & by.is_not_null() & (values != missing)).to_numpy())
        events = events[np.argsort(keys[events], kind="stable")]
        self._feature = feature
        self._values = values.gather(events)
        self._texts = texts
        self._stops = np.searchsorted(keys[events], keys, side="left")
        earliest = np.searchsorted(keys[events], keys - moments, side="left")
        self._starts = np.maximum(earliest, self._stops - feature.max_length)

    def lists(self, first: int, rows: int) -> pl.Series:
        """The histories of some rows as a canonical column."""
        starts = self._starts[first : first + rows]
        lengths = self._stops[first : first + rows] - starts
        before = np.cumsum(lengths) - lengths
        values = self._values.gather(np.arange(lengths.sum()) + np.repeat(starts - before, lengths))
        if self._texts is not None:
            values = self._texts.gather(values)
        return regroup(values, lengths).alias(self._feature.name)


def _hidden(feature: Feature) -> tuple[str, str, str]:
    return f"@by:{feature.name}", f"@when:{feature.name}", f"@counts:{feature.name}"
