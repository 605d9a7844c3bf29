"""Reads logs of any layout as a stream of Polars frames, in bounded memory, side tables joined.

Cells of CSV and TSV are read as text: what a column means is the features' business, and ``007`` stays ``007``. Double
quotes count in CSV with a separator of one character, not in TSV nor with a longer separator. Rows are numbered
from 1, the header not counted.
"""

import csv
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ctrkit.config import Data, FileLayout, SideTable
from ctrkit.data.files import find_files, format_of, line_blocks
from ctrkit.data.keys import check_key, left_join
from ctrkit.errors import CtrkitError, nearest

CHUNK_ROWS = 250_000
_SAMPLE_BYTES = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """Some rows of the log, and where they come from."""

    frame: pl.DataFrame
    file: str
    first_row: int
    """Number of the frame's first row in the file, from 1."""

    def place(self, index: int) -> str:
        return f"row {self.first_row + index:,} of '{self.file}'"


class LogReader:
    """Streams the rows of a log's files in order; iterating gives frames, ``chunks()`` also says where they come from.

    Args:
        layout: how the files are laid out.
        files: the files, read one after the other.
        joins: side tables, held in memory; a key of the log that they lack gives nulls.
        needed: the columns wanted; None is all.
        numbers: columns to be read from text as numbers where all their cells are; they may still come as text.
        chunk_rows: most rows a frame.
    """

    def __init__(
        self,
        layout: FileLayout,
        files: Sequence[str],
        joins: Sequence[SideTable] = (),
        needed: Sequence[str] | None = None,
        chunk_rows: int = CHUNK_ROWS,
        numbers: Sequence[str] = (),
    ) -> None:
        self.layout = layout
        self.files = list(files)
        self.joins = joins
        self.needed = needed
        self.chunk_rows = chunk_rows
        self.numbers = numbers
        self._later: set[str] = set()
        """Keys of JSON lines that the beginning of the first file has not."""

    def columns(self) -> list[str]:
        """Names of the log's columns, then of the side tables'. Reads the beginnings of files only: JSON lines may have more keys.

        Raises:
            CtrkitError: a file is missing or broken, a join key is not there, a column comes twice.
        """
        names = _header(self.layout, self.files[0])
        for join in self.joins:
            side = find_files(join.path, "data.joins")[0]
            side_names = _header(join, side)
            _require([join.on], names, self.layout, self.files[0])
            _require([join.on], side_names, join, side)
            twice = sorted((set(names) & set(side_names)) - {join.on})
            if twice:
                raise CtrkitError(
                    f"the columns {', '.join(twice)} are both in the log and in '{side}'",
                    "Columns must have one name each: rename those of the side table, or leave the join out",
                )
            names += [name for name in side_names if name != join.on]
        return names

    def require(self, needed: Iterable[str]) -> None:
        """Raises CtrkitError, naming the nearest column, if one of ``needed`` is neither in the log nor in a side table."""
        needed, names = list(needed), [*self.columns(), *self._later]
        absent = set(needed).difference(names)
        if absent and format_of(self.layout, self.files[0]) == "jsonl":
            files = [file for file in self.files if format_of(self.layout, file) == "jsonl"]
            self._later |= _later_keys(self.layout, files, absent)
            names += self._later & absent
        _require(needed, names, self.layout, self.files[0])

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for chunk in self.chunks():
            yield chunk.frame

    def chunks(self) -> Iterator[Chunk]:
        needed = list(dict.fromkeys(self.needed)) if self.needed is not None else self.columns()
        self.require(needed)
        wanted = {*needed, *(join.on for join in self.joins)}
        tables = [(join.on, side_table(join, wanted)) for join in self.joins]
        joined = {name for key, table in tables for name in table.columns if name != key}
        own = [name for name in needed if name not in joined]
        keys = [key for key, _ in tables if key not in joined]
        read = list(dict.fromkeys([*own, *keys]))
        numbers = [name for name in self.numbers if name in own and name not in keys]
        for chunk in ahead(self._log_chunks(read, numbers)):
            frame = chunk.frame
            for key, table in tables:
                check_key(frame.schema[key], f"data.joins: the key '{key}' in '{chunk.file}'")
                frame = left_join(frame, table, key)
            yield Chunk(frame.select(needed), chunk.file, chunk.first_row)

    def _log_chunks(self, names: list[str], numbers: list[str]) -> Iterator[Chunk]:
        for file in self.files:
            row = 1
            for frame in _read(self.layout, file, names, self.chunk_rows, numbers):
                for start in range(0, frame.height, self.chunk_rows):
                    part = frame.slice(start, self.chunk_rows)
                    yield Chunk(part, file, row)
                    row += part.height


def open_log(
    data: Data,
    needed: Sequence[str] | None = None,
    *,
    part: Literal["path", "train", "valid", "test"] = "path",
    chunk_rows: int = CHUNK_ROWS,
) -> LogReader:
    """Opens a log, or one of its explicitly given splits.

    Raises:
        CtrkitError: no such file.
    """
    path = getattr(data, part)
    if path is None:
        raise CtrkitError(f"data.{part} is not given", "Name the file in the config")
    return LogReader(data, find_files(path, f"data.{part}"), data.joins, needed, chunk_rows)


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Runs an iterator in a background thread, at most ``depth`` items ahead of its consumer."""
    end = object()
    with ThreadPoolExecutor(1, "ctrkit-ahead") as thread:
        coming = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield cast(T, item)


def _header(layout: FileLayout, file: str) -> list[str]:
    match format_of(layout, file):
        case "parquet":
            return _parquet(file).schema_arrow.names
        case "jsonl":
            block = next(_json_blocks(layout, file, _SAMPLE_BYTES), b"")
            if not block:
                raise CtrkitError(f"'{file}' is empty", "Check that it is the right file")
            return _json_frame(block, file, 1).columns
        case _:
            return _Delimited(layout, file).names


def _read(layout: FileLayout, file: str, names: list[str], chunk_rows: int, numbers: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
    match format_of(layout, file):
        case "parquet":
            yield from _read_parquet(layout, file, names, chunk_rows)
        case "jsonl":
            yield from _read_jsonl(layout, file, names)
        case _:
            yield from _Delimited(layout, file).frames(names, numbers)


def _require(needed: Iterable[str], names: list[str], layout: FileLayout, file: str) -> None:
    needed, times = list(dict.fromkeys(needed)), Counter(names)
    if twice := [name for name in needed if times[name] > 1]:
        raise CtrkitError(f"'{file}' has the column '{twice[0]}' more than once", "Columns need one name each: rename one of them")
    missing = [name for name in needed if name not in times]
    if not missing:
        return
    if len(names) == 1 and format_of(layout, file) in ("csv", "tsv"):
        looks = next((f" (it looks like {mark!r})" for mark in ("\t", "::", ";", "|", ",", " ") if mark in names[0]), "")
        raise CtrkitError(
            f"no column '{missing[0]}' in '{file}': its first line reads as one column, {names[0][:80]!r}",
            f"The separator may be wrong: set data.separator{looks}",
        )
    raise CtrkitError(f"no column '{missing[0]}' in '{file}'", nearest(missing[0], names))


def side_columns(join: SideTable, setting: str = "data.joins") -> list[str]:
    """Names of a side table's columns. Reads the beginning of its file only."""
    file = find_files(join.path, setting)[0]
    names = _header(join, file)
    _require([join.on], names, join, file)
    return names


def side_table(join: SideTable, wanted: set[str], setting: str = "data.joins") -> pl.DataFrame:
    """Those of the wanted columns that a side table has, in memory.

    Args:
        setting: where the table is named in the config, for errors.

    Raises:
        CtrkitError: no such file, no rows, files of several types, or a key that is missing, there twice or of a type that is none.
    """
    files = find_files(join.path, setting)
    names = [name for name in _header(join, files[0]) if name in wanted]
    frames = [frame for file in files for frame in _read(join, file, names, CHUNK_ROWS)]
    if not frames:
        raise CtrkitError(f"the side table '{join.path}' has no rows", f"Mend the file, or leave it out of {setting}")
    try:
        table = pl.concat(frames, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise CtrkitError(
            f"the side table '{join.path}' has columns of several types: {str(error).splitlines()[0]}", "Write all its files alike"
        ) from error
    key = table[join.on]
    check_key(key.dtype, f"{setting}: the key '{join.on}' in '{join.path}'")
    if key.null_count():
        row = int(key.is_null().arg_max() or 0) + 1
        raise CtrkitError(f"row {row:,} of the side table '{join.path}' has no '{join.on}'", "Every row of a side table needs its key")
    twice = key.is_duplicated()
    if twice.any():
        row = int(twice.arg_max() or 0)
        raise CtrkitError(
            f"the side table '{join.path}' holds the key {join.on} = {key[row]!r} more than once, first in row {row + 1:,}",
            "A side table has one row a key: remove the others",
        )
    return table


# --- csv and tsv ---


class _Delimited:
    """One text file of rows and separators."""

    def __init__(self, layout: FileLayout, file: str) -> None:
        self.file = file
        separator = layout.separator or ("\t" if format_of(layout, file) == "tsv" else ",")
        self.encoding = layout.encoding
        self.quotes = format_of(layout, file) == "csv" and len(separator.encode()) == 1
        self.long_separator = separator.encode() if len(separator.encode()) > 1 else None
        self.separator = b"\x1f" if self.long_separator else separator.encode()
        self.has_header = layout.header
        first = self._first_line()
        self.fields = len(first)
        if layout.header:
            self.names = first
            twice = sorted({name for name in first if first.count(name) > 1})
            if twice:
                raise CtrkitError(
                    f"the header of '{file}' names the column {twice[0]!r} more than once",
                    "Columns need one name each; if there is no header, set data.header to false and name data.columns",
                )
        else:
            self.names = list(layout.columns or ())
            if self.fields != len(self.names):
                raise CtrkitError(
                    f"row 1 of '{file}' has {self.fields} fields and data.columns names {len(self.names)}: {first[0][:80]!r} is the first field",
                    "Mend data.columns, or the separator may be wrong: set data.separator",
                )

    def frames(self, names: list[str], numbers: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
        """The columns ``names``, a frame a block, as text but for ``numbers`` where that goes; an empty cell is null."""
        if self.fields != len(self.names) or not set(names) <= set(self.names):
            missing = next(name for name in names if name not in self.names)
            raise CtrkitError(f"no column '{missing}' in '{self.file}'", nearest(missing, self.names))
        texts = dict.fromkeys(self.names, pl.String)
        schema = texts | dict.fromkeys(numbers, pl.Float64)
        row = 1
        for block in self._blocks():
            rows = self._check(block, row)
            try:
                yield self._parse(block, schema, names)
            except pl.exceptions.ComputeError:
                try:
                    yield self._parse(block, texts, names)
                except pl.exceptions.ComputeError as error:
                    raise self._explain(error, block, row) from error
            row += rows

    def _parse(self, block: bytes, schema: Mapping[str, type[pl.DataType]], names: list[str]) -> pl.DataFrame:
        quote = '"' if self.quotes else None
        scan = pl.scan_csv(block, has_header=False, schema=schema, separator=self.separator.decode(), quote_char=quote)
        return scan.select(names).collect(engine="streaming")

    def _first_line(self) -> list[str]:
        for block in line_blocks(self.file, quotes=self.quotes, size=_SAMPLE_BYTES):
            line = self._text(block.removeprefix(b"\xef\xbb\xbf"), 1).split(b"\n", 1)[0]
            if self.quotes and line.count(b'"') % 2:
                raise CtrkitError(
                    f"the first line of '{self.file}' ends inside a quote", "Column names cannot hold line breaks: rename them"
                )
            return self._split(line)
        raise CtrkitError(f"'{self.file}' is empty", "Check that it is the right file")

    def _split(self, line: bytes) -> list[str]:
        text = line.decode("utf8", errors="replace").rstrip("\r")
        quoting = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        try:
            return next(csv.reader([text], delimiter=self.separator.decode(), quoting=quoting))
        except csv.Error as error:
            raise CtrkitError(
                f"the first line of '{self.file}' cannot be read, it begins with {text[:60]!r}: {error}",
                "Check the file, and set data.format or data.separator",
            ) from error

    def _blocks(self) -> Iterator[bytes]:
        """Blocks of UTF-8 with a separator of one byte, without the header."""
        row = 1
        for index, block in enumerate(line_blocks(self.file, quotes=self.quotes)):
            if index == 0:
                block = block.removeprefix(b"\xef\xbb\xbf")
                if self.has_header:
                    block = block.split(b"\n", 1)[1]
            if block:
                yield self._text(block, row)
                row += block.count(b"\n")

    def _text(self, block: bytes, row: int) -> bytes:
        if self.encoding == "latin-1":
            block = block.decode("latin-1").encode("utf8")
        if self.long_separator:
            if b"\x1f" in block:
                raise CtrkitError(
                    f"'{self.file}' holds the control character 0x1F after row {row:,}",
                    "It cannot be read with a separator of several characters",
                )
            block = block.replace(self.long_separator, self.separator)
        return block

    def _check(self, block: bytes, first_row: int) -> int:
        """Counts the rows of a block; every one must have as many fields as the header."""
        plain = block
        if self.quotes and b'"' in block:
            plain = re.sub(rb'"[^"]*"', b"", block)
        kept = self.separator + b"\n"
        skeleton = plain.translate(None, bytes(set(range(256)) - set(kept)))
        line = self.separator * (self.fields - 1) + b"\n"
        rows = skeleton.count(b"\n")
        if skeleton != line * rows:
            marks = skeleton.split(b"\n")
            index = next(i for i, mark in enumerate(marks) if len(mark) != self.fields - 1)
            raise CtrkitError(
                f"row {first_row + index:,} of '{self.file}' has {len(marks[index]) + 1} fields instead of {self.fields}",
                "Mend or remove that line; a separator inside a value must be in double quotes",
            )
        return rows

    def _explain(self, error: pl.exceptions.ComputeError, block: bytes, row: int) -> CtrkitError:
        try:
            block.decode("utf8")
        except UnicodeDecodeError as wrong:
            wrong_row = row + block.count(b"\n", 0, wrong.start)
            return CtrkitError(
                f"row {wrong_row:,} of '{self.file}' is not UTF-8 ({block[wrong.start : wrong.start + 1]!r})",
                "Set data.encoding: latin-1, or convert the file",
            )
        return CtrkitError(
            f"'{self.file}' cannot be parsed after row {row:,}: {str(error).splitlines()[0]}", "Check its quotes and separators"
        )


# --- parquet ---


def _parquet(file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise CtrkitError(
            f"'{file}' is not a readable Parquet file ({str(error).splitlines()[0]})", "Check the file, or set data.format"
        ) from error


def _read_parquet(layout: FileLayout, file: str, names: list[str], chunk_rows: int) -> Iterator[pl.DataFrame]:
    with _parquet(file) as parquet:
        _require(names, parquet.schema_arrow.names, layout, file)
        row = 1
        try:
            for batch in parquet.iter_batches(chunk_rows, columns=names):
                frame = pl.DataFrame(batch)
                yield frame.with_columns(pl.selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String)).select(names)
                row += frame.height
        except (pa.ArrowInvalid, OSError) as error:
            raise CtrkitError(f"'{file}' breaks after row {row:,} ({str(error).splitlines()[0]})", "Write or copy it again") from error


# --- JSON lines ---


def _json_blocks(layout: FileLayout, file: str, size: int | None = None) -> Iterator[bytes]:
    """Blocks of UTF-8."""
    for block in line_blocks(file, quotes=False, size=size):
        yield block.decode("latin-1").encode("utf8") if layout.encoding == "latin-1" else block


def _later_keys(layout: FileLayout, files: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of the names that some line of JSON has as a key; reads the files until all are found."""
    wanted = {name: (orjson.dumps(name), json.dumps(name).encode()) for name in names}
    found: set[str] = set()
    for file in files:
        row = 1
        for block in _json_blocks(layout, file):
            if any(spelling in block for name, spellings in wanted.items() if name not in found for spelling in spellings):
                found |= wanted.keys() & _json_frame(block, file, row).columns
            if len(found) == len(wanted):
                return found
            row += block.count(b"\n")
    return found


def _read_jsonl(layout: FileLayout, file: str, names: list[str]) -> Iterator[pl.DataFrame]:
    row = 1
    for block in _json_blocks(layout, file):
        frame = _json_frame(block, file, row)
        absent = [pl.lit(None).alias(name) for name in names if name not in frame.columns]
        yield frame.with_columns(absent).select(names)
        row += frame.height


def _json_frame(block: bytes, file: str, first_row: int) -> pl.DataFrame:
    try:
        return pl.read_ndjson(block, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        for index, line in enumerate(block.splitlines()):
            try:
                wrong = "" if not line.strip() or isinstance(orjson.loads(line), dict) else "it is not an object"
            except orjson.JSONDecodeError as found:
                wrong = str(found)
            if wrong:
                raise CtrkitError(
                    f"row {first_row + index:,} of '{file}' is not a JSON object: {wrong}",
                    "Set data.encoding: latin-1, or convert the file" if "UTF-8" in wrong else "JSON lines hold one {...} a line",
                ) from error
        raise CtrkitError(f"'{file}' cannot be read as JSON lines after row {first_row:,}: {error}", "Give every key one type") from error
