"""The items that towers recommend: the bundle's catalogue, and in front of it what was added, changed or removed since it was indexed.

The files of an index are never written to. A change makes a new ``View`` and puts it in place in one assignment: a request that has taken
a view sees all of a change or nothing of it.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import numpy as np

from ctrkit.errors import CtrkitError
from ctrkit.feeds import Bag, Columns, RowError, frame_to_columns
from ctrkit.retrieval.bundle import KEY
from ctrkit.schema import MISSING_INT, Feature
from serving.journal import Journal
from serving.problems import InvalidBody, NotKept, TooLarge

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("ctrkit.serving")

Row = dict[str, Any]


class ItemTable:
    """Items in an order that numbers them.

    Args:
        frame: canonical raw features and ``@key``, a row an item. Its chunks are joined: Polars takes rows of a list column in several by
            copying the column.
        vectors: float32 ``[items, width]``.
    """

    def __init__(self, frame: "pl.DataFrame", vectors: np.ndarray) -> None:
        self.frame = frame.rechunk()
        self.vectors = vectors
        self._holders: dict[str, Holders] = {}

    def __len__(self) -> int:
        return self.frame.height

    @cached_property
    def places(self) -> dict[Any, int]:
        """Key -> number."""
        return {key: number for number, key in enumerate(self.frame[KEY].to_list())}

    def holders(self, feature: str) -> "Holders":
        """Who has which value of a feature; worked out when it is first asked for."""
        if feature not in self._holders:
            self._holders[feature] = Holders(self.frame[feature])
        return self._holders[feature]


class Holders:
    """Value -> the numbers of the rows that hold it. A list without values holds the missing one.

    Args:
        column: of single values, or of lists of them.
    """

    def __init__(self, column: "pl.Series") -> None:
        import polars as pl

        frame = pl.DataFrame({"value": column}).with_row_index("row")
        if isinstance(column.dtype, pl.List):
            missing = "" if column.dtype.inner == pl.String else MISSING_INT
            empty = frame.filter(pl.col("value").list.len() == 0).select("row", value=pl.lit(missing, column.dtype.inner))
            frame = pl.concat([frame.explode("value").drop_nulls(), empty])
        grouped = frame.group_by("value").agg(pl.col("row").unique())
        self._places = {value: place for place, value in enumerate(grouped["value"].to_list())}
        self._rows = grouped["row"].explode().to_numpy().astype(np.int64)
        self._ends = np.concatenate([[0], np.cumsum(grouped["row"].list.len().to_numpy(), dtype=np.int64)])

    def of(self, values: Sequence[Any]) -> np.ndarray:
        """Rows that hold one of the values, int64, in no order and some perhaps twice."""
        places = [self._places[value] for value in values if value in self._places]
        return np.concatenate([np.empty(0, np.int64), *(self._rows[self._ends[place] : self._ends[place + 1]] for place in places)])


@dataclass(frozen=True)
class View:
    """All items at one moment. Those of the catalogue have its numbers, added ones the numbers after.

    Attributes:
        base: the catalogue as it was indexed.
        added: new and changed items.
        open: bool ``[base + added]``; False for items of the base that were changed or removed.
    """

    base: ItemTable
    added: ItemTable
    open: np.ndarray

    @classmethod
    def of(cls, base: ItemTable) -> "View":
        """The catalogue alone."""
        return cls(base, ItemTable(base.frame.clear(), np.empty((0, base.vectors.shape[1]), np.float32)), np.ones(len(base), bool))

    @property
    def hidden(self) -> int:
        """Items of the base that were changed or removed."""
        return len(self.base) - int(np.count_nonzero(self.open[: len(self.base)]))

    def has(self, key: Any) -> bool:
        return key in self.added.places or ((number := self.base.places.get(key)) is not None and bool(self.open[number]))

    def numbers(self, keys: Sequence[Any]) -> np.ndarray:
        """int64, of those keys that there are; a changed item has two, one of which is not open."""
        found = [self.base.places[key] for key in keys if key in self.base.places]
        found += [len(self.base) + self.added.places[key] for key in keys if key in self.added.places]
        return np.array(found, np.int64)

    def holding(self, feature: str, values: Sequence[Any]) -> np.ndarray:
        """Numbers of items with one of the values."""
        return np.concatenate([self.base.holders(feature).of(values), len(self.base) + self.added.holders(feature).of(values)])

    def keys(self, numbers: np.ndarray) -> list[Any]:
        return self._frame(numbers)[KEY].to_list()

    def columns(self, numbers: np.ndarray, features: Sequence[Feature]) -> dict[str, np.ndarray | Bag]:
        """Canonical features of items."""
        return frame_to_columns(self._frame(numbers), features)

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """float32 ``[numbers, width]``."""
        old = numbers < len(self.base)
        found = np.empty((len(numbers), self.base.vectors.shape[1]), np.float32)
        found[old], found[~old] = self.base.vectors[numbers[old]], self.added.vectors[numbers[~old] - len(self.base)]
        return found

    def _frame(self, numbers: np.ndarray) -> "pl.DataFrame":
        old = numbers < len(self.base)
        if old.all():
            return self.base.frame[numbers]
        joined = self.base.frame[numbers[old]].vstack(self.added.frame[numbers[~old] - len(self.base)])
        back = np.empty(len(numbers), np.int64)
        back[np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)])] = np.arange(len(numbers))
        return joined[back]

    def with_items(self, frame: "pl.DataFrame", vectors: np.ndarray) -> "View":
        """These items added, or put in the place of those of the same keys."""
        kept = self.without(frame[KEY].to_list())
        added = ItemTable(kept.added.frame.vstack(frame), np.concatenate([kept.added.vectors, vectors]))
        return View(self.base, added, np.concatenate([kept.open, np.ones(frame.height, bool)]))

    def without(self, keys: Sequence[Any]) -> "View":
        """These items removed, those of them that there are."""
        open_base = self.open[: len(self.base)].copy()
        open_base[[self.base.places[key] for key in keys if key in self.base.places]] = False
        kept = np.ones(len(self.added), bool)
        kept[[self.added.places[key] for key in keys if key in self.added.places]] = False
        added = self.added if kept.all() else ItemTable(self.added.frame.filter(kept), self.added.vectors[kept])
        return View(self.base, added, np.concatenate([open_base, np.ones(len(added), bool)]))


class Shelf(Protocol):
    """What shows the items of one version."""

    version: int
    view: View

    def encoded(self, rows: Mapping[Any, Row]) -> "tuple[pl.DataFrame, np.ndarray]":
        """Items by key, of which it reads the features that it knows -> their canonical rows and vectors.

        Raises:
            RowError: a row that does not fit its features, or whose vector is not finite.
        """
        ...

    def __hash__(self) -> int: ...


class Misfit(CtrkitError):
    """An item that a version cannot show.

    Attributes:
        version: which one.
        key: of the item.
        error: what is wrong with which row of the change.
    """

    def __init__(self, version: int, key: Any, error: RowError) -> None:
        field = "" if error.field is None else f", field {error.field!r}"
        super().__init__(f"version {version} cannot take the item {key!r}{field}: {error.reason}")
        self.version = version
        self.key = key
        self.error = error


class Changes:
    """What was added, changed and removed of one model's items, for all its versions; since the process began, or as a journal has it.

    One change happens at a time. Every version that is loaded later begins with all of them.

    Args:
        most: items that may be remembered, removed ones too.
        journal: where changes are kept, and come from that other processes made; None: in memory alone.
    """

    def __init__(self, most: int, journal: Journal | None = None) -> None:
        self._most = most
        self._journal = journal
        self._rows: dict[Any, Row | None] = {}
        self._shelves: WeakSet[Shelf] = WeakSet()
        self._lock = threading.Lock()

    def attach(self, shelf: Shelf) -> None:
        """Brings a version up to date, and tells it of all changes to come.

        Raises:
            Misfit: an item does not fit it. With a journal such an item is hidden: another process, with newer versions, may have added it.
        """
        with self._lock:
            self._read()
            shelf.view = (_changed if self._journal is None else _of_others)(shelf, self._rows)
            self._shelves.add(shelf)

    def catch_up(self) -> None:
        """Shows what other processes changed; nothing new where they left a journal that cannot be read, which the log says."""
        if self._journal is not None and self._journal.has_news:
            with self._lock:
                try:
                    self._read()
                except CtrkitError as error:
                    log.error("journal cannot be read", extra={"reason": str(error)})

    def upsert(self, shelf: Shelf, rows: Mapping[Any, Row]) -> tuple[int, int]:
        """Adds items, or changes those that are there.

        Args:
            shelf: the version that counts what is new.

        Returns:
            How many were new and how many changed.

        Raises:
            InvalidBody: an item that one of the loaded versions cannot take.
            TooLarge: more than may be remembered.
            NotKept: the journal cannot be written.
        """
        with self._writing():
            changed = sum(shelf.view.has(key) for key in rows)
            try:
                self._make(dict(rows))
            except Misfit as misfit:
                raise _refusal(misfit, shelf.version) from None
        return len(rows) - changed, changed

    def remove(self, shelf: Shelf, keys: Sequence[Any]) -> int:
        """Removes items; how many of them there were. Raises as ``upsert``."""
        with self._writing():
            there = sum(shelf.view.has(key) for key in dict.fromkeys(keys))
            self._make({key: None for key in keys if any(one.view.has(key) for one in self._shelves)})
        return there

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Nobody else changes anything inside the block, and all that others changed before is shown.

        Raises:
            NotKept: the journal cannot be read.
        """
        with self._lock, self._journal.writing() if self._journal is not None else nullcontext():
            try:
                self._read()
            except CtrkitError as error:
                raise NotKept(error.problem, error.remedy) from error
            yield

    def _read(self) -> None:
        news = self._journal.news() if self._journal is not None else None
        if news:
            for shelf in self._shelves:
                shelf.view = _of_others(shelf, news)
            self._remember(news)

    def _make(self, rows: Mapping[Any, Row | None]) -> None:
        """A change of our own: shown if it can be kept, or not at all."""
        after = len(self._rows) + sum(key not in self._rows for key in rows)
        if after > self._most:
            raise TooLarge(
                f"{after:,} items would differ from the indexed catalogue, {self._most:,} may",
                "Export and index a catalogue that has them and restart the service, or raise max_changed_items",
            )
        if rows:
            self._put(rows)

    def _put(self, rows: Mapping[Any, Row | None]) -> None:
        """All versions show the change, once nothing can fail any more."""
        views = [(shelf, _changed(shelf, rows)) for shelf in self._shelves]
        if self._journal is not None:
            self._journal.append(rows)
        for shelf, view in views:
            shelf.view = view
        self._remember(rows)

    def _remember(self, rows: Mapping[Any, Row | None]) -> None:
        self._rows = {key: row for key, row in self._rows.items() if key not in rows} | dict(rows)


def _changed(shelf: Shelf, rows: Mapping[Any, Row | None]) -> View:
    """What a version shows after a change: key -> the item's row, None if it is removed."""
    there = {key: row for key, row in rows.items() if row is not None}
    view = shelf.view.without([key for key, row in rows.items() if row is None]) if len(there) < len(rows) else shelf.view
    if not there:
        return view
    try:
        return view.with_items(*shelf.encoded(there))
    except RowError as error:
        raise Misfit(shelf.version, list(there)[error.row or 0], error) from None


def _of_others(shelf: Shelf, rows: Mapping[Any, Row | None]) -> View:
    """What a version shows after a change of another process, which may have newer versions: an item that it cannot take is hidden."""
    fitting = dict(rows)
    while True:
        try:
            return _changed(shelf, fitting)
        except Misfit as misfit:
            log.warning("item is hidden", extra={"version": misfit.version, "reason": str(misfit)})
            fitting[misfit.key] = None


def _refusal(misfit: Misfit, asked: int) -> InvalidBody:
    """
    Args:
        asked: the version that the rows were sent to.
    """
    row, field, reason = misfit.error.row or 0, misfit.error.field, misfit.error.reason
    if misfit.version != asked:
        reason = (
            f"version {misfit.version}, which is loaded too, cannot take it: {reason}. "
            "Send what all loaded versions take, or serve the newest alone: --set live_versions=1"
        )
    place, where = (("items", row), "") if field is None else (("items", row, field), f", field {field!r}")
    return InvalidBody(place, f"item {row}{where}: {reason}")


def columns_to_frame(columns: Columns, schema: "pl.Schema") -> "pl.DataFrame":
    """Canonical columns -> the frame of such a schema: what ``frame_to_columns`` turns round."""
    import polars as pl

    def series(name: str, dtype: Any) -> pl.Series:
        column = columns[name]
        if not isinstance(column, tuple):
            return pl.Series(name, column.tolist(), dtype)
        values, lengths = column
        return pl.Series(name, [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else [], dtype)

    return pl.DataFrame([series(name, dtype) for name, dtype in schema.items()])
