"""The same graph behind BentoML: ``python -m pipelines.bench.bentoml_service BUNDLE WORKERS PORT``, answering ``POST /score``.

Its own metrics, traces and access log are off, and it does not batch: a request has many rows already.
"""

import os
import sys
from typing import Any

BUNDLE, WORKERS = "CTRKIT_BENCH_BUNDLE", "CTRKIT_BENCH_WORKERS"
"""Environment variables: BentoML imports this module again in each worker."""

if __name__ == "__main__":
    os.environ |= {BUNDLE: sys.argv[1], WORKERS: sys.argv[2], "BENTOML_DO_NOT_TRACK": "True"}
    serve = ["serve", "pipelines.bench.bentoml_service:Scorer", "--host", "127.0.0.1", "--port", sys.argv[3]]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *serve])

import bentoml  # pyright: ignore[reportMissingImports]

from ctrkit.bundle import open_bundle
from pipelines.bench.peer_feed import PlainModel


@bentoml.service(workers=int(os.environ[WORKERS]), metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Scorer:
    def __init__(self) -> None:
        self._model = PlainModel(open_bundle(os.environ[BUNDLE]))

    @bentoml.api(route="/score")
    def score(self, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        return {"probabilities": self._model.score(lambda name: [row.get(name) for row in rows])}
