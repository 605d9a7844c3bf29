"""Where a log's files are, and their bytes as blocks of whole lines."""

import glob
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctrkit.config import FileLayout
from ctrkit.errors import CtrkitError

BLOCK_BYTES = 16 << 20
"""Text is read and parsed in blocks of about so many bytes."""
LONGEST_LINE_BYTES = 256 << 20

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


def find_files(path: str | Sequence[str], setting: str | None = None) -> list[str]:
    """The files of a path, a glob or a list of them; those of a glob in the order of their names.

    Args:
        setting: of the config, that names the path.

    Raises:
        CtrkitError: nothing there, a folder, or a file that is named twice.
    """
    found: list[str] = []
    for pattern in [path] if isinstance(path, str) else path:
        if Path(pattern).is_dir():
            raise CtrkitError(f"'{pattern}' is a folder", f"Name its files, such as '{pattern.rstrip('/')}/*.parquet'")
        if Path(pattern).exists():
            found.append(pattern)
            continue
        matches = sorted({name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()})
        if not matches:
            raise CtrkitError(f"no file at '{pattern}'", f"Check {setting or 'the path'}; it is relative to the folder the command runs in")
        found += matches
    real = [os.path.realpath(name) for name in found]
    if len(set(real)) < len(real):
        twice = next(name for place, name in enumerate(found) if real[place] in real[:place])
        raise CtrkitError(f"{setting or 'the path'} names the file '{twice}' twice", "Its rows would count twice: name it once")
    return found


def format_of(layout: FileLayout, file: str) -> str:
    """``csv``, ``tsv``, ``parquet`` or ``jsonl``: as the layout says, or read off the file's name.

    A separator, column names or no header mean a csv whatever the name, such as ``users.dat``.
    """
    if layout.format != "auto":
        return layout.format
    suffix = Path(file.removesuffix(".gz")).suffix.lower()
    if suffix in _FORMATS:
        return _FORMATS[suffix]
    if layout.separator or layout.columns or not layout.header:
        return "csv"
    raise CtrkitError(f"the name of '{file}' does not tell its format", "Set data.format to csv, tsv, parquet or jsonl")


def line_blocks(file: str, *, quotes: bool, size: int | None = None) -> Iterator[bytes]:
    """The file's bytes, decompressed if it is a gzip, cut after line ends (outside ``"quotes"`` if those count).

    Blank lines at the end of the file are left out, and the last line always ends.

    Args:
        size: bytes a block, about; default ``BLOCK_BYTES``.

    Raises:
        CtrkitError: not to be read, a gzip that breaks off, or a quote that never closes.
    """
    waiting = b""  # the last block so far: whether its blank lines end the file is yet to be seen
    for block in _whole_lines(file, quotes, size or BLOCK_BYTES):
        if block.isspace():
            waiting += block
            continue
        if waiting:
            yield waiting
        waiting = block
    if not waiting.isspace() and (last := waiting.rstrip(b"\r\n")):
        yield last + b"\n"


def _whole_lines(file: str, quotes: bool, size: int) -> Iterator[bytes]:
    rest = b""
    for piece in _pieces(file, size):
        if quotes and b'"' in rest:
            piece, rest = rest + piece, b""
        cut = _cut(piece, quotes)
        if cut == 0:
            rest += piece
            if len(rest) > LONGEST_LINE_BYTES:
                what = "a quote is opened and not closed" if quotes else "there is no line end"
                raise CtrkitError(f"in the {len(rest) >> 20} MB of '{file}' after {rest[:60]!r} {what}", "Check the file and data.format")
            continue
        yield b"".join([rest, memoryview(piece)[:cut]])
        rest = piece[cut:]
    if quotes and rest.count(b'"') % 2:
        raise CtrkitError(
            f"a quote opened near the end of '{file}' is not closed, after {rest[:60]!r}", "Close it, or double it if it is text"
        )
    if rest:
        yield rest


def _cut(block: bytes, quotes: bool) -> int:
    """Where the last whole line ends; 0 if none does."""
    cut = block.rfind(b"\n") + 1
    while quotes and cut and block.count(b'"', 0, cut) % 2:
        cut = block.rfind(b"\n", 0, block.rfind(b'"', 0, cut)) + 1
    return cut


def _pieces(file: str, size: int) -> Iterator[bytes]:
    read = 0
    try:
        with open(file, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if zipped else raw
            while piece := stream.read(size):
                read += len(piece)
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CtrkitError(
            f"'{file}' is a broken gzip: it fails after {read:,} bytes of text ({error})", "Copy or download it again"
        ) from error
    except OSError as error:
        raise CtrkitError(f"'{file}' cannot be read: {error.strerror or error}", "Check the path and its permissions") from error
