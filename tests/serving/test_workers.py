"""Several processes behind one port."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.bundle import WEIGHTS_FILE
from ctrkit.errors import CtrkitError
from pipelines.serve import serving_settings
from serving.peers import together
from tests.handmade import make_bundle
from tests.serving.live import wait_until

ROW = {"user": "u1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def workers(repo: Path, log: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A service of two in a process of its own, as the command starts it, and the parent."""
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(repo), "--port", str(port), "--workers", "2", *options]
    with log.open("wb") as stderr:
        parent = subprocess.Popen(command, stdout=stderr, stderr=stderr)
    try:
        yield f"http://127.0.0.1:{port}", parent
    finally:
        parent.terminate()
        parent.wait(60)


def told(address: str) -> list[tuple[str, dict[str, str], float]]:
    text = httpx.get(f"{address}/metrics", timeout=30).text
    return [(sample.name, sample.labels, sample.value) for family in text_string_to_metric_families(text) for sample in family.samples]


def up(address: str) -> dict[str, float]:
    return {labels["worker"]: value for name, labels, value in told(address) if name == "ctrkit_worker_up"}


def events(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_all_answer_one_tells_for_all_and_a_dead_one_comes_back(tmp_path: Path) -> None:
    make_bundle(tmp_path / "repo")
    log = tmp_path / "log"
    with workers(tmp_path / "repo", log, "--set", "poll_s=0.2") as (address, parent):
        wait_until(lambda: ready(address), 120)
        wait_until(lambda: up(address) == {"0": 1, "1": 1}, 120)

        def ask(_: int) -> int:
            return httpx.post(f"{address}/v1/models/clicks:score", json={"rows": [ROW]}, timeout=30).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(80))) == {200}
        counts = {labels["worker"]: value for name, labels, value in told(address) if name == "ctrkit_score_count"}
        assert sum(counts.values()) == 80 and set(counts) <= {"0", "1"}, "whoever is asked tells the same"
        assert {sum(v for n, _, v in told(address) if n == "ctrkit_score_count") for _ in range(6)} == {80}

        scratch = make_bundle(tmp_path / "new", version=2, shift=1.0)
        scratch.rename(tmp_path / "repo" / "clicks" / "2")
        wait_until(
            lambda: {labels["worker"] for name, labels, v in told(address) if name == "ctrkit_model_version" and v == 2} == {"0", "1"}
        )

        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        victim = next(int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: any(event["event"] == "worker died" and event["exit"] == -9 for event in events(log)))
        statuses, deadline = set(), time.monotonic() + 60
        while 0 in up(address).values() and time.monotonic() < deadline:
            statuses.add(ask(0))
        assert statuses <= {200} and up(address) == {"0": 1, "1": 1}, "the other one answers meanwhile"
        parent.terminate()
        assert parent.wait(60) == 0
    assert not ready(address)


def test_a_service_that_cannot_load_says_why_and_ends(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "repo")
    (folder / "model.onnx").write_bytes(b"")
    with workers(tmp_path / "repo", tmp_path / "log") as (_, parent):
        assert parent.wait(120) == 2
    assert "corrupted: it has 0 bytes" in " ".join((tmp_path / "log").read_text().split())


def test_a_setting_that_no_worker_can_use_ends_the_service(tmp_path: Path) -> None:
    make_bundle(tmp_path / "repo")
    with workers(tmp_path / "repo", tmp_path / "log", "--key-file", str(tmp_path / "absent")) as (_, parent):
        assert parent.wait(120) == 2
    assert "the key file" in (tmp_path / "log").read_text()


def test_clients_cannot_control_several_workers() -> None:
    with pytest.raises(CtrkitError, match="would reach one of several workers"):
        serving_settings(None, [], True, [], [], workers=2)
    assert serving_settings(None, [], True, [], []).control


def test_workers_share_the_cores_for_runs() -> None:
    cores = os.cpu_count() or 1
    assert serving_settings(None, [], False, [], []).runs == cores
    assert serving_settings(None, [], False, [], [], workers=max(2, cores)).runs == 1


def test_the_workers_metrics_under_one_another_are_prometheus_text() -> None:
    one = '# HELP a_total A\n# TYPE a_total counter\na_total{x="y {z} \\" 1"} 1.0\n# HELP b B\n# TYPE b gauge\nb 2.0\n'
    two = '# HELP a_total A\n# TYPE a_total counter\na_total{x="y"} 3.0\n# HELP c C\n# TYPE c gauge\nc{} 4.0\n'
    text = together([one, None, two]).decode()
    samples = [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]
    assert ("a_total", {"worker": "0", "x": 'y {z} " 1'}, 1.0) in samples and ("a_total", {"worker": "2", "x": "y"}, 3.0) in samples
    assert ("b", {"worker": "0"}, 2.0) in samples and ("c", {"worker": "2"}, 4.0) in samples
    assert [value for name, _, value in samples if name == "ctrkit_worker_up"] == [1, 0, 1]
    assert text.count("# TYPE a_total counter") == 1


def test_weights_beside_the_graph_are_pages_that_workers_share(tmp_path: Path) -> None:
    """Loaded and looked up in, a table of 64 MB takes 64 MB of the file's pages and none of the process's own memory."""
    table = np.zeros((2**18, 64), np.float32)
    table[:, 0] = np.arange(len(table))
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"])],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 64])],
        initializer=[numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location=WEIGHTS_FILE)
    program = """
import re, sys
from pathlib import Path
import numpy as np
from ctrkit.bundle import open_session
def own() -> int: return int(re.findall(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0])
import onnxruntime
before = own()
session = open_session(Path(sys.argv[1]), 1)
(rows,) = session.run(None, {"ids": np.arange(0, 2**18, 16)})
assert (rows[:, 0] == np.arange(0, 2**18, 16)).all()
del rows
print(own() - before)
"""
    grown = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 24_000, "kB; the looked up rows are 4 MB"
