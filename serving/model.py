"""One version of a model: loaded, checked against what it must predict, warmed up."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from ctrkit.bundle import RUN_ROWS, Bundle, open_bundle, output_names
from ctrkit.errors import CtrkitError
from ctrkit.feeds import check_finite, input_names, rows_to_columns
from ctrkit.pieces import in_pieces
from serving.answering import Answering
from serving.batcher import Batcher, Done, Feed
from serving.settings import ServingSettings

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Rows of the runs that warm a model up."""

TRIES = 3
GOLDEN_DIFFERENCE = 1e-3
"""Of a probability, from what the exporting machine predicted: above rounding of other processors, below any mistake."""


class Served(Answering):
    """A version that scores.

    Args:
        bundle: its files.
        pool: where its long runs happen.
        settings: limits; ``batch_rows`` and ``inline_ms`` decide how requests are joined.

    Attributes:
        seconds: of a run, by its rows, as warm-up found.
    """

    def __init__(self, bundle: Bundle, pool: Executor, settings: ServingSettings) -> None:
        super().__init__(bundle.manifest.name, bundle.manifest.version, settings)
        self.bundle = bundle
        self.seconds = warm_up(bundle)
        self.batcher = Batcher(
            bundle.predict,
            pool,
            workers=settings.runs,
            most_rows=settings.batch_rows or best_batch(self.seconds),
            inline_rows=within(self.seconds, settings.inline_ms / 1000),
        )

    async def run(self, feed: Feed, rows: int) -> Done:
        """The graph's answer to a request. Whatever is answered, counted or shown to a shadow comes from here.

        Raises:
            RowError: a row whose probability is no finite number.
        """
        done = await self._run(feed, rows)
        check_finite(done.probabilities, feed, self.bundle.features)
        return done

    async def _run(self, feed: Feed, rows: int) -> Done:
        """A long request goes in pieces, which may run beside each other, and others' between them."""
        pieces = in_pieces(feed, self.bundle.features, RUN_ROWS)
        if len(pieces) == 1:
            return await self.batcher.submit(feed, rows)
        sizes = [min(RUN_ROWS, rows - start) for start in range(0, rows, RUN_ROWS)]
        done = await asyncio.gather(*(self.batcher.submit(piece, size) for piece, size in zip(pieces, sizes, strict=True)))
        return Done(
            np.concatenate([one.probabilities for one in done]),
            min(one.started for one in done),
            max(one.ended for one in done),
            max(one.batch_rows for one in done),
        )


def open_version(folder: Path, threads: int) -> Bundle:
    """A version's bundle with its graph loaded.

    Raises:
        CtrkitError: files that are missing or altered, a graph that cannot be loaded, whose inputs are not those of the manifest's
            features, or that does not predict what it did when it was exported.
    """
    bundle = open_bundle(folder, threads=threads)
    if (bundle.manifest.name, str(bundle.manifest.version)) != (folder.parent.name, folder.name):
        raise CtrkitError(
            f"'{folder}' holds version {bundle.manifest.version} of the model '{bundle.manifest.name}', as its manifest says",
            "Export the run into this repository, or give the folder its name",
        )
    bundle.known_values  # noqa: B018  loads them
    _check_signature(bundle, folder)
    _check_golden(bundle, folder)
    return bundle


def _check_signature(bundle: Bundle, folder: Path) -> None:
    for what, has, wants in (
        ("inputs", {tensor.name for tensor in bundle.session.get_inputs()}, {n for f in bundle.features for n in input_names(f)}),
        ("outputs", {tensor.name for tensor in bundle.session.get_outputs()}, set(output_names(bundle.tasks))),
    ):
        if has != wants:
            raise CtrkitError(f"the graph in '{folder}' has other {what} than its manifest: {', '.join(sorted(has ^ wants))}")


def _check_golden(bundle: Bundle, folder: Path) -> None:
    golden = bundle.golden()
    if not golden.rows:
        return
    known = golden.probabilities
    wanted = np.array(list(known.values())).T if isinstance(known, dict) else np.array(known)
    difference = float(np.abs(bundle.score(golden.rows) - wanted).max())
    if not difference <= GOLDEN_DIFFERENCE:
        raise CtrkitError(
            f"the model in '{folder}' does not predict what it did when it was exported: {difference:.2g} off", "Export it again"
        )


def sample_feed(bundle: Bundle, rows: int) -> Feed:
    """The graph's inputs for so many golden rows, repeated; without golden rows all is missing."""
    golden: Sequence[dict] = bundle.golden().rows or [{}]
    return bundle.feed(rows_to_columns([golden[i % len(golden)] for i in range(rows)], bundle.features))


def warm_up(bundle: Bundle) -> dict[int, float]:
    """Runs the graph for each of ``SIZES`` a few times; the shortest run's seconds, by rows."""
    seconds = {}
    for rows in SIZES:
        feed = sample_feed(bundle, rows)
        seconds[rows] = min(_seconds(bundle, feed) for _ in range(TRIES))
    return seconds


def _seconds(bundle: Bundle, feed: Feed) -> float:
    start = perf_counter()
    bundle.predict(feed)
    return perf_counter() - start


def best_batch(seconds: dict[int, float]) -> int:
    """The fewest rows at which a row costs at most a tenth more than at the best size: joining more makes requests wait for nothing."""
    per_row = {rows: spent / rows for rows, spent in seconds.items()}
    return min(rows for rows, spent in per_row.items() if spent <= 1.1 * min(per_row.values()))


def within(seconds: dict[int, float], limit: float) -> int:
    """The most rows whose run takes at most so long; 0 when none does."""
    return max((rows for rows, spent in seconds.items() if spent <= limit), default=0)


@dataclass(frozen=True)
class State:
    """A version as the repository knows it: ``READY``, ``LOADING`` or ``UNAVAILABLE`` with the reason."""

    version: int
    state: str
    reason: str = ""
