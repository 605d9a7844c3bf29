"""Which columns of the log an experiment reads, and what they become."""

import os
from collections.abc import Mapping

import polars as pl

from ctrkit.config import Experiment
from ctrkit.data.histories import HistoryRule
from ctrkit.data.labels import LabelRule, TimeRule, group_ids
from ctrkit.data.readers import Chunk, LogReader, open_log
from ctrkit.data.scratch import Part
from ctrkit.errors import CtrkitError
from ctrkit.schema import Kind
from ctrkit.transforms.canonical import canonicalise


class Columns:
    """The experiment's labels, features, group and time, found in the headers of its log and side tables.

    Attributes:
        stored: the features that are columns of the log; the others are histories to be made.
        needed: all columns that are read.
        readers: of the log, or of each explicitly given split.

    Raises:
        CtrkitError: a file or a column is missing, a file is in two parts, or a feature gives the label away.
    """

    def __init__(self, experiment: Experiment) -> None:
        data, split = experiment.data, experiment.split
        given: tuple[Part, ...] = ("path",) if data.path is not None else ("train", "valid", "test")
        parts: list[Part] = [part for part in given if getattr(data, part) is not None]
        self.readers: dict[Part, LogReader] = {part: open_log(data, part=part) for part in parts}
        _check_apart(self.readers)
        self.features = experiment.features
        self.stored = tuple(f for f in self.features if f.history is None)
        first = self.readers[parts[0]]
        label = experiment.label
        self.labels = [LabelRule(label, first)] if isinstance(label, str) else [LabelRule(t, first, task) for task, t in label.items()]
        self.histories = [HistoryRule(f, first) for f in self.features if f.history is not None]
        self.group = experiment.group
        self.time = TimeRule(split.column) if split.column else None
        for rule in self.labels:
            leaks = [f.name for f in self.features if f.name in rule.columns]
            if leaks:
                raise CtrkitError(f"the label '{rule.text}' is made of the feature '{leaks[0]}'", "Remove it from features")
        taken = [h.feature.name for h in self.histories if h.feature.name in first.columns()]
        if taken:
            raise CtrkitError(
                f"the history '{taken[0]}' is to be made, and the log has a column of that name",
                "Leave out 'history' to use the column, or give the history another name",
            )
        others = [name for name in (self.group, self.time.column if self.time else None) if name]
        others += [name for history in self.histories for name in history.columns]
        self.needed = list(dict.fromkeys([*(c for rule in self.labels for c in rule.columns), *(f.name for f in self.stored), *others]))
        for reader in self.readers.values():
            reader.require(self.needed)
            reader.needed = self.needed
            reader.numbers = [f.name for f in self.features if f.kind is Kind.NUMERIC and f.name not in others]

    def read(self, chunk: Chunk) -> pl.DataFrame:
        """The canonical features, the labels (``label_columns``), ``@group`` and ``@time`` if there are such, and what histories are made of.

        Raises:
            CtrkitError: a cell that cannot be what it should be, with file, row and column.
        """
        extra = [rule.values(chunk) for rule in self.labels]
        if self.group:
            extra.append(group_ids(chunk.frame[self.group]))
        if self.time:
            extra.append(self.time.values(chunk))
        extra += [column for history in self.histories for column in history.values(chunk)]
        try:
            raw = canonicalise(chunk.frame.select(f.name for f in self.stored), self.stored, chunk.first_row - 1)
        except CtrkitError as error:
            raise CtrkitError(f"in '{chunk.file}': {error.problem}", error.remedy) from error
        return raw.with_columns(extra)


def _check_apart(readers: Mapping[Part, LogReader]) -> None:
    """Raises CtrkitError if a file is in two parts of the log."""
    seen: dict[str, Part] = {}
    for part, reader in readers.items():
        for file in reader.files:
            other = seen.setdefault(os.path.realpath(file), part)
            if other != part:
                raise CtrkitError(
                    f"the file '{file}' is in data.{other} and in data.{part}", "Each part needs rows of its own: name it once"
                )


def check_columns(experiment: Experiment) -> list[str]:
    """Checks the experiment against the headers of its files, reading no rows.

    Returns:
        the columns it reads.

    Raises:
        CtrkitError: as ``Columns``.
    """
    return Columns(experiment).needed
