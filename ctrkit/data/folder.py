"""A folder: all of it under its name, or nothing."""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import polars as pl
import pyarrow as pa

from ctrkit.errors import CtrkitError

LOCK, NEW, OLD = ".lock", "new", "old"
"""In an unfinished folder: a file that its owner locks as long as he lives, what he writes, and what that replaces."""


@contextmanager
def whole_folder(out_dir: Path) -> Iterator[Path]:
    """An empty folder to write in, which gets the name ``out_dir`` at the end; what had that name is removed then. Raises as ``beside``."""
    with beside(out_dir) as new:
        yield new
        _put_in_place(new.parent, out_dir)


@contextmanager
def beside(out_dir: Path) -> Iterator[Path]:
    """An empty folder to write in, beside the one that what is written is for; removed at the end, and what killed processes left there too.

    Raises:
        CtrkitError: it cannot be made, or its disk is full.
    """
    out_dir = out_dir.absolute()
    unfinished = out_dir.with_name(f"{out_dir.name}.partial-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}")
    try:
        _remove_stale(out_dir.parent)
        with _made(unfinished):
            yield unfinished / NEW
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise CtrkitError(
                f"the disk of '{unfinished.parent}' is full", "Free some space, or set output to a folder on another disk"
            ) from error
        raise


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder while it is this process' own; it has its name only once it is locked, so that nobody takes it for a left one."""
    unlocked = folder.with_name(f".{uuid4().hex}")
    absent = [parent for parent in folder.parents if not parent.exists()]
    try:
        (unlocked / NEW).mkdir(parents=True)
        lock = (unlocked / LOCK).open("w")
    except OSError as error:
        shutil.rmtree(unlocked, ignore_errors=True)
        raise CtrkitError(
            f"a folder in '{folder.parent}' cannot be made: {error.strerror}", "Set output, or --out, to a folder that can be written"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(folder)
            yield
        finally:
            shutil.rmtree(unlocked, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # they hold something now
                for parent in absent:
                    parent.rmdir()


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes left in a folder: what nobody has locked."""
    for left in folder.glob("*.partial-*"):
        with suppress(OSError), (left / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _put_in_place(unfinished: Path, out_dir: Path) -> None:
    """Renames; an older dataset is moved aside first."""
    if out_dir.exists():
        out_dir.rename(unfinished / OLD)
    (unfinished / NEW).rename(out_dir)
