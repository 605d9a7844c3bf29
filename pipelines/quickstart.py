"""``ctrkit quickstart``: the whole path on a simulated log, each stage as its own verb would do it."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import polars as pl

from ctrkit.config import Experiment
from ctrkit.config_file import load_config
from ctrkit.data.files import find_files
from ctrkit.data.simulate import latest
from ctrkit.errors import CtrkitError
from ctrkit.training.metrics import auc, logloss
from pipelines.data import simulate_log
from pipelines.export import export_run_to
from pipelines.prepare import prepared
from pipelines.score import score
from pipelines.terminal import Terminal
from pipelines.train import train_experiment

TEMPLATE = Path(__file__).with_name("quickstart.yaml")
HTTP_ROWS = 500
HTTP_BATCH = 100
START_SECONDS = 60
"""How long the service may take to load its model."""


def run_quickstart(rows: int, out: Path, seed: int, overrides: list[str], screen: Terminal) -> dict[str, Any]:
    """Simulates, prepares, trains, exports, serves, and compares the service's answers with offline scores of the same rows.

    Returns:
        ``{auc, logloss, best_auc, best_logloss, http_max_abs_diff, run, bundle, seconds, config}``; ``best_*`` are those of the
        true click probabilities on the same test rows.
    """
    started = time.perf_counter()
    _heading(screen, "1/5", "Simulate a click log")
    log = out / f"log-{rows}-{seed}"
    if not (log / "README.md").exists():
        shutil.rmtree(log, ignore_errors=True)
        simulate_log(rows, seed, log, screen)
    parts = f"{log}/part-*.parquet"
    config = out / "quickstart.yaml"
    config.write_text(
        Template(TEMPLATE.read_text(encoding="utf8")).substitute(parts=json.dumps(parts), output=json.dumps(str(out))), encoding="utf8"
    )
    experiment = load_config(config, overrides)

    _heading(screen, "2/5", f"Prepare it and train {experiment.model.name}")
    trained = train_experiment(experiment, None, False, screen)

    _heading(screen, "3/5", "Export one ONNX file")
    repo = out / "repo"
    bundle = export_run_to(Path(trained["run"]), repo, None, screen)["bundle"]

    _heading(screen, "4/5", "Score the log offline")
    predictions = out / "predictions.parquet"
    score(bundle, parts, predictions, screen)

    _heading(screen, "5/5", f"Serve it, and ask for {HTTP_ROWS} of the test rows over HTTP")
    asked = pl.scan_parquet(parts).tail(HTTP_ROWS).collect()
    offline = pl.read_parquet(predictions)["probability"].tail(HTTP_ROWS).to_numpy()
    with service(repo) as url:
        online = ask(url, experiment, asked)
    difference = float(np.abs(offline - online).max())

    test = latest(find_files(parts), prepared(experiment, screen).rows["test"])
    clicks, truth = test["click"].to_numpy(), test["true_probability"].to_numpy()
    result = {
        "auc": trained["test"]["auc"],
        "logloss": trained["test"]["logloss"],
        "best_auc": auc(clicks, truth),
        "best_logloss": logloss(clicks, truth),
        "http_max_abs_diff": difference,
        "run": trained["run"],
        "bundle": bundle,
        "config": str(config),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _conclude(result, repo, screen)
    return result


@contextmanager
def service(repo: Path) -> Iterator[str]:
    """``ctrkit serve`` on a free port of this machine, in a process of its own; gives its address and stops it at the end.

    Raises:
        CtrkitError: it does not get ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(repo), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    lines = said.read().strip().splitlines() or ["it said nothing"]
                    raise CtrkitError(f"the service did not start: {lines[-1]}", f"Try it alone: ctrkit serve {repo}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait()


def ask(url: str, experiment: Experiment, frame: pl.DataFrame) -> np.ndarray:
    """Probabilities ``[rows]`` from the service, of the log's raw values as JSON."""
    name = experiment.export.name or experiment.name
    raw = frame.select(feature.name for feature in experiment.features).to_dicts()
    answers: list[float] = []
    for first in range(0, len(raw), HTTP_BATCH):
        body = json.dumps({"rows": raw[first : first + HTTP_BATCH]}).encode()
        request = urllib.request.Request(f"{url}/v1/models/{name}:score", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answers += json.load(response)["probabilities"]
    return np.array(answers)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _heading(screen: Terminal, number: str, text: str) -> None:
    screen.console.print(f"\n[bold cyan]{number}[/] [bold]{text}[/]")


def _conclude(result: dict[str, Any], repo: Path, screen: Terminal) -> None:
    screen.table(
        ("on the test rows", "AUC", "logloss"),
        [
            ("the model", f"{result['auc']:.4f}", f"{result['logloss']:.4f}"),
            ("best reachable (the true click probabilities)", f"{result['best_auc']:.4f}", f"{result['best_logloss']:.4f}"),
        ],
        title=f"Done in {result['seconds']:.0f} s",
    )
    screen.console.print(
        f"Model AUC {result['auc']:.4f} of {result['best_auc']:.4f} reachable. "
        f"HTTP score = offline score: the largest difference over {HTTP_ROWS} rows is {result['http_max_abs_diff']:.1e}.",
        style="green",
    )
    screen.console.print("\nWhat to try next:", style="bold")
    for command, what in (
        (f"ctrkit serve {repo}", "then open http://127.0.0.1:8000/docs"),
        (f"ctrkit train {result['config']} --set 'model={{name: deepfm}}'", "another model; 'ctrkit models' lists them"),
        ("ctrkit validate my.yaml", "your own log: the README shows such a file"),
    ):
        screen.console.print(f"  {command}   [dim]# {what}[/]")
