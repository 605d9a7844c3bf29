"""``ctrkit score``: a file of raw rows -> a file of probabilities, batch by batch with ONNX Runtime. Needs no torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from ctrkit.bundle import Bundle
    from ctrkit.data.readers import Chunk, LogReader
    from pipelines.terminal import Terminal

READ_ROWS = 65_536
"""Rows read and canonicalised at a time."""

BATCH_ROWS = 1_024
"""Rows of one call of ONNX Runtime; more fall out of the processor's cache."""


def score(
    bundle: str | Path,
    input: str | Path,
    output: str | Path,
    screen: "Terminal | None" = None,
    *,
    config: str | Path | None = None,
    keep: Sequence[str] = (),
    threads: int | None = None,
) -> dict[str, Any]:
    """Writes a column ``probability``, or one for each of several tasks, one row a row of the input and in its order.

    Gives {rows, rows_per_s, output, seconds}.

    Args:
        bundle: a version's folder, or a model's folder for its latest version.
        input: a log with the features' columns: CSV, TSV, Parquet or JSON lines, gzip or not.
        output: ``.parquet`` or ``.csv``.
        screen: where people read what came of it.
        config: an experiment whose ``data`` says how the input is laid out and which side tables are joined; without it
            the input's name does.
        keep: columns of the input to write before the probability.
        threads: default all cores.

    Raises:
        CtrkitError: a damaged bundle, an input that cannot be read or lacks a feature's column, an output that cannot be written.
    """
    import os
    import time

    import polars as pl

    from ctrkit.bundle import open_bundle, output_names
    from ctrkit.config import FileLayout
    from ctrkit.config_file import load_config
    from ctrkit.data.files import find_files
    from ctrkit.data.readers import LogReader
    from ctrkit.errors import CtrkitError

    threads = threads or os.cpu_count() or 1
    opened = open_bundle(bundle, threads=1)
    outputs = output_names(opened.tasks)
    for name in keep:
        if name in outputs:
            raise CtrkitError(f"the input's column '{name}' cannot be kept: the predictions have that name")
    data = load_config(config).data if config else None
    needed = [*(feature.name for feature in opened.features), *keep]
    log = LogReader(data or FileLayout(), find_files(str(input)), data.joins if data else (), needed, READ_ROWS)
    _check_columns(log, opened, keep, told=config is not None)
    opened.session  # noqa: B018  loaded before the clock starts
    start = time.perf_counter()
    rows = 0
    with _output(Path(output)) as write:
        for frame, probabilities in _predictions(opened, log.chunks(), threads):
            columns = zip(outputs, probabilities.reshape(-1, len(outputs)).T, strict=True)
            write(pl.DataFrame([*frame.select(keep).get_columns(), *(pl.Series(name, column) for name, column in columns)]))
            rows += frame.height
        if not rows:
            write(pl.DataFrame(schema={**dict.fromkeys(keep, pl.String), **dict.fromkeys(outputs, pl.Float32)}))
    seconds = time.perf_counter() - start
    if screen:
        screen.console.print(f"scored {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f} rows/s): {output}")
    return {"rows": rows, "rows_per_s": round(rows / seconds, 1), "output": str(output), "seconds": round(seconds, 3)}


def _check_columns(log: "LogReader", bundle: "Bundle", keep: Sequence[str], told: bool) -> None:
    """Whether all columns are there; ``told``: by a config how the file is laid out.

    Raises:
        CtrkitError: one is not.
    """
    from ctrkit.errors import CtrkitError

    names: list[str] = []
    try:
        names = log.columns()
        log.require([*(feature.name for feature in bundle.features if feature.history is None), *keep])
    except CtrkitError as error:
        if told or len(names) > 1:
            raise
        raise CtrkitError(error.problem, f"{error.remedy}, in an experiment that you name with --config") from error
    made = [feature.name for feature in bundle.features if feature.history is not None and feature.name not in names]
    if made:
        raise CtrkitError(
            f"the input has no column '{made[0]}': a history, which prepare made of the log",
            "Give it as a column: the values of earlier rows, the most recent last",
        )


def _predictions(bundle: "Bundle", chunks: "Iterable[Chunk]", threads: int) -> "Iterator[tuple[pl.DataFrame, np.ndarray]]":
    """Each chunk's rows with their probabilities. Batches run side by side, one thread each; at most two chunks are under way."""
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy as np
    import polars as pl

    from ctrkit.feeds import frame_to_columns
    from ctrkit.transforms import canonicalise

    def submit(frame: pl.DataFrame) -> list[Future[np.ndarray]]:
        batches = [frame.slice(start, BATCH_ROWS) for start in range(0, frame.height, BATCH_ROWS)]
        return [pool.submit(bundle.predict, bundle.feed(frame_to_columns(batch, bundle.features))) for batch in batches]

    def finish(frame: pl.DataFrame, batches: list[Future[np.ndarray]]) -> tuple[pl.DataFrame, np.ndarray]:
        return frame, np.concatenate([batch.result() for batch in batches])

    with ThreadPoolExecutor(threads, "ctrkit-score") as pool:
        under_way: deque[tuple[pl.DataFrame, list[Future[np.ndarray]]]] = deque()
        for chunk in chunks:
            under_way.append((chunk.frame, submit(canonicalise(chunk.frame, bundle.features, chunk.first_row - 1))))
            if len(under_way) > 1:
                yield finish(*under_way.popleft())
        while under_way:
            yield finish(*under_way.popleft())


@contextmanager
def _output(path: Path) -> "Iterator[Callable[[pl.DataFrame], None]]":
    """A function that appends a frame to a Parquet or CSV file; the file gets its name when all is written."""
    from ctrkit.errors import CtrkitError

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
def _parquet(path: Path) -> "Iterator[Callable[[pl.DataFrame], None]]":
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None

    def write(frame: "pl.DataFrame") -> None:
        nonlocal writer
        table = frame.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))

    try:
        yield write
    finally:
        if writer:
            writer.close()


@contextmanager
def _csv(path: Path) -> "Iterator[Callable[[pl.DataFrame], None]]":
    with path.open("wb") as file:

        def write(frame: "pl.DataFrame") -> None:
            frame.write_csv(file, include_header=file.tell() == 0)

        yield write
