"""Another version scores what was answered, after the answer is out: what would change if it took over?

One thread of low priority does so, one request at a time. What waits for it has a bound; beyond it requests are let go and counted.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ctrkit.bundle import output_names
from ctrkit.feeds import check_finite, input_names, rows_to_columns
from serving.batcher import Feed
from serving.metrics import Distribution
from serving.model import Served
from serving.rollout import Rollout

log = logging.getLogger("ctrkit.serving")

DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
OUTCOMES = ("scored", "dropped", "failed")
NICENESS = 10

Pair = tuple[str, int, int]
"""A model, the version that answered, the version in its shadow."""


@dataclass(frozen=True, slots=True)
class _Answered:
    by: Served
    shadow: Served
    feed: Feed
    rows: int
    probabilities: np.ndarray


class Shadow(Collector):
    """The thread, what waits for it, and what it found.

    Args:
        rollout: says which version is in whose shadow.
        most_rows: that wait at a time.
    """

    def __init__(self, rollout: Rollout, most_rows: int) -> None:
        self._rollout = rollout
        self._most = most_rows
        self._queue: SimpleQueue[_Answered | None] = SimpleQueue()
        self._offered = 0
        self._taken = 0
        self._turned_away: Counter[tuple[Pair, str]] = Counter()  # counted on the event loop
        self._worked: Counter[tuple[Pair, str]] = Counter()  # counted in the thread
        self._differences: dict[Pair, Distribution] = {}
        self._tasks: dict[Pair, tuple[str, ...]] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def offer(self, by: Served, feed: Feed, rows: int, probabilities: np.ndarray) -> None:
        """A prediction that was answered; on the event loop. Returns at once, whatever becomes of it.

        Args:
            feed: the inputs of the version that answered.
            probabilities: its ``[rows]`` or ``[rows, tasks]``.
        """
        version = self._rollout.shadow(by.name)
        if version is None or version == by.version or not rows:
            return
        pair = by.name, by.version, version
        shadow = self._rollout.live(by.name, version)
        if shadow is None:
            self._turned_away[pair, "failed"] += 1
        elif self._offered - self._taken + rows > self._most:
            self._turned_away[pair, "dropped"] += 1
        else:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()
            self._offered += rows
            self._queue.put(_Answered(by, shadow, feed, rows, probabilities))

    def close(self) -> None:
        """Waits for the run in flight and lets go of the rest."""
        self._closing.set()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (answered := self._queue.get()) is not None and not self._closing.is_set():
            pair = answered.by.name, answered.by.version, answered.shadow.version
            try:
                self._compare(pair, answered)
                self._worked[pair, "scored"] += 1
            except Exception as error:  # noqa: BLE001  whatever the other version does with the rows, nobody waits for it
                if not self._worked[pair, "failed"]:
                    about = {"model": pair[0], "version": pair[1], "shadow": pair[2], "exception": type(error).__name__}
                    log.error("shadow failed; later failures are only counted", extra=about)
                self._worked[pair, "failed"] += 1
            self._taken += answered.rows

    def _compare(self, pair: Pair, answered: _Answered) -> None:
        shadow = answered.shadow.bundle
        if shadow.tasks != answered.by.bundle.tasks:
            raise ValueError("the versions predict other labels")
        feed = adapted(answered.feed, answered.rows, answered.shadow)
        probabilities = shadow.predict(feed)
        check_finite(probabilities, feed, shadow.features)
        tasks = output_names(shadow.tasks)
        known = self._differences.get(pair)
        if known is None:
            self._tasks[pair] = tasks
            known = self._differences[pair] = Distribution(DIFFERENCES, len(tasks))
        known.add_many(np.abs(probabilities - answered.probabilities).reshape(-1, len(tasks)).T)

    def collect(self) -> Iterator[Any]:
        labels = ["model", "version", "shadow"]
        differences = HistogramMetricFamily(
            "ctrkit_shadow_difference", "|probability answered - the shadow's| of a row", labels=[*labels, "task"]
        )
        outcomes = CounterMetricFamily("ctrkit_shadow", "Requests by what became of them in the shadow", labels=[*labels, "outcome"])
        counted = self._turned_away.copy() + self._worked.copy()
        for pair in sorted({pair for pair, _ in counted}):
            name, version, shadow = pair
            if self._rollout.live(name, version) is None:
                continue
            about = [name, str(version), str(shadow)]
            for outcome in OUTCOMES:
                outcomes.add_metric([*about, outcome], counted[pair, outcome])
            if pair in self._differences:
                for task, (buckets, total) in zip(self._tasks[pair], self._differences[pair].read(), strict=True):
                    differences.add_metric([*about, task], buckets, total)
        yield from (differences, outcomes)


def adapted(feed: Feed, rows: int, to: Served) -> Feed:
    """One version's inputs as another's: what it does not have is left out, what only the other has is missing."""
    lacking = [feature for feature in to.bundle.features if input_names(feature)[0] not in feed]
    missing = rows_to_columns([{}] * rows, lacking) if lacking else {}
    filled: Feed = {}
    for feature in to.bundle.features:
        names = input_names(feature)
        column = missing.get(feature.name)
        values = tuple(feed[name] for name in names) if column is None else column if isinstance(column, tuple) else (column,)
        filled.update(zip(names, values, strict=True))
    return filled
