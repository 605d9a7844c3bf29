"""Which split each row of a log is in, from what the config says of files and of ``split``."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from ctrkit.config import Experiment
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
        self._by = experiment.split.by if experiment.data.path is not None else "order"
        self._seed = experiment.split.seed
        self._held_out: Cut | None = None
        if experiment.data.path is not None:
            self._cut = cut(lambda: self._all_keys(scratch), scratch.rows, experiment.split)
        else:
            self._cut = self._cut_parts(experiment, scratch)
        self.rows = self._cut.rows

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
        if self._by == "time":
            return self._cut.assign(time_keys(frame[TIME].to_numpy()))
        if self._by == "random":
            return self._cut.assign(random_keys(first, frame.height, self._seed))
        assigned = self._cut.assign(order_keys(first, frame.height))
        if self._held_out is not None:
            valid = self._held_out.assign(random_keys(first, frame.height, self._seed)) == SPLITS.index("valid")
            assigned[(assigned == SPLITS.index("train")) & valid] = SPLITS.index("valid")
        return assigned

    def _all_keys(self, scratch: Scratch) -> Iterator[np.ndarray]:
        if self._by == "time":
            return (time_keys(times) for times in scratch.times())
        if self._by == "random":
            return in_passes(lambda first, count: random_keys(first, count, self._seed), scratch.rows)
        return in_passes(order_keys, scratch.rows)

    def _cut_parts(self, experiment: Experiment, scratch: Scratch) -> Cut:
        """Explicit files come in the order train, valid, test. Without valid files, training rows are held out at random."""
        train, valid, test = (scratch.part_rows[part] for part in ("train", "valid", "test"))
        for part, count in (("train", train), ("valid", valid), ("test", test)):
            files = getattr(experiment.data, part)
            if files is not None and not count:
                raise CtrkitError(f"data.{part} ('{files}') holds no rows", "No split may be empty")
        rows = {"train": train, "valid": valid, "test": test}
        if experiment.data.valid is None:
            alone = experiment.split.model_copy(update={"test": 0.0})
            self._held_out = cut(lambda: in_passes(lambda first, count: random_keys(first, count, self._seed), train), train, alone)
            rows |= {"train": self._held_out.rows["train"], "valid": self._held_out.rows["valid"]}
        return Cut(train, train + valid, rows)
