"""Requests that wait at the same time run through the graph together.

Nobody waits for company: a run starts as soon as the event loop has read what had arrived. What arrives while all workers are busy
is joined, request by request in the order of arrival, up to a number of rows.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

Feed = dict[str, np.ndarray]
Run = Callable[[Feed], np.ndarray]
_Ran = tuple[list[np.ndarray | Exception], float, float]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one request.

    Attributes:
        probabilities: its own rows' ``[rows]`` or ``[rows, tasks]``.
        started, ended: when the run did, by ``perf_counter``.
        batch_rows: rows of the run, those of others included.
    """

    probabilities: np.ndarray
    started: float
    ended: float
    batch_rows: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    feed: Feed
    rows: int
    future: "asyncio.Future[Done]"


class Batcher:
    """One model's runs. All but ``_attempt`` happens on the event loop.

    Args:
        run: the graph's inputs -> probabilities; called from several threads.
        pool: where runs longer than ``inline_rows`` happen.
        workers: runs in the pool at a time.
        most_rows: of a run that joins requests; one request may have more and then runs alone.
        inline_rows: runs of at most so many rows happen on the event loop.
    """

    def __init__(self, run: Run, pool: Executor, *, workers: int, most_rows: int, inline_rows: int) -> None:
        self.most_rows = most_rows
        self.inline_rows = inline_rows
        self._run = run
        self._pool = pool
        self._workers = workers
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._scheduled = False

    def submit(self, feed: Feed, rows: int) -> "asyncio.Future[Done]":
        """The request's own result, or the exception that its rows alone raise."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Done] = loop.create_future()
        self._waiting.append(_Waiting(feed, rows, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._waiting:
            rows = self._next_rows()
            if rows <= self.inline_rows:
                batch = self._take(rows)
                if batch:
                    self._finish(batch, *self._attempt(batch))
                if self._waiting:  # answers go out before the next run
                    self._scheduled = True
                    loop.call_soon(self._flush)
                return
            if self._running >= self._workers:
                return
            batch = self._take(rows)
            if batch:
                self._running += 1
                work = loop.run_in_executor(self._pool, self._attempt, batch)
                work.add_done_callback(partial(self._returned, batch))

    def _next_rows(self) -> int:
        """Rows of the next run: the first request's, and of those behind it as long as they fit."""
        rows = 0
        for waiting in self._waiting:
            if rows and rows + waiting.rows > self.most_rows:
                break
            rows += waiting.rows
        return rows

    def _take(self, rows: int) -> list[_Waiting]:
        """Takes the requests of the next run off the queue; those whose caller has left are dropped."""
        batch = []
        while self._waiting and (rows > 0 or not batch):
            waiting = self._waiting[0]
            if batch and waiting.rows > rows:
                break
            self._waiting.popleft()
            rows -= waiting.rows
            if not waiting.future.done():
                batch.append(waiting)
        return batch

    def _attempt(self, batch: Sequence[_Waiting]) -> _Ran:
        """Each request's probabilities or exception, and when it was. When a run of several fails, each runs alone."""
        started = perf_counter()
        results: list[np.ndarray | Exception]
        try:
            if len(batch) == 1:
                results = [self._run(batch[0].feed)]
            else:
                joined = {name: np.concatenate([waiting.feed[name] for waiting in batch]) for name in batch[0].feed}
                ends = np.cumsum([waiting.rows for waiting in batch])[:-1]
                results = list(np.split(self._run(joined), ends))
        except Exception as error:  # noqa: BLE001  each caller gets its own
            results = [error] if len(batch) == 1 else [self._attempt([waiting])[0][0] for waiting in batch]
        return results, started, perf_counter()

    def _returned(self, batch: list[_Waiting], work: "asyncio.Future[_Ran]") -> None:
        self._running -= 1
        self._finish(batch, *work.result())
        if self._waiting and not self._scheduled:
            self._flush()

    def _finish(self, batch: list[_Waiting], results: list[np.ndarray | Exception], started: float, ended: float) -> None:
        rows = sum(waiting.rows for waiting in batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(Done(result, started, ended, rows))
