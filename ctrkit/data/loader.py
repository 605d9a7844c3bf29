"""Parquet shards -> shuffled batches, read ahead by a background thread.

A split that fits in memory is decoded once and every epoch is a full permutation of it. A larger one is streamed:
row groups in a random order, joined into blocks, the rows of a block permuted. Either way the order depends on the seed
and the epoch alone, so that any number of processes sees the same global batches.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.data.dataset import Dataset
from ctrkit.data.labels import GROUP, label_columns
from ctrkit.data.steps import even_steps
from ctrkit.errors import CtrkitError

PREFETCHED_BATCHES = 4
BLOCKS_PER_LIMIT = 4
_ITEMS = ".list.element"
"""Of a Parquet list column: where its values lie."""


class Loader:
    """Batches of one split, epoch by epoch. No row is dropped.

    Args:
        dataset: what ``prepare`` wrote.
        split: ``train``, ``valid`` or ``test``.
        batch_size: rows of a batch over all processes together, at most: all batches have as many, or one more. Process ``rank`` gets
            rows ``rank::world`` of each.
        seed: of the shuffle.
        shuffle: False keeps the order of the shards.
        rank: this process, from 0.
        world: number of processes.
        memory_limit: bytes; a split whose decoded columns are larger is streamed.

    Raises:
        CtrkitError: a split without rows, with fewer rows than processes, or whose shards are damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        memory_limit: int = 2**30,
    ) -> None:
        if batch_size < world:
            raise CtrkitError(f"training.batch_size is {batch_size} rows for {world} processes", f"Give at least {world}")
        self.rank, self.world = rank, world
        self._seed, self._shuffle = seed, shuffle
        self._columns = _Columns(dataset)
        self._units = [unit for part in dataset.parts(split) for unit in self._columns.row_groups(part)]
        self.rows = sum(unit.rows for unit in self._units)
        if self.rows != dataset.rows[split]:
            raise CtrkitError(
                f"the {split} split of '{dataset.path}' has {self.rows:,} rows, dataset.json says {dataset.rows[split]:,}",
                "Delete the folder and prepare it again",
            )
        if self.rows < world:
            raise CtrkitError(
                f"the {split} split of '{dataset.path}' has {self.rows} rows for {world} processes", f"Give split.{split} more"
            )
        self._block_bytes = None if sum(unit.bytes for unit in self._units) <= memory_limit else memory_limit // BLOCKS_PER_LIMIT
        self._cached: _Rows | None = None
        self.bounds = even_steps(self.rows, batch_size, least=world)

    def __len__(self) -> int:
        """Number of global batches of an epoch."""
        return len(self.bounds)

    def batch_rows(self, batch: int) -> int:
        """Rows of a global batch, all processes together."""
        start, stop = self.bounds[batch]
        return stop - start

    def positions(self, rank: int) -> np.ndarray:
        """Places in the epoch's order of the rows that process ``rank`` gets, in the order it gets them."""
        return np.concatenate([np.arange(start + rank, stop, self.world) for start, stop in self.bounds])

    def iter(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from batch number ``skip`` on; a thread prepares the next ones meanwhile."""
        return _read_ahead(self._batches(epoch, self.bounds[skip:]))

    def first(self, rows: int) -> Batch:
        """The first rows of epoch 0 in one batch, or all where there are fewer; of them, those that this process gets."""
        return next(self._batches(0, [(0, min(rows, self.rows))]))

    def _batches(self, epoch: int, bounds: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        number = 0
        pieces: list[_Rows] = []
        start_of_block = 0
        for block, units in enumerate(self._blocks(epoch)):
            end_of_block = start_of_block + sum(unit.rows for unit in units)
            if number < len(bounds) and bounds[number][0] < end_of_block:
                rows = self._read(units)
                order = self._order(end_of_block - start_of_block, epoch, block)
            while number < len(bounds) and bounds[number][0] < end_of_block:
                start, stop = bounds[number]
                first = max(start, start_of_block)
                first += (self.rank - (first - start)) % self.world
                pieces.append(rows.take(order[first - start_of_block : min(stop, end_of_block) - start_of_block : self.world]))
                if stop > end_of_block:
                    break
                yield self._columns.batch(_concatenate(pieces))
                pieces = []
                number += 1
            start_of_block = end_of_block

    def _blocks(self, epoch: int) -> list[list["_RowGroup"]]:
        """Row groups in the epoch's order, cut into blocks that are permuted one at a time."""
        if self._block_bytes is None:
            return [self._units]
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._units)) if self._shuffle else range(len(self._units))
        blocks: list[list[_RowGroup]] = [[]]
        for unit in (self._units[i] for i in order):
            if blocks[-1] and sum(u.bytes for u in blocks[-1]) + unit.bytes > self._block_bytes:
                blocks.append([])
            blocks[-1].append(unit)
        return blocks

    def _order(self, rows: int, epoch: int, block: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(rows)
        return np.random.default_rng([self._seed, epoch, block + 1]).permutation(rows)

    def _read(self, units: Sequence["_RowGroup"]) -> "_Rows":
        if self._cached is not None:
            return self._cached
        rows = self._columns.read(units)
        if self._block_bytes is None:
            self._cached = rows
        return rows


@dataclass(frozen=True)
class _RowGroup:
    """A Parquet row group: the unit of reading. ``bytes`` is its size decoded."""

    path: Path
    index: int
    rows: int
    bytes: int


@dataclass
class _Rows:
    """Decoded rows.

    Attributes:
        ids: ``[rows, single-valued id fields]`` int64.
        bags: values and offsets ``[rows + 1]`` of each multi-valued id field.
        dense: ``[rows, numeric fields]`` float32.
        labels: ``[rows]`` float32, ``[rows, tasks]`` of several labels.
        groups: ``[rows]`` int64.
    """

    ids: np.ndarray
    bags: list[tuple[np.ndarray, np.ndarray]]
    dense: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None

    def take(self, index: np.ndarray) -> "_Rows":
        groups = None if self.groups is None else self.groups[index]
        bags = [_take_bags(values, offsets, index) for values, offsets in self.bags]
        return _Rows(self.ids.take(index, axis=0), bags, self.dense.take(index, axis=0), self.labels[index], groups)


def _take_bags(values: np.ndarray, offsets: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = offsets[index]
    lengths = offsets[index + 1] - starts
    taken = np.concatenate([[0], np.cumsum(lengths)])
    return values[np.arange(taken[-1]) + np.repeat(starts - taken[:-1], lengths)], taken


def _concatenate(parts: Sequence[_Rows]) -> _Rows:
    if len(parts) == 1:
        return parts[0]
    bags = []
    for bag in range(len(parts[0].bags)):
        shifts = np.cumsum([0, *(len(p.bags[bag][0]) for p in parts)])
        offsets = [p.bags[bag][1][:-1] + shift for p, shift in zip(parts, shifts[:-1], strict=True)]
        bags.append((np.concatenate([p.bags[bag][0] for p in parts]), np.concatenate([*offsets, shifts[-1:]])))
    groups = [p.groups for p in parts if p.groups is not None]
    return _Rows(
        np.concatenate([p.ids for p in parts]),
        bags,
        np.concatenate([p.dense for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate(groups) if groups else None,
    )


class _Columns:
    """The columns of a dataset's shards: how they are read, and how rows become a ``Batch``."""

    def __init__(self, dataset: Dataset) -> None:
        self._keys = [field.name for field in dataset.inputs.id_fields]
        self._single = [field.name for field in dataset.inputs.id_fields if not field.multi_valued]
        self._bags = [field.name for field in dataset.inputs.id_fields if field.multi_valued]
        self._dense = list(dataset.inputs.numeric_fields)
        self._labels = label_columns(dataset.inputs.tasks)
        self._grouped = dataset.group is not None
        self._names = [*self._keys, *self._dense, *self._labels, *([GROUP] if self._grouped else [])]
        # place of each id field among [single-valued fields..., bags...]
        self._place = [([*self._single, *self._bags]).index(key) for key in self._keys]

    def row_groups(self, part: Path) -> list[_RowGroup]:
        try:
            metadata = pq.read_metadata(part)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(part, error) from error
        units = []
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            columns = [group.column(i) for i in range(group.num_columns)]
            values = sum(c.num_values for c in columns if c.path_in_schema.removesuffix(_ITEMS) in self._names)
            units.append(_RowGroup(part, index, group.num_rows, 8 * values))
        return [unit for unit in units if unit.rows]

    def read(self, units: Sequence[_RowGroup]) -> _Rows:
        """Decodes row groups, one after the other."""
        count = sum(unit.rows for unit in units)
        ids = np.empty((count, len(self._single)), np.int64)
        dense = np.empty((count, len(self._dense)), np.float32)
        labels = np.empty((count, len(self._labels)), np.float32)
        groups = np.empty(count, np.int64) if self._grouped else None
        bags: list[list[np.ndarray]] = [[] for _ in self._bags]
        lengths: list[list[np.ndarray]] = [[] for _ in self._bags]
        start = 0
        for unit in units:
            columns = self._decode(unit)
            stop = start + unit.rows
            for i, name in enumerate(self._single):
                ids[start:stop, i] = _integers(columns[name], name, unit.path)
            for i, name in enumerate(self._dense):
                dense[start:stop, i] = columns[name].to_numpy(zero_copy_only=False)
            for i, name in enumerate(self._bags):
                bags[i].append(_integers(columns[name].flatten(), name, unit.path))
                lengths[i].append(columns[name].value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
            for i, name in enumerate(self._labels):
                labels[start:stop, i] = columns[name].to_numpy(zero_copy_only=False)
            if groups is not None:
                groups[start:stop] = _integers(columns[GROUP], GROUP, unit.path)
            start = stop
        offsets = [np.concatenate([[0], np.cumsum(np.concatenate(parts), dtype=np.int64)]) for parts in lengths]
        values = [np.concatenate(parts) for parts in bags]
        return _Rows(ids, list(zip(values, offsets, strict=True)), dense, labels[:, 0] if len(self._labels) == 1 else labels, groups)

    def _decode(self, unit: _RowGroup) -> dict[str, pa.Array]:
        try:
            with pq.ParquetFile(unit.path) as file:
                table = file.read_row_group(unit.index, columns=self._names)
            return {name: table[name].combine_chunks() for name in self._names}
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _damaged(unit.path, error) from error

    def batch(self, rows: _Rows) -> Batch:
        count = len(rows.labels)
        values = [column for column in np.ascontiguousarray(rows.ids.T)]
        lengths = [np.ones(count, np.int32)] * len(self._single)
        for bag, offsets in rows.bags:
            values.append(bag)
            lengths.append(np.diff(offsets).astype(np.int32))
        sparse = KeyedJaggedTensor(
            keys=self._keys,
            values=_joined([values[i] for i in self._place], np.int64),
            lengths=_joined([lengths[i] for i in self._place], np.int32),
            stride=count,
            length_per_key=[len(values[i]) for i in self._place],
        )
        return Batch(sparse, torch.from_numpy(rows.dense), torch.from_numpy(rows.labels), rows.groups)


def _joined(columns: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(columns) if columns else np.empty(0, dtype))


def _integers(column: pa.Array, name: str, path: Path) -> np.ndarray:
    if column.null_count or not pa.types.is_integer(column.type):
        raise _damaged(path, f"column '{name}' is {column.type} with {column.null_count} nulls, not integers")
    return column.to_numpy(zero_copy_only=False)


def _damaged(path: Path, reason: object) -> CtrkitError:
    return CtrkitError(f"the shard '{path}' cannot be read: {reason}", "Delete the dataset's folder and prepare it again")


class _Channel:
    """A bounded queue whose producer stops when the consumer closes it."""

    def __init__(self, size: int) -> None:
        self._items: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(size)
        self._closed = False

    def fill(self, batches: Iterator[Batch]) -> None:
        try:
            for batch in batches:
                self._room.acquire()
                if self._closed:
                    return
                self._items.put(batch)
            self._items.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            self._items.put(error)

    def drain(self) -> Iterator[Batch]:
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._room.release()
            yield item

    def close(self) -> None:
        self._closed = True
        self._room.release()


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    channel = _Channel(PREFETCHED_BATCHES)
    thread = threading.Thread(target=channel.fill, args=(batches,), name="ctrkit-loader", daemon=True)
    thread.start()
    try:
        yield from channel.drain()
    finally:
        channel.close()
        thread.join()
