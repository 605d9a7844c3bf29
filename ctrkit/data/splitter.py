"""Which split each row of a log is in, from what the config says of files and of ``split``."""

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import polars as pl

from ctrkit.config import Experiment, Split
from ctrkit.data.labels import TIME
from ctrkit.data.scratch import Scratch
from ctrkit.data.splits import SPLITS, Cut, cut, in_passes, order_keys, random_keys, time_keys
from ctrkit.errors import CtrkitError


class Splitter:
    """Says of each row of the log which split it is in.

    Attributes:
        rows: rows of each split.
    """

    def __init__(self, experiment: Experiment, scratch: Scratch) -> None:
        self._by = experiment.split.by
        self._seed = experiment.split.seed
        self._parts: Cut | None = None
        """Of explicitly given files: where each ends."""
        self._cut: Cut | None = None
        """Of the log, or of the training files if there are none for validation."""
        if experiment.data.path is not None:
            self._cut = self._cut_first(scratch.rows, experiment.split, scratch)
            self.rows = self._cut.rows
        else:
            self._parts = self._cut_parts(experiment, scratch)
            self.rows = self._parts.rows

    def divide(self, frames: Iterator[pl.DataFrame]) -> Iterator[tuple[str, pl.DataFrame]]:
        """(split, some of its rows), over all rows of the log in order."""
        first = 0
        for frame in frames:
            assigned = self._assign(first, frame)
            first += frame.height
            frame = frame.drop(TIME, strict=False)
            for index, name in enumerate(SPLITS):
                chosen = assigned == index
                if chosen.all():
                    yield name, frame
                elif chosen.any():
                    yield name, frame.filter(pl.Series(chosen))

    def _assign(self, first: int, frame: pl.DataFrame) -> np.ndarray:
        by_key = None if self._cut is None else self._cut.assign(self._keys(first, frame))
        if self._parts is None:
            return cast(np.ndarray, by_key)
        assigned = self._parts.assign(order_keys(first, frame.height))
        if by_key is not None:
            assigned[(assigned == SPLITS.index("train")) & (by_key == SPLITS.index("valid"))] = SPLITS.index("valid")
        return assigned

    def _keys(self, first: int, frame: pl.DataFrame) -> np.ndarray:
        return time_keys(frame[TIME].to_numpy()) if self._by == "time" else self._numbered(first, frame.height)

    def _numbered(self, first: int, count: int) -> np.ndarray:
        return random_keys(first, count, self._seed) if self._by == "random" else order_keys(first, count)

    def _cut_first(self, rows: int, split: Split, scratch: Scratch) -> Cut:
        """Cuts the log's first rows by their keys."""
        if self._by == "time":
            return cut(lambda: _first(map(time_keys, scratch.times()), rows), rows, split)
        return cut(lambda: in_passes(self._numbered, rows), rows, split)

    def _cut_parts(self, experiment: Experiment, scratch: Scratch) -> Cut:
        """Explicit files come in the order train, valid, test. Without valid files, ``split`` holds some training rows out."""
        train, valid, test = (scratch.part_rows[part] for part in ("train", "valid", "test"))
        for part, count in (("train", train), ("valid", valid), ("test", test)):
            files = getattr(experiment.data, part)
            if files is not None and not count:
                raise CtrkitError(f"data.{part} ('{files}') holds no rows", "No split may be empty")
        rows = {"train": train, "valid": valid, "test": test}
        if experiment.data.valid is None:
            alone = experiment.split.model_copy(update={"test": 0.0})
            self._cut = self._cut_first(train, alone, scratch)
            rows |= {"train": self._cut.rows["train"], "valid": self._cut.rows["valid"]}
        return Cut(train, train + valid, rows)


def _first(parts: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The first so many rows of parts that follow one another."""
    for part in parts:
        yield part[:rows]
        rows -= len(part)
        if rows <= 0:
            return
