"""Writes encoded rows as ``<split>/part-00000.parquet`` and so on."""

from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl
import pyarrow.parquet as pq

from ctrkit.data.splits import SPLITS

ROW_GROUP_ROWS = 131_072
SHARD_ROWS = 8 * ROW_GROUP_ROWS


class ShardWriters:
    """One writer a split; the context manager ends their files."""

    def __init__(self, folder: Path) -> None:
        self._writers = {name: _ShardWriter(folder / name) for name in SPLITS}

    def write(self, split: str, frame: pl.DataFrame) -> None:
        self._writers[split].write(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers.values():
            writer.close(flush=kind is None)


class _ShardWriter:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._shard_rows = 0
        self._shards = 0

    def write(self, frame: pl.DataFrame) -> None:
        self._waiting.append(frame)
        self._waiting_rows += frame.height
        if self._waiting_rows >= ROW_GROUP_ROWS:
            waiting = pl.concat(self._waiting)
            whole = waiting.height - waiting.height % ROW_GROUP_ROWS
            for start in range(0, whole, ROW_GROUP_ROWS):
                self._write_row_group(waiting.slice(start, ROW_GROUP_ROWS))
            self._waiting, self._waiting_rows = [waiting.slice(whole)], waiting.height - whole

    def _write_row_group(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if self._writer is None:
            file = self._folder / f"part-{self._shards:05d}.parquet"
            # ids are small numbers in eight bytes: bytes of one place lie together, and lz4 shrinks the empty ones to nothing
            self._writer = pq.ParquetWriter(
                file, table.schema, compression="lz4", use_dictionary=False, use_byte_stream_split=True, write_statistics=False
            )
            self._shards += 1
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._shard_rows += frame.height
        if self._shard_rows >= SHARD_ROWS:
            self._writer.close()
            self._writer, self._shard_rows = None, 0

    def close(self, *, flush: bool) -> None:
        if flush and self._waiting_rows:
            self._write_row_group(pl.concat(self._waiting))
        if self._writer is not None:
            self._writer.close()
