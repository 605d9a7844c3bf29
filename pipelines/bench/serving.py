"""``ctrkit bench serving``: requests a second and latency of ``ctrkit serve``, beside the same ONNX file behind plain FastAPI.

Both services run in processes of their own on this machine, asked by a load generator in a third: with few cores the three share
them. The same rows go to both, one service after the other in each cell of the table.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import orjson
import polars as pl

from ctrkit.bundle import Bundle, model_names, open_bundle
from ctrkit.errors import CtrkitError
from ctrkit.feeds import rows_to_columns
from pipelines.bench.load import Load, closed_loop, open_loop, request
from pipelines.bench.page import Heading, Paragraph, Table, write_page
from pipelines.terminal import Terminal

START_SECONDS = 60
BODIES = 50
"""Different requests of each size."""

OPEN_SHARE = 0.5
"""The open loop's rate, of what the plain service answered in the closed loop."""

STAGES = ("read", "parse", "queue", "run", "answer", "total")


def bench_serving(
    repo: Path, rows: Sequence[int], concurrency: Sequence[int], seconds: float, out: Path, screen: Terminal
) -> list[dict[str, Any]]:
    """One row a service, a number of candidates and a concurrency; writes ``serving.parquet``, ``report.md`` and ``report.html``.

    Args:
        repo: a model repository; its first model is asked.
        rows: candidates of a request.
        concurrency: connections.
        seconds: of each load.
        out: folder of the results.

    Raises:
        CtrkitError: no repository, or a service that does not start or answers with errors.
    """
    name = model_names(repo)[0]
    bundle = open_bundle(repo / name, threads=1)
    if bundle.tasks:
        raise CtrkitError(f"the model '{name}' has several tasks", "Bench one that predicts one label")
    draws = {count: draw_requests(bundle, count) for count in rows}
    alone = {count: _alone(bundle, draws[count][0]) for count in rows}
    bodies = {count: [orjson.dumps({"rows": draw}) for draw in draws[count]] for count in rows}
    path = f"/v1/models/{name}:score"
    measured: list[dict[str, Any]] = []
    ours = [sys.executable, "-m", "pipelines.cli", "serve", str(repo)]
    plain = [sys.executable, "-m", "pipelines.bench.plain_service", str(bundle.path)]
    with service_process([*ours, "--port"], "/readyz") as our_service, service_process(plain, "/openapi.json") as plain_service:
        sides = (("plain", plain_service, "/score"), ("ctrkit", our_service, path))
        for count in rows:
            for side, (port, _), where in sides:  # both warm
                closed(port, [request(where, body) for body in bodies[count]], 1, min(seconds, 0.5), side)
            for connections in concurrency:
                rate = 0.0
                for side, (port, process), where in sides:
                    requests = [request(where, body) for body in bodies[count]]
                    before = _stages(port) if side == "ctrkit" else {}
                    processor = processor_seconds(process)
                    load = closed(port, requests, connections, seconds, side)
                    processor = processor_seconds(process) - processor
                    after = _stages(port) if side == "ctrkit" else {}
                    rate = rate or max(1.0, OPEN_SHARE * len(load.latencies) / load.seconds)
                    opened = asyncio.run(open_loop(port, requests, connections, seconds, rate))
                    stages = {f"{stage}_ms": _mean(before, after, stage) for stage in STAGES} if after else {}
                    measured.append(
                        {"side": side, "rows": count, "concurrency": connections, "graph_ms": alone[count]}
                        | figures(load)
                        | {"cpu_ms": 1000 * processor / len(load.latencies)}
                        | {"open_rate": rate, "open_dropped": opened.dropped, **{f"open_{k}": v for k, v in figures(opened).items()}}
                        | stages
                    )
                    screen.console.print(_line(measured[-1]))
    out.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(measured, infer_schema_length=None).write_parquet(out / "serving.parquet")
    _report(measured, bundle, seconds, out)
    screen.console.print(f"wrote {out / 'report.md'}")
    return measured


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


def _stages(port: int) -> dict[str, tuple[float, float]]:
    """Sum and count of each stage so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: dict[str, tuple[float, float]] = {}
    for stage in STAGES:
        pair = [re.search(rf'^ctrkit_stage_seconds_{what}{{.*stage="{stage}".*}} (\S+)$', text, re.MULTILINE) for what in ("sum", "count")]
        found[stage] = (float(pair[0][1]), float(pair[1][1])) if pair[0] and pair[1] else (0.0, 0.0)
    return found


def _mean(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], stage: str) -> float:
    count = after[stage][1] - before[stage][1]
    return 1000 * (after[stage][0] - before[stage][0]) / count if count else float("nan")


@contextmanager
def service_process(command: list[str], ready: str) -> Iterator[tuple[int, int]]:
    """A service in a process of its own; gives its port and the process's number, stops it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryFile("w+") as said:
        process = subprocess.Popen([*command, str(port)], stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(f"http://127.0.0.1:{port}{ready}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    lines = said.read().strip().splitlines() or ["it said nothing"]
                    raise CtrkitError(f"a service did not start: {lines[-1]}", f"Try it alone: {' '.join(command)} {port}")
                time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def processor_seconds(process: int) -> float:
    """User and system time that a process has used: fields 14 and 15 of ``/proc/<number>/stat``."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['side']:>6}, {row['rows']:>4} candidates, {row['concurrency']:>2} connections: "
        f"{row['per_s']:,.0f} requests/s, p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms"
    )


def _report(measured: list[dict[str, Any]], bundle: Bundle, seconds: float, out: Path) -> None:
    closed, opened, stages = [], [], []
    pairs = zip(measured[::2], measured[1::2], strict=True)
    for plain, ours in pairs:
        cell = [f"{ours['rows']:,}", str(ours["concurrency"])]
        closed.append(
            [*cell, f"{ours['graph_ms']:.2f}"]
            + [
                f"{side[key]:,.{digits}f}"
                for key, digits in (("per_s", 0), ("p50_ms", 2), ("p99_ms", 2), ("cpu_ms", 2))
                for side in (ours, plain)
            ]
            + [f"{ours['per_s'] / plain['per_s']:.1f}"]
        )
        opened.append(
            [*cell, f"{ours['open_rate']:,.0f}"]
            + [f"{side[key]:,.2f}" for key in ("open_p50_ms", "open_p99_ms") for side in (ours, plain)]
            + [f"{ours['open_dropped']} / {plain['open_dropped']}"]
        )
        stages.append([*cell, *(f"{ours[f'{stage}_ms']:.3f}" for stage in STAGES)])
    about = (
        f"Model {bundle.manifest.name}, {bundle.manifest.model}, {len(bundle.features)} features; {seconds:g} s a load. "
        "Services and load generator share the machine's cores. Plain: FastAPI, a pydantic model a row, uvicorn's defaults without extras."
    )
    both = ["", "plain"]
    heads = ["candidates", "connections"]
    write_page(
        "Serving",
        [
            Paragraph(about),
            Heading("Closed loop: each connection sends its next request when the last is answered"),
            Table(
                [*heads, "graph alone, ms"]
                + [f"{side} {what}".strip() for what in ("requests/s", "p50 ms", "p99 ms", "CPU ms a request") for side in both]
                + ["ratio of requests/s"],
                closed,
            ),
            Heading("Open loop: requests at random times, at half the rate that plain reached; latency from when they were due"),
            Table([*heads, "rate/s"] + [f"{side} {what}".strip() for what in ("p50 ms", "p99 ms") for side in both] + ["dropped"], opened),
            Heading("Where ctrkit's time goes: mean milliseconds of a request inside the service, closed loop"),
            Table([*heads, *STAGES], stages),
        ],
        out,
    )
