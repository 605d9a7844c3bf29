"""The services that ``ctrkit bench serving`` measures, all around the same ONNX file."""

import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ctrkit.errors import CtrkitError

STAGES = ("read", "parse", "queue", "run", "answer", "total")

Stages = dict[str, tuple[float, float]]
"""Sum of seconds and count of requests, by stage."""


@dataclass(frozen=True)
class Service:
    """How to start one and ask it.

    Attributes:
        command: to which the port is appended.
        ready: path that answers with 200 once it is ready.
        path: that scores.
        tells_stages: whether its ``/metrics`` say where the time goes.
    """

    name: str
    command: list[str]
    workers: int
    ready: str
    path: str = "/score"
    tells_stages: bool = False

    def stages(self, port: int) -> Stages:
        """Each stage so far, all workers together; empty if it does not tell."""
        if not self.tells_stages:
            return {}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return {stage: (_sum(text, stage, "sum"), _sum(text, stage, "count")) for stage in STAGES}


def _sum(text: str, stage: str, what: str) -> float:
    return sum(map(float, re.findall(rf'^ctrkit_stage_seconds_{what}{{.*stage="{stage}".*}} (\S+)$', text, re.MULTILINE)))


def mean_stages(before: Stages, after: Stages) -> dict[str, float]:
    """Milliseconds a request, by stage."""
    means = {}
    for stage in after:
        count = after[stage][1] - before[stage][1]
        means[f"{stage}_ms"] = 1000 * (after[stage][0] - before[stage][0]) / count if count else float("nan")
    return means


def all_services(repo: Path, name: str, bundle: Path, workers: int, peer_python: Path | None) -> list[Service]:
    """Plain FastAPI, then with ``peer_python`` LitServe and BentoML, then ctrkit.

    Raises:
        CtrkitError: an environment of the peers without one of them, or without ctrkit.
    """
    ours = [sys.executable, "-m", "pipelines.cli", "serve", str(repo), "--workers", str(workers), "--port"]
    plain = [sys.executable, "-m", "pipelines.bench.plain_service", str(bundle), str(workers)]
    services = [Service("plain", plain, workers, "/openapi.json")]
    if peer_python is not None:
        _check(peer_python)
        for peer, ready in (("litserve", "/health"), ("bentoml", "/readyz")):
            command = [str(peer_python), "-m", f"pipelines.bench.{peer}_service", str(bundle), str(workers)]
            services.append(Service(peer, command, workers, ready))
    return [*services, Service("ctrkit", ours, workers, "/readyz", f"/v1/models/{name}:score", tells_stages=True)]


def _check(python: Path) -> None:
    code = "import bentoml, litserve, onnxruntime, pipelines.bench"
    try:
        ended = subprocess.run([str(python), "-c", code], check=False, capture_output=True, text=True)
    except OSError as error:
        raise CtrkitError(f"--peer-python: cannot run {python}: {error.strerror}", "Name a Python interpreter") from error
    if ended.returncode != 0:
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CtrkitError(f"--peer-python: {python}: {said}", "In its environment: pip install '.[serving]' litserve bentoml")
