"""Changes of items on disk: one file a model, a line a change, only ever added to. Processes that share it show the same items.

The file's lock puts the changes of all processes in one order; a process reads what others wrote before it answers. A line that was cut
short, by a process that died in the middle of it, was never answered and is taken out by whoever writes next.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from ctrkit.errors import CtrkitError
from serving.problems import NotKept


class Journal:
    """
    Args:
        file: made if it is not there.

    Raises:
        CtrkitError: it cannot be made or opened.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = self._damaged = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = file.open("ab+", buffering=0)
        except OSError as error:
            raise CtrkitError(
                f"the journal '{file}' cannot be opened: {error.strerror}", "Mend the path, or leave 'journal' out"
            ) from error

    @property
    def has_news(self) -> bool:
        """Whether there is more in it than was read, or found damaged; takes some microseconds."""
        return os.fstat(self._stream.fileno()).st_size not in (self._read, self._damaged)

    def news(self) -> dict[Any, dict[str, Any] | None]:
        """What was written since the last call: key -> the item's last row, None if it was removed.

        Raises:
            CtrkitError: a line that nobody writes.
        """
        size = os.fstat(self._stream.fileno()).st_size
        text = os.pread(self._stream.fileno(), max(0, size - self._read), self._read)
        whole = text[: text.rfind(b"\n") + 1]
        changes: dict[Any, dict[str, Any] | None] = {}
        for line in whole.splitlines():
            try:
                for key, row in orjson.loads(line):
                    changes.pop(key, None)  # the order is that of the last changes
                    changes[key] = row
            except (ValueError, TypeError) as error:
                self._damaged = size
                raise CtrkitError(f"the journal '{self._file}' is damaged: {error}", "Take the line out, or the file away") from error
        self._read += len(whole)
        return changes

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes inside the block."""
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._stream, fcntl.LOCK_UN)

    def append(self, changes: Mapping[Any, dict[str, Any] | None]) -> None:
        """Adds one change, inside ``writing`` and after ``news``; it is on the disk when this returns.

        Raises:
            NotKept: it cannot be written, or somebody took lines out of it; the file is as it was.
        """
        if os.fstat(self._stream.fileno()).st_size < self._read:
            raise NotKept(
                "the journal is shorter than it was: a change would be added to what is no longer in it",
                "Restart the service, which then shows what the journal has",
            )
        line = orjson.dumps(list(changes.items())) + b"\n"
        try:
            os.ftruncate(self._stream.fileno(), self._read)
            written = self._stream.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes were written")
            os.fsync(self._stream.fileno())
        except OSError as error:
            os.ftruncate(self._stream.fileno(), self._read)
            raise NotKept(
                f"the change cannot be written to the journal: {error.strerror or error}", "Make room or mend its path"
            ) from error
        self._read += len(line)
