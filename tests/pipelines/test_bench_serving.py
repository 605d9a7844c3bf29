import asyncio
import sys
from pathlib import Path

import polars as pl
import pytest

from ctrkit.errors import CtrkitError
from pipelines.bench.load import closed_loop, open_loop, request
from pipelines.bench.serving import bench_serving
from pipelines.terminal import Terminal
from tests.handmade import make_bundle

GOLDEN = [{"user": "u1", "age": 40, "price": 2.5, "tags": ["a"]}, {"user": None, "age": None, "price": None, "tags": []}]


def test_both_services_are_measured_and_reported(tmp_path: Path) -> None:
    make_bundle(tmp_path / "repo", golden=GOLDEN)
    measured = bench_serving(tmp_path / "repo", [1, 5], [2], [1, 2], 0.3, None, tmp_path / "out", Terminal(as_json=True))
    assert [(row["workers"], row["rows"], row["side"], row["concurrency"]) for row in measured] == [
        (workers, rows, side, 2) for workers in (1, 2) for rows in (1, 5) for side in ("plain", "ctrkit")
    ]
    for row in measured:
        assert row["per_s"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] and row["cpu_ms"] >= 0
        if row["side"] == "ctrkit":
            parts = sum(row[f"{stage}_ms"] for stage in ("read", "parse", "queue", "run", "answer"))
            assert parts == pytest.approx(row["total_ms"], rel=1e-6) and row["graph_ms"] > 0
    assert pl.read_parquet(tmp_path / "out/serving.parquet").height == 8
    report = (tmp_path / "out/report.md").read_text()
    assert "| 1 | 5 | 2 |" in report and "| 2 | 1 | 2 |" in report and "Open loop" in report and (tmp_path / "out/report.html").is_file()


def test_what_cannot_be_measured_is_refused_before_anything_starts(tmp_path: Path) -> None:
    make_bundle(tmp_path / "repo", golden=GOLDEN)
    loads = ([1], [1], [1], 0.1)
    with pytest.raises(CtrkitError, match="no model repository"):
        bench_serving(tmp_path / "nothing", *loads, None, tmp_path / "out", Terminal(as_json=True))
    with pytest.raises(CtrkitError, match="cannot run .*nowhere"):
        bench_serving(tmp_path / "repo", *loads, tmp_path / "nowhere", tmp_path / "out", Terminal(as_json=True))
    with pytest.raises(CtrkitError, match="No module named") as refused:
        bench_serving(tmp_path / "repo", *loads, Path(sys.executable), tmp_path / "out", Terminal(as_json=True))
    assert "litserve bentoml" in str(refused.value.remedy)
    assert not (tmp_path / "out").exists()


class Slow(asyncio.Protocol):
    """Answers each request after 50 ms; the third of a connection with 503."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.asked = transport, 0

    def data_received(self, data: bytes) -> None:
        self.asked += 1
        status = b"503 Busy" if self.asked == 3 else b"200 OK"
        answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}"
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, self.transport.write, answer[:20])
        loop.call_later(0.051, self.transport.write, answer[20:])


def test_loads_count_answers_and_open_ones_count_from_when_they_were_due() -> None:
    async def both():
        server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        asked = [request("/x", b"{}")]
        closed = await closed_loop(port, asked, 2, 0.5)
        opened = await open_loop(port, asked, 1, 0.5, rate=40)
        server.close()
        return closed, opened

    closed, opened = asyncio.run(both())
    assert closed.statuses[503] == 2 and closed.statuses[200] == len(closed.latencies) > 2
    assert min(closed.latencies) >= 0.05 and closed.seconds >= 0.5
    assert opened.statuses[503] == 1
    assert max(opened.latencies) > 0.2, "asked twice as fast as one connection can be answered, requests wait"


class Gone(Slow):
    """Answers one request of a connection and closes it."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asyncio.get_running_loop().call_later(0.06, self.transport.close)


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_load_ends_where_the_service_closes_connections(loop: str) -> None:
    async def ask() -> None:
        server = await asyncio.get_running_loop().create_server(Gone, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        asked = [request("/x", b"{}")]
        load = closed_loop(port, asked, 1, 0.5) if loop == "closed" else open_loop(port, asked, 1, 1.5, rate=4)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(load, 10)
        server.close()

    asyncio.run(ask())
