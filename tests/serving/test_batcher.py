import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batcher import Batcher

Feed = dict[str, np.ndarray]


class Graph:
    """Adds one to ``x``; a negative number breaks the run it is in. Remembers the rows of its runs."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, feed: Feed) -> np.ndarray:
        self.runs.append(len(feed["x"]))
        if (feed["x"] < 0).any():
            raise ValueError("negative")
        return feed["x"] + 1


def run_all(requests: list[list[int]], graph: Graph, **limits: int) -> list[list[int] | None]:
    """All requests at the same time; their answers, None for one that failed."""

    async def everything() -> list[list[int] | None]:
        with ThreadPoolExecutor(2) as pool:
            batcher = Batcher(graph, pool, workers=2, **limits)
            waiting = [batcher.submit({"x": np.array(request, np.int64)}, len(request)) for request in requests]
            done = await asyncio.gather(*waiting, return_exceptions=True)
        return [None if isinstance(one, BaseException) else one.probabilities.tolist() for one in done]

    return asyncio.run(everything())


requests = st.lists(st.lists(st.integers(-1, 50), max_size=6), max_size=20)


@settings(max_examples=40)
@given(requests, st.integers(1, 12), st.sampled_from([0, 3, 100]))
def test_everybody_gets_their_own_answer_whoever_waits_beside_them(requests: list[list[int]], most: int, inline: int) -> None:
    graph = Graph()
    answers = run_all(requests, graph, most_rows=most, inline_rows=inline)
    assert answers == [None if -1 in request else [x + 1 for x in request] for request in requests]
    assert all(rows <= max([most, *map(len, requests)]) for rows in graph.runs)


def test_requests_that_wait_together_run_together() -> None:
    graph = Graph()
    run_all([[1], [2, 3], [4], [5, 6, 7], [8]], graph, most_rows=4, inline_rows=4)
    assert graph.runs == [4, 4], "1 + 2 + 1 rows, then 3 + 1"
    graph = Graph()
    run_all([[1]] * 5, graph, most_rows=1, inline_rows=4)
    assert graph.runs == [1] * 5, "no batching with one row"
    graph = Graph()
    run_all([[1], list(range(9)), [2]], graph, most_rows=4, inline_rows=100)
    assert graph.runs == [1, 9, 1], "more rows than a batch may have run alone"


def test_one_bad_request_costs_its_mates_a_run_and_nothing_else() -> None:
    graph = Graph()
    assert run_all([[1], [-1], [2]], graph, most_rows=9, inline_rows=9) == [[2], None, [3]]
    assert graph.runs == [3, 1, 1, 1]


def test_a_caller_that_left_is_not_run_for() -> None:
    graph = Graph()

    async def leave() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(graph, pool, workers=1, most_rows=10, inline_rows=10)
            first, second = (batcher.submit({"x": np.array([x])}, 1) for x in (1, 2))
            first.cancel()
            return (await second).probabilities.tolist()

    assert asyncio.run(leave()) == [3] and graph.runs == [1]


def test_what_comes_while_all_workers_are_busy_is_joined() -> None:
    import threading

    go_on = threading.Event()
    runs = []

    def slow(feed: Feed) -> np.ndarray:
        runs.append(len(feed["x"]))
        assert go_on.wait(10)
        return feed["x"]

    async def everything() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(slow, pool, workers=1, most_rows=100, inline_rows=0)
            waiting = [batcher.submit({"x": np.array([0])}, 1)]
            await asyncio.sleep(0.01)
            for x in range(1, 8):
                waiting.append(batcher.submit({"x": np.array([x])}, 1))
                await asyncio.sleep(0)
            go_on.set()
            return [int(done.probabilities[0]) for done in await asyncio.gather(*waiting)]

    assert asyncio.run(everything()) == list(range(8))
    assert runs == [1, 7]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_request_without_rows_is_answered(rows: int) -> None:
    assert run_all([[]] * 3 + [[5]] * rows, Graph(), most_rows=4, inline_rows=4) == [[]] * 3 + [[6]] * rows
