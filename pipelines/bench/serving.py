"""``ctrkit bench serving``: requests a second and latency of ``ctrkit serve``, beside others around the same ONNX file.

Services run one after another in processes of their own on this machine, asked by a load generator in this one: with few cores all share
them. The same rows go to all.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from ctrkit.bundle import Bundle, model_names, open_bundle
from ctrkit.errors import CtrkitError
from ctrkit.feeds import rows_to_columns
from pipelines.bench.load import Load, closed_loop, open_loop, request
from pipelines.bench.service_process import processor_seconds, service_process
from pipelines.bench.services import Service, all_services, mean_stages
from pipelines.bench.serving_report import write_report
from pipelines.terminal import Terminal

BODIES = 50
"""Different requests of each size."""

OPEN_SHARE = 0.5
"""The open loop's rate, of what the plain service answered in the closed loop."""


def bench_serving(
    repo: Path,
    rows: Sequence[int],
    concurrency: Sequence[int],
    workers: Sequence[int],
    seconds: float,
    peer_python: Path | None,
    out: Path,
    screen: Terminal,
) -> list[dict[str, Any]]:
    """One row a service, a number of workers, of candidates and of connections; writes ``serving.parquet``, ``report.md``, ``report.html``.

    Args:
        repo: a model repository; its first model is asked.
        rows: candidates of a request.
        concurrency: connections.
        workers: processes of each service that answer.
        seconds: of each load.
        peer_python: that has LitServe and BentoML beside ctrkit; without it neither is measured.
        out: folder of the results.

    Raises:
        CtrkitError: no repository, or a service that does not start or answers with errors.
    """
    name = model_names(repo)[0]
    bundle = open_bundle(repo / name, threads=1)
    if bundle.tasks:
        raise CtrkitError(f"the model '{name}' has several tasks", "Bench one that predicts one label")
    measured: list[dict[str, Any]] = []
    for processes in workers:
        services = all_services(repo, name, bundle.path, processes, peer_python)
        for count in rows:
            draws = draw_requests(bundle, count)
            alone = _alone(bundle, draws[0])
            bodies = [orjson.dumps({"rows": draw}) for draw in draws]
            rates: dict[int, float] = {}
            for service in services:
                for row in _measure(service, bodies, concurrency, seconds, rates):
                    measured.append({"workers": processes, "rows": count, "graph_ms": alone} | row)
                    screen.console.print(_line(measured[-1]))
    out.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(measured, infer_schema_length=None).write_parquet(out / "serving.parquet")
    write_report(measured, bundle, seconds, out)
    screen.console.print(f"wrote {out / 'report.md'}")
    return measured


def _measure(
    service: Service, bodies: Sequence[bytes], concurrency: Sequence[int], seconds: float, rates: dict[int, float]
) -> Iterator[dict[str, Any]]:
    """A service under both loads; the first one measured sets the open loop's rates."""
    requests = [request(service.path, body) for body in bodies]
    with service_process(service.command, service.ready) as (port, process):
        closed(port, requests, 2 * service.workers, min(seconds, 1.0), service.name)  # warm
        for connections in concurrency:
            before, processor = service.stages(port), processor_seconds(process)
            load = closed(port, requests, connections, seconds, service.name)
            after, processor = service.stages(port), processor_seconds(process) - processor
            rate = rates.setdefault(connections, max(1.0, OPEN_SHARE * len(load.latencies) / load.seconds))
            opened = asyncio.run(open_loop(port, requests, connections, seconds, rate))
            yield (
                {"side": service.name, "concurrency": connections, **figures(load), "cpu_ms": 1000 * processor / len(load.latencies)}
                | {"open_rate": rate, "open_dropped": opened.dropped, **{f"open_{key}": value for key, value in figures(opened).items()}}
                | mean_stages(before, after)
            )


def draw_requests(bundle: Bundle, count: int) -> list[list[dict[str, Any]]]:
    """Requests of golden rows, drawn at random."""
    golden = bundle.golden().rows
    random = np.random.default_rng(0)
    return [[golden[place] for place in random.integers(0, len(golden), count)] for _ in range(BODIES)]


def _alone(bundle: Bundle, rows: list[dict[str, Any]]) -> float:
    """Milliseconds of the graph alone, median: a bare ``session.run`` with one thread, its inputs ready."""
    feed = bundle.feed(rows_to_columns(rows, bundle.features))
    spent = []
    for _ in range(200 if len(rows) < 10 else 30):
        start = time.perf_counter()
        bundle.session.run(None, feed)
        spent.append(time.perf_counter() - start)
    return 1000 * float(np.median(spent))


def closed(port: int, requests: Sequence[bytes], connections: int, seconds: float, side: str) -> Load:
    load = asyncio.run(closed_loop(port, requests, connections, seconds))
    if set(load.statuses) != {200}:
        raise CtrkitError(f"the {side} service answered {dict(load.statuses)} under load")
    return load


def figures(load: Load) -> dict[str, float]:
    if not load.latencies:
        return {"per_s": 0.0, "p50_ms": float("nan"), "p99_ms": float("nan")}
    p50, p99 = 1000 * np.percentile(load.latencies, [50, 99])
    return {"per_s": len(load.latencies) / load.seconds, "p50_ms": float(p50), "p99_ms": float(p99)}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['side']:>8} x {row['workers']}, {row['rows']:>4} candidates, {row['concurrency']:>2} connections: "
        f"{row['per_s']:,.0f} requests/s, p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms"
    )
