"""Size and latency of exported runs, next to another's in the same process."""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from ctrkit.bundle import Bundle, open_bundle
from ctrkit.feeds import rows_to_columns
from pipelines.export import export_run

BATCHES = (1, 1024)


class Scale:
    """Weighs bundles against that of one run.

    Args:
        run: of the bundle that is 1.
        folder: where the bundles are written; the caller deletes it.
        calls: of each bundle, to take the median of.
    """

    def __init__(self, run: Path, folder: Path, calls: int) -> None:
        self._folder, self._calls = folder, calls
        self._reference = _exported(run, folder)

    def weigh(self, run: Path) -> dict[str, Any]:
        """``{bundle_bytes, latency_ms_<rows>, latency_ratio_<rows>}`` of a run, for calls of 1 and of 1024 rows.

        A latency is the median of calls with one thread, the two bundles taking turns; the rows are the golden ones, repeated.
        """
        with TemporaryDirectory(dir=self._folder) as folder:
            bundle = _exported(run, Path(folder))
            weighed: dict[str, Any] = {"bundle_bytes": sum(file.stat().st_size for file in bundle.path.iterdir())}
            for rows in BATCHES:
                own, reference = _milliseconds([bundle, self._reference], rows, self._calls)
                weighed |= {f"latency_ms_{rows}": own, f"latency_ratio_{rows}": own / reference}
        return weighed


def _exported(run: Path, folder: Path) -> Bundle:
    return open_bundle(export_run(run, folder)["bundle"], threads=1)


def _milliseconds(bundles: list[Bundle], rows: int, calls: int) -> list[float]:
    """Of a call of so many rows, of each bundle."""
    feeds = []
    for bundle in bundles:
        golden = bundle.golden().rows
        feeds.append(bundle.feed(rows_to_columns((golden * (rows // len(golden) + 1))[:rows], bundle.features)))
        bundle.predict(feeds[-1])
    turns = [[_seconds(bundle, feed) for bundle, feed in zip(bundles, feeds, strict=True)] for _ in range(calls)]
    return [1000 * median(side) for side in zip(*turns, strict=True)]


def _seconds(bundle: Bundle, feed: dict[str, Any]) -> float:
    start = perf_counter()
    bundle.predict(feed)
    return perf_counter() - start
