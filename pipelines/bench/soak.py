"""``ctrkit bench serving --soak``: new versions arrive again and again while requests come: does one fail, does memory grow?

The service runs in a process of its own over a repository of its own, a copy that the soak may change: each version is the model's latest
one under the next number, and the oldest ones are deleted as a cleaner would.
"""

import asyncio
import json
import os
import re
import shutil
import statistics
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from ctrkit.bundle import MANIFEST_FILE, model_names, open_bundle
from ctrkit.errors import CtrkitError
from pipelines.bench.load import Connection, connect, request
from pipelines.bench.service_process import service_process
from pipelines.bench.serving import draw_requests
from pipelines.terminal import Terminal

KEPT_VERSIONS = 3
SAMPLES_PER_S = 4
ANSWER_SECONDS = 60


def bench_soak(repo: Path, rows: int, connections: int, seconds: float, reload_every: float, out: Path, screen: Terminal) -> dict[str, Any]:
    """Load in a closed loop for so long; writes ``soak.json`` into ``out`` and returns what is in it.

    ``failed`` counts answers other than 200 and broken connections. ``growth_mb`` is the median memory of the last quarter of the time less
    that of the second quarter: the first one warms up.

    Args:
        repo: a model repository; the latest version of its first model is asked.
        rows: of a request.
        connections: each with its next request as soon as the last is answered.
        reload_every: seconds between two versions.

    Raises:
        CtrkitError: no repository, a service that does not start, or requests that failed; the figures are written before.
    """
    name = model_names(repo)[0]
    bundle = open_bundle(repo / name)
    requests = [request(f"/v1/models/{name}:score", orjson.dumps({"rows": draw})) for draw in draw_requests(bundle, rows)]
    with TemporaryDirectory(prefix="ctrkit-soak-") as folder:
        copy = Path(folder)
        _publish(bundle.path, copy / name, 1)
        command = [sys.executable, "-m", "pipelines.cli", "serve", folder, "--set", "poll_s=0.2", "--set", "access_log=false", "--port"]
        with service_process(command, "/readyz") as (port, process):
            stop = threading.Event()
            published, memory = [1], list[float]()
            helpers = [
                threading.Thread(target=_publish_again, args=(bundle.path, copy / name, reload_every, published, stop)),
                threading.Thread(target=_watch_memory, args=(process, memory, stop)),
            ]
            for helper in helpers:
                helper.start()
            try:
                statuses, latencies = asyncio.run(_load(port, requests, connections, seconds))
            finally:
                stop.set()
                for helper in helpers:
                    helper.join()
            loaded = _loaded(port)
    quarter = max(1, len(memory) // 4)
    early, late = statistics.median(memory[quarter : 2 * quarter] or memory), statistics.median(memory[-quarter:])
    found = {
        "requests": sum(statuses.values()),
        "failed": sum(count for status, count in statuses.items() if status != "200"),
        "statuses": dict(statuses),
        "p99_ms": 1000 * statistics.quantiles(latencies, n=100)[98] if len(latencies) > 1 else None,
        "seconds": seconds,
        "published": published[0] - 1,
        "reloads": loaded - 1,
        "memory_mb": [round(early, 1), round(late, 1)],
        "growth_mb": round(late - early, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    screen.console.print(
        f"{found['requests']:,} requests, {found['failed']} failed, {found['reloads']} reloads; "
        f"memory {early:,.0f} MB, then {late:,.0f} MB; wrote {out / 'soak.json'}"
    )
    if found["failed"]:
        raise CtrkitError(f"{found['failed']:,} of {found['requests']:,} requests failed: {dict(statuses)}", "See the service's log")
    return found


def _publish(source: Path, model: Path, version: int) -> None:
    """A copy of a bundle as another version, whole when it has its name."""
    scratch = model / f".{version}"
    shutil.copytree(source, scratch)
    manifest = json.loads((scratch / MANIFEST_FILE).read_text(encoding="utf8"))
    (scratch / MANIFEST_FILE).write_text(json.dumps({**manifest, "version": version}), encoding="utf8")
    scratch.rename(model / str(version))


def _publish_again(source: Path, model: Path, every: float, published: list[int], stop: threading.Event) -> None:
    while not stop.wait(every):
        published[0] += 1
        _publish(source, model, published[0])
        shutil.rmtree(model / str(published[0] - KEPT_VERSIONS), ignore_errors=True)


def _watch_memory(process: int, memory: list[float], stop: threading.Event) -> None:
    """Resident MB of a process, some times a second."""
    pages = os.sysconf("SC_PAGE_SIZE") / 2**20
    while True:
        memory.append(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * pages)
        if stop.wait(1 / SAMPLES_PER_S):
            return


async def _load(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> tuple[Counter[str], list[float]]:
    """Answers by status, broken connections as ``broken``; and seconds of the requests that were answered."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def turn(place: int) -> None:
        connection: Connection | None = None
        while (begun := time.perf_counter()) < until:
            try:
                if connection is None:
                    (connection,) = await connect(port, 1)
                async with asyncio.timeout(ANSWER_SECONDS):
                    status = await connection.ask(requests[place % len(requests)])
                statuses[str(status)] += 1
                latencies.append(time.perf_counter() - begun)
            except (OSError, TimeoutError):
                statuses["broken"] += 1
                connection = None
                await asyncio.sleep(0.1)
            place += 1
        if connection is not None:
            connection.close()

    await asyncio.gather(*(turn(place) for place in range(connections)))
    return statuses, latencies


def _loaded(port: int) -> int:
    """Versions that the service says it has loaded."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return int(sum(float(value) for value in re.findall(r'^ctrkit_versions_total{.*outcome="loaded".*} (\S+)$', text, re.MULTILINE)))
