"""The training rows of a log as columns of small whole numbers, on disk: what all counting starts from.

The log is read once. A value is a number below the column's size, 0 the missing one; which number is nobody's business. Text with a
vocabulary is told apart exactly, other values by a hash of 64 bits. A number is the bucket it lies in, of those of its transform if that
makes buckets, else see ``number_codes``; a bag of values is one value, the set; a sequence is its most recent value.

In memory there is a chunk of the log and a column or two, whatever the log's length; ``most_rows`` bounds the files and the counting.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ctrkit.config import Experiment
from ctrkit.data.columns import Columns
from ctrkit.data.labels import TIME, label_columns
from ctrkit.data.readers import CHUNK_ROWS, ahead
from ctrkit.data.scratch import Scratch
from ctrkit.data.splits import in_passes, kth_largest, random_keys
from ctrkit.data.splitter import Splitter
from ctrkit.errors import CtrkitError, nearest
from ctrkit.schema import MISSING_INT, Buckets, Feature, Kind
from ctrkit.selection.information import smallest

BATCHES = 10
BUCKETS = Buckets().count
_CHUNK_CELLS = 2_000_000
_WHEN = "@when"


@dataclass(frozen=True)
class Column:
    """One feature of a coded log.

    Attributes:
        size: all codes are below it.
        file: of the codes; ``numbers_file`` of a numeric feature's float64, NaN where missing.
    """

    feature: Feature
    size: int
    file: Path
    dtype: str
    numbers_file: Path | None = None

    @property
    def name(self) -> str:
        return self.feature.name

    @property
    def codes(self) -> np.ndarray:
        """``[rows]``, 0 where missing, mapped from disk."""
        return np.memmap(self.file, self.dtype, "r")

    @property
    def numbers(self) -> np.ndarray | None:
        return None if self.numbers_file is None else np.memmap(self.numbers_file, np.float64, "r")


@dataclass(frozen=True)
class CodedLog:
    """Training rows in the log's order, or a uniform sample of them.

    Attributes:
        label: uint8 ``[rows]``.
        batch: uint8 ``[rows]``, which tenth of the rows each is in: of the time if the config splits by time, else of the log's order.
        of_rows: training rows of the log.
    """

    columns: tuple[Column, ...]
    label: np.ndarray
    batch: np.ndarray
    of_rows: int

    @property
    def rows(self) -> int:
        return len(self.label)


def code_log(
    experiment: Experiment,
    folder: Path,
    *,
    most_rows: int | None = None,
    seed: int = 0,
    task: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> CodedLog:
    """Reads the experiment's log into files below ``folder``, which must be new.

    Args:
        most_rows: at most so many training rows, drawn uniformly; default all.
        seed: of the drawing.
        task: which of several labels; default the main one.
        progress: told how many rows were read so far.

    Raises:
        CtrkitError: anything wrong with the log, an unknown task, or a label that is the same in all training rows.
    """
    label = _label_column(experiment, task)
    columns = Columns(experiment)
    folder.mkdir(parents=True)
    scratch = Scratch(folder / "scratch", columns.features)
    for part, reader in columns.readers.items():
        reader.chunk_rows = max(1000, min(CHUNK_ROWS, _CHUNK_CELLS // len(columns.needed)))
        for chunk in reader.chunks():
            scratch.append(part, columns.read(chunk))
            if progress is not None:
                progress(scratch.rows)
    scratch.finish()
    return _code(experiment, columns.features, scratch, label, folder, most_rows, seed)


def _code(
    experiment: Experiment, features: tuple[Feature, ...], scratch: Scratch, label: str, folder: Path, most_rows: int | None, seed: int
) -> CodedLog:
    splitter = Splitter(experiment, scratch)
    names = {feature.name: folder / f"{place}.raw" for place, feature in enumerate(features)}
    labels: list[np.ndarray] = []
    times: list[np.ndarray] = []
    done = 0
    chosen = _chooser(splitter.rows["train"], most_rows, seed)
    for split, frame in ahead(splitter.divide(_timed(scratch.frames()))):
        if split != "train":
            continue
        choice = chosen(done, frame.height)
        kept = frame if choice.all() else frame.filter(pl.Series(choice))
        done += frame.height
        raw = kept.select(_raw(feature, kept.schema[feature.name]) for feature in features)
        for name, path in names.items():
            with path.open("ab") as file:
                raw[name].to_numpy().tofile(file)
        labels.append(kept[label].cast(pl.UInt8).to_numpy())
        if _WHEN in kept.columns:
            times.append(kept[_WHEN].to_numpy())
    joined = np.concatenate(labels)
    if joined.min() == joined.max():
        raise CtrkitError(f"the label is {joined[0]} in all {len(joined):,} training rows", "There is nothing to rank by: check label")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        exact = scratch.dictionaries
        coded = tuple(pool.map(lambda feature: _column(feature, names[feature.name], feature.name in exact), features))
        shutil.rmtree(scratch.folder)
    return CodedLog(coded, joined, _batches(len(joined), np.concatenate(times) if times else None), splitter.rows["train"])


def quantile_codes(numbers: np.ndarray, ordered: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Quantile buckets as ``transform: buckets`` has them, from 1; 0 is missing. Codes ``[rows]`` and their size.

    Args:
        numbers: float64 ``[rows]``, NaN where missing.
        ordered: the finite ones, rising.
    """
    return _bucket_codes(numbers, ordered, _quantiles(ordered, count))


def number_codes(numbers: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, int]:
    """As ``quantile_codes`` of ``BUCKETS``, and as many quantiles of the numbers other than the most frequent one.

    A number that is 0 in nearly all rows would else be 0 in all buckets.
    """
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    lengths = np.diff(starts, append=len(ordered))
    most = int(lengths.argmax()) if len(starts) else 0
    others = np.delete(ordered, slice(starts[most], starts[most] + lengths[most])) if len(starts) else ordered
    return _bucket_codes(numbers, ordered, np.concatenate([_quantiles(ordered, BUCKETS), others[:1], _quantiles(others, BUCKETS)]))


def _quantiles(ordered: np.ndarray, count: int) -> np.ndarray:
    if not len(ordered):
        return ordered
    return ordered[np.ceil(np.arange(1, count) / count * (len(ordered) - 1)).astype(np.int64)]


def _bucket_codes(numbers: np.ndarray, ordered: np.ndarray, boundaries: np.ndarray) -> tuple[np.ndarray, int]:
    if not len(ordered):
        return np.zeros(len(numbers), np.uint8), 1
    boundaries = np.unique(boundaries)
    boundaries = boundaries[boundaries > ordered[0]]
    codes = np.searchsorted(boundaries, numbers, side="right") + 1
    codes[np.isnan(numbers)] = 0
    return smallest(codes, len(boundaries) + 2), len(boundaries) + 2


def _label_column(experiment: Experiment, task: str | None) -> str:
    if task is not None and task not in experiment.tasks:
        known = nearest(task, experiment.tasks) if experiment.tasks else "There is one label: leave --task out"
        raise CtrkitError(f"'{experiment.name}' has no label '{task}'", known)
    names = label_columns(experiment.tasks)
    return names[experiment.tasks.index(task)] if task is not None else names[0]


def _timed(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """With the rows' times, if there are any, under a name that a splitter leaves alone."""
    for frame in frames:
        yield frame.with_columns(pl.col(TIME).alias(_WHEN)) if TIME in frame.columns else frame


def _chooser(rows: int, most: int | None, seed: int) -> Callable[[int, int], np.ndarray]:
    """Of the rows ``first .. first + count``, which are kept: all, or those of the ``most`` largest random keys."""
    if most is None or rows <= most:
        return lambda first, count: np.ones(count, bool)
    key, _, _ = kth_largest(lambda: in_passes(lambda first, count: random_keys(first, count, seed), rows), rows, most)
    return lambda first, count: random_keys(first, count, seed) >= np.uint64(key)


def _raw(feature: Feature, dtype: pl.DataType) -> pl.Expr:
    """UInt32 numbers of texts, float64 numbers, or UInt64 hashes; 0 or NaN is missing."""
    column = pl.col(feature.name)
    if feature.kind is Kind.NUMERIC or dtype == pl.UInt32:
        return column
    missing = "" if feature.dtype == "string" else MISSING_INT
    if feature.multi_valued:
        column = column.list.eval(pl.element().filter(pl.element() != missing))
        bag = column.cast(pl.List(pl.String)).list.unique().list.sort().list.join("\x1f")
        value, known = (column.list.last() if feature.of is not None else bag), column.list.len() > 0
    else:
        value, known = column, column != missing
    return pl.when(known).then(value.hash(0)).otherwise(pl.lit(0, pl.UInt64)).alias(feature.name)


def _column(feature: Feature, raw_file: Path, numbered: bool) -> Column:
    """Raw values to codes, file to file; ``numbered`` values are UInt32, not hashes."""
    file = raw_file.with_suffix(".codes")
    if feature.kind is Kind.NUMERIC:
        numbers = np.fromfile(raw_file, np.float64)
        ordered, transform = np.sort(numbers[np.isfinite(numbers)]), feature.transform
        bucketised = isinstance(transform, Buckets)
        codes, size = quantile_codes(numbers, ordered, transform.count) if bucketised else number_codes(numbers, ordered)
        codes.tofile(file)
        return Column(feature, size, file, codes.dtype.str, raw_file)
    raw = np.fromfile(raw_file, np.uint32 if numbered else np.uint64)
    codes, size = _dense(raw)
    codes.tofile(file)
    raw_file.unlink()
    return Column(feature, size, file, codes.dtype.str)


def _dense(raw: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers or hashes to codes without gaps, 0 for the missing value whether or not there is one."""
    if raw.dtype == np.uint32:
        seen = np.zeros(int(raw.max()) + 1, bool)
        seen[raw] = seen[0] = True
        size = int(seen.sum())
        return smallest(np.cumsum(seen) - 1, size)[raw], size
    values, codes = np.unique(raw, return_inverse=True)
    shift = int(values[0] != 0)
    return smallest(codes + shift, len(values) + shift), len(values) + shift


def _batches(rows: int, times: np.ndarray | None) -> np.ndarray:
    batches = (np.arange(rows) * BATCHES // rows).astype(np.uint8)
    if times is None:
        return batches
    by_time = np.empty(rows, np.uint8)
    by_time[np.argsort(times, kind="stable")] = batches
    return by_time
