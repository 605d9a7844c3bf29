"""``ctrkit bench recommend``: synthetic catalogues, how much of the exact search the index finds and how fast, and ``:recommend`` over HTTP.

Vectors are of unit length, around random centres; a user's vector is an item's with noise. Nothing is trained: what is measured is search
and service, and not what the lists are worth.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import polars as pl
from threadpoolctl import threadpool_limits

from ctrkit.retrieval.index import INDEX_FOLDER, ApproximateIndex, ExactIndex, ItemIndex, recall
from pipelines.bench.load import request
from pipelines.bench.page import Heading, Paragraph, Table, write_page
from pipelines.bench.service_process import service_process
from pipelines.bench.serving import closed, figures
from pipelines.bench.synthetic_towers import COLOURS, clustered, write_towers
from pipelines.terminal import Terminal

BREADTHS = (32, 64, 128, 256)
"""Candidates kept in a search of the graph; the service keeps 128."""

AT = (10, 100)
CLUSTER_ITEMS = 200
HISTORY = 50
NOISE = 0.3
REQUESTS = 200
"""Different ones of each kind."""

FIGURES = (("per_s", 0), ("p50_ms", 2), ("p99_ms", 2))


def bench_recommend(
    sizes: Sequence[int], width: int, queries: int, concurrency: Sequence[int], seconds: float, out: Path, screen: Terminal
) -> dict[str, list[dict[str, Any]]]:
    """Writes ``index.parquet``, ``recommend.parquet``, ``report.md`` and ``report.html`` to ``out``.

    Args:
        sizes: items of each catalogue.
        width: of vectors.
        queries: users that are searched for, one after the other.
        concurrency: connections.
        seconds: of each load.

    Returns:
        ``{index: [..], recommend: [..]}``: a row a size and breadth (0 is the exact search), and a row a size, kind of request and number
        of connections.

    Raises:
        CtrkitError: the service does not start, or answers with errors.
    """
    out.mkdir(parents=True, exist_ok=True)
    searched: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    for size in sizes:
        vectors = clustered(size, width, max(2, size // CLUSTER_ITEMS))
        with TemporaryDirectory(dir=out) as scratch:
            started = time.perf_counter()
            bundle = write_towers(Path(scratch), "items", 1, vectors)
            screen.console.print(f"{size:,} items: indexed and written in {time.perf_counter() - started:.0f} s")
            searched += _searched(bundle / INDEX_FOLDER, vectors, queries, screen)
            asked += _asked(Path(scratch), size, concurrency, seconds, screen)
    pl.DataFrame(searched).write_parquet(out / "index.parquet")
    pl.DataFrame(asked).write_parquet(out / "recommend.parquet")
    _report(searched, asked, width, queries, seconds, out)
    screen.console.print(f"wrote {out / 'report.md'}")
    return {"index": searched, "recommend": asked}


def _searched(index: Path, vectors: np.ndarray, queries: int, screen: Terminal) -> list[dict[str, Any]]:
    """Recall and speed of both indexes, one query after the other on one thread."""
    random = np.random.default_rng(1)
    users = vectors[random.integers(0, len(vectors), queries)]
    users = users + NOISE / np.sqrt(users.shape[1]) * random.standard_normal(users.shape, np.float32)
    with threadpool_limits(1):  # products of NumPy take all cores by themselves
        exact, spent = _all(ExactIndex(index), users)
    rows: list[dict[str, Any]] = [
        {"items": len(vectors), "breadth": 0, **{f"recall@{k}": 1.0 for k in AT}, "queries_per_s": queries / spent}
    ]
    for breadth in BREADTHS:
        found, spent = _all(ApproximateIndex(index, breadth, threads=1), users)
        shares = {f"recall@{k}": recall(found[:, :k], exact[:, :k]) for k in AT}
        rows.append({"items": len(vectors), "breadth": breadth, **shares, "queries_per_s": queries / spent})
    for row in rows:
        kind = f"breadth {row['breadth']}" if row["breadth"] else "exact"
        screen.console.print(
            f"{row['items']:,} items, {kind}: recall@{AT[0]} {row[f'recall@{AT[0]}']:.4f}, {row['queries_per_s']:,.0f} queries/s"
        )
    return rows


def _all(index: ItemIndex, users: np.ndarray) -> tuple[np.ndarray, float]:
    """The scores of what is found for each user, and the seconds that it took; once before, unmeasured, since files are mapped."""
    index.search(users[:1], max(AT))
    started = time.perf_counter()
    found = [index.search(user[None], max(AT))[1][0] for user in users]
    spent = time.perf_counter() - started
    return np.stack(found), spent


def _asked(repo: Path, size: int, concurrency: Sequence[int], seconds: float, screen: Terminal) -> list[dict[str, Any]]:
    """The service's latency by kind of request, closed loop."""
    random = np.random.default_rng(2)
    users = [{"likes": int(random.integers(size)), "recent": random.integers(0, size, HISTORY).tolist()} for _ in range(REQUESTS)]
    kinds: dict[str, dict[str, Any]] = {
        "approximate": {},
        "exact": {"index": "exact"},
        "one colour of four": {"where": {"colour": COLOURS[0]}},
        "rare tag, 1 %": {"where": {"tags": "rare"}},
        "diverse": {"diversity": 0.7},
    }
    rows = []
    path = "/v1/models/items:recommend"
    with service_process([sys.executable, "-m", "pipelines.cli", "serve", str(repo), "--set", "access_log=false", "--port"], "/readyz") as (
        port,
        _,
    ):
        for kind, filters in kinds.items():
            requests = [request(path, orjson.dumps({"user": user, "k": 10, **filters})) for user in users]
            closed(port, requests, 1, min(seconds, 0.5), "ctrkit")  # who has which value is worked out at the first request
            for connections in concurrency:
                load = closed(port, requests, connections, seconds, "ctrkit")
                rows.append({"items": size, "request": kind, "concurrency": connections, **figures(load)})
                told = rows[-1]
                screen.console.print(
                    f"{size:,} items, {kind}, {connections} connections: {told['per_s']:,.0f} requests/s, "
                    f"p50 {told['p50_ms']:.2f} ms, p99 {told['p99_ms']:.2f} ms"
                )
    return rows


def _report(searched: list[dict[str, Any]], asked: list[dict[str, Any]], width: int, queries: int, seconds: float, out: Path) -> None:
    index = [
        [f"{row['items']:,}", str(row["breadth"] or "exact"), *(f"{row[f'recall@{k}']:.4f}" for k in AT), f"{row['queries_per_s']:,.0f}"]
        for row in searched
    ]
    served = [
        [f"{row['items']:,}", row["request"], str(row["concurrency"]), *(f"{row[key]:,.{digits}f}" for key, digits in FIGURES)]
        for row in asked
    ]
    write_page(
        "Recommending",
        [
            Paragraph(f"Clustered vectors of width {width}, about {CLUSTER_ITEMS} items a cluster; nothing is trained."),
            Heading(f"The index against exact search: {queries:,} users, one after the other on one thread"),
            Table(["items", "breadth", *(f"recall@{k}" for k in AT), "queries/s"], index),
            Heading(":recommend over HTTP, ten items for a user with a history of fifty, closed loop"),
            Paragraph(f"{seconds:g} s a load; service and load generator share the machine's cores."),
            Table(["items", "request", "connections", "requests/s", "p50 ms", "p99 ms"], served),
        ],
        out,
    )
