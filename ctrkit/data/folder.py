"""A dataset's folder: all of it under its name, or nothing."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa

from ctrkit.errors import CtrkitError


@contextmanager
def whole_folder(out_dir: Path) -> Iterator[Path]:
    """An empty folder to write in, which gets the name ``out_dir`` at the end; what had that name is removed then.

    Raises:
        CtrkitError: it cannot be made, or its disk is full.
    """
    unfinished = out_dir.with_name(f"{out_dir.name}.partial-{os.getpid()}")
    try:
        _remove_stale(out_dir.parent)
        _make(unfinished)
        yield unfinished
        _put_in_place(unfinished, out_dir)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise CtrkitError(
                f"the disk of '{unfinished.parent}' is full", "Free some space, or set output to a folder on another disk"
            ) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise CtrkitError(
            f"the dataset's folder '{folder.parent}' cannot be made: {error.strerror}", "Set output to a folder that can be written"
        ) from error


def _remove_stale(folder: Path) -> None:
    """Removes what killed preparations left in a folder of datasets."""
    for left in folder.glob("*.partial-*"):
        pid = left.name.rpartition("-")[2]
        if pid == str(os.getpid()) or (pid.isdigit() and not Path(f"/proc/{pid}").exists()):
            shutil.rmtree(left, ignore_errors=True)


def _put_in_place(unfinished: Path, out_dir: Path) -> None:
    """Renames; an older dataset is moved aside first and removed after."""
    if out_dir.exists():
        old = out_dir.with_name(f"{out_dir.name}.partial-old-{os.getpid()}")
        out_dir.rename(old)
        unfinished.rename(out_dir)
        shutil.rmtree(old)
    else:
        unfinished.rename(out_dir)
