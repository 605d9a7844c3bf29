"""Where ``ctrkit score`` writes: a Parquet or CSV file, whole or not there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ctrkit.errors import CtrkitError

if TYPE_CHECKING:
    import polars as pl

Write = Callable[["pl.DataFrame", str], None]
"""Appends a frame that was made of rows of a file; raises CtrkitError, naming that file, if a column cannot be written."""


@contextmanager
def output(path: Path) -> Iterator[Write]:
    """A Parquet or CSV file to append to, which gets its name when all is written.

    Raises:
        CtrkitError: another suffix, or it cannot be written.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise CtrkitError(f"the output '{path}' has neither the suffix .parquet nor .csv", "Name it predictions.parquet or predictions.csv")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _parquet(temporary) if path.suffix == ".parquet" else _csv(temporary) as write:
            yield write
        temporary.replace(path)
    except OSError as error:
        raise CtrkitError(f"'{path}' cannot be written: {error.strerror or error}", "Make room or mend the path") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None

    def write(frame: "pl.DataFrame", file: str) -> None:
        nonlocal writer
        table = frame.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        try:
            table = table.cast(writer.schema)
        except pa.ArrowException as error:
            now, before = next((now, before) for now, before in zip(table.schema, writer.schema, strict=True) if now.type != before.type)
            raise CtrkitError(
                f"the column '{now.name}' to keep is of type {now.type} in '{file}', and was of type {before.type} in rows before",
                "Write the predictions to a .csv, or leave the column out of --keep",
            ) from error
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer:
            writer.close()


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    import polars as pl

    with path.open("wb") as out:

        def write(frame: "pl.DataFrame", file: str) -> None:
            for name, dtype in frame.schema.items():
                if dtype.is_nested() or isinstance(dtype, pl.Binary | pl.Duration):
                    raise CtrkitError(
                        f"the column '{name}' to keep is of type {dtype} in '{file}', which no cell of a .csv can hold",
                        "Write the predictions to a .parquet, or leave the column out of --keep",
                    )
            frame.write_csv(out, include_header=out.tell() == 0)

        yield write
