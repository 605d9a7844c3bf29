"""The log between the two passes of ``prepare``: parsed, joined, canonical, in files that are cheap to write and to read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from ctrkit.data.histories import Histories, PartTimes
from ctrkit.data.labels import TIME
from ctrkit.schema import Feature, Kind, Vocabulary

Part = Literal["path", "train", "valid", "test"]
FILE_ROWS = 131_072


class Dictionary:
    """The distinct texts of a column, numbered as they come; number 0 is ``""``, the missing value.

    A vocabulary needs its distinct values in memory anyway; with numbers in their place, rows are counted and
    encoded without touching text again.
    """

    def __init__(self) -> None:
        self._categories = pl.Categories.random()
        self._dtype = pl.Categorical(self._categories)
        self._alive = pl.Series([""]).cast(self._dtype)  # Polars drops categories that no series uses

    def codes(self, column: str) -> pl.Expr:
        """Texts -> UInt32 numbers."""
        return pl.col(column).cast(self._dtype).to_physical()

    def texts(self) -> pl.Series:
        """The texts in the order of their numbers."""
        return self._categories.to_series()


class Scratch:
    """Rows in the order they came, in files of about ``FILE_ROWS``.

    Attributes:
        dictionaries: of the single-valued text features with a vocabulary, which hold numbers in place of texts.
        part_rows: rows from each part of the log.
    """

    def __init__(self, folder: Path, features: Sequence[Feature]) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._features = features
        self.dictionaries = {f.name: Dictionary() for f in features if _has_dictionary(f)}
        self.part_rows: dict[Part, int] = {"path": 0, "train": 0, "valid": 0, "test": 0}
        self._times = PartTimes(features)
        self._files: list[Path] = []
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0

    @property
    def rows(self) -> int:
        return sum(self.part_rows.values())

    def append(self, part: Part, frame: pl.DataFrame) -> None:
        self.part_rows[part] += frame.height
        self._times.add(part, frame)
        self._waiting.append(frame.with_columns(dictionary.codes(name) for name, dictionary in self.dictionaries.items()))
        self._waiting_rows += frame.height
        if self._waiting_rows >= FILE_ROWS:
            self._flush()

    def finish(self) -> None:
        """To be called when all rows are there, before reading: makes the histories.

        Raises:
            CtrkitError: the parts do not follow one another in time, and a history needs them to.
        """
        self._times.check()
        self._flush()
        targets = {feature.of for feature in self._features if feature.history is not None}
        texts = {name: dictionary.texts() for name, dictionary in self.dictionaries.items() if name in targets}
        self._histories = Histories(self._features, self._read(), texts)

    def _flush(self) -> None:
        if self._waiting_rows:
            self._files.append(self.folder / f"{len(self._files):06d}.arrow")
            pl.concat(self._waiting).write_ipc(self._files[-1])
        self._waiting, self._waiting_rows = [], 0

    def frames(self) -> Iterator[pl.DataFrame]:
        return self._histories.fill(self._read())

    def _read(self) -> Iterator[pl.DataFrame]:
        for file in self._files:
            yield pl.read_ipc(file)

    def times(self) -> Iterator[np.ndarray]:
        for file in self._files:
            yield pl.read_ipc(file, columns=[TIME])[TIME].to_numpy()


def _has_dictionary(feature: Feature) -> bool:
    return feature.kind is Kind.CATEGORICAL and feature.dtype == "string" and isinstance(feature.transform, Vocabulary)
