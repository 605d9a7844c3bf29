"""``ctrkit score``: a file of raw rows -> a file of probabilities, batch by batch with ONNX Runtime. Needs no torch."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

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
        CtrkitError: a damaged bundle, an input that cannot be read or lacks a feature's column, a row whose probability is no finite number,
            an output that cannot be written, is a file that is read, or cannot hold a column to keep.
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
    from pipelines.score_output import output as output_file

    threads = threads or os.cpu_count() or 1
    opened = open_bundle(bundle, threads=1)
    outputs = output_names(opened.tasks)
    for name in keep:
        if name in outputs:
            raise CtrkitError(f"the input's column '{name}' cannot be kept: the predictions have that name")
        if keep.count(name) > 1:
            raise CtrkitError(f"the column '{name}' is to be kept twice", "Name it once with --keep")
    data = load_config(config).data if config else None
    files, joins = find_files(str(input)), data.joins if data else ()
    read = [*files, *(file for join in joins for file in find_files(join.path, "data.joins"))]
    if os.path.realpath(output) in map(os.path.realpath, read):
        raise CtrkitError(f"the output '{output}' is a file that is read", "Name another with --output")
    needed = [*(feature.name for feature in opened.features), *keep]
    log = LogReader(data or FileLayout(), files, joins, needed, READ_ROWS)
    _check_columns(log, opened, keep, told=config is not None)
    opened.session  # noqa: B018  loaded before the clock starts
    start = time.perf_counter()
    rows = 0
    with output_file(Path(output)) as write:
        for chunk, probabilities in _predictions(opened, log.chunks(), threads):
            columns = zip(outputs, probabilities.reshape(-1, len(outputs)).T, strict=True)
            kept = chunk.frame.select(keep).get_columns()
            write(pl.DataFrame([*kept, *(pl.Series(name, column) for name, column in columns)]), chunk.file)
            rows += chunk.frame.height
        if not rows:
            write(pl.DataFrame(schema={**dict.fromkeys(keep, pl.String), **dict.fromkeys(outputs, pl.Float32)}), files[0])
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


def _predictions(bundle: "Bundle", chunks: "Iterable[Chunk]", threads: int) -> "Iterator[tuple[Chunk, np.ndarray]]":
    """Each chunk with its rows' probabilities. Batches run side by side, one thread each; at most two chunks are under way.

    Raises:
        CtrkitError: a cell that cannot be what it should be, or a row whose probability is no finite number.
    """
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy as np

    from ctrkit.errors import CtrkitError
    from ctrkit.feeds import RowError, check_finite, frame_to_columns
    from ctrkit.transforms import canonicalise

    def predict(feed: dict[str, np.ndarray], chunk: "Chunk", start: int) -> np.ndarray:
        probabilities = bundle.predict(feed)
        try:
            check_finite(probabilities, feed, bundle.features)
        except RowError as error:
            where = "" if error.field is None else f", column '{error.field}'"
            raise CtrkitError(f"{chunk.place(start + (error.row or 0))}{where}: {error.reason}") from None
        return probabilities

    def submit(chunk: "Chunk") -> list[Future[np.ndarray]]:
        try:
            frame = canonicalise(chunk.frame, bundle.features, chunk.first_row - 1)
        except CtrkitError as error:
            raise CtrkitError(f"in '{chunk.file}': {error.problem}", error.remedy) from error
        starts = range(0, frame.height, BATCH_ROWS)
        batches = [frame_to_columns(frame.slice(start, BATCH_ROWS), bundle.features) for start in starts]
        return [pool.submit(predict, bundle.feed(batch), chunk, start) for start, batch in zip(starts, batches, strict=True)]

    def finish(chunk: "Chunk", batches: list[Future[np.ndarray]]) -> "tuple[Chunk, np.ndarray]":
        return chunk, np.concatenate([batch.result() for batch in batches])

    with ThreadPoolExecutor(threads, "ctrkit-score") as pool:
        under_way: deque[tuple[Chunk, list[Future[np.ndarray]]]] = deque()
        for chunk in chunks:
            under_way.append((chunk, submit(chunk)))
            if len(under_way) > 1:
                yield finish(*under_way.popleft())
        while under_way:
            yield finish(*under_way.popleft())
