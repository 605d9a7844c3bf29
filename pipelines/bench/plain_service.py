"""The service one writes first: FastAPI, a pydantic model for a row, a NumPy array for each column, ``session.run``.

Run as ``python -m pipelines.bench.plain_service BUNDLE WORKERS PORT``. It answers ``POST /score`` as ``ctrkit serve`` answers ``:score``.
"""

import os
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from ctrkit.bundle import open_bundle
from ctrkit.schema import Feature, Kind
from pipelines.bench.peer_feed import PlainModel
from serving.server import KEEP_ALIVE_S

BUNDLE = "CTRKIT_BENCH_BUNDLE"
"""Environment variable with the bundle's path: each worker makes its own app."""


def plain_app() -> FastAPI:
    bundle = open_bundle(os.environ[BUNDLE])
    model = PlainModel(bundle)
    fields: dict[str, Any] = {feature.name: (_type(feature) | None, None) for feature in bundle.features}
    row_model = create_model("Row", **fields)

    class Request(BaseModel):
        rows: list[row_model]  # type: ignore[valid-type]

    class Response(BaseModel):
        probabilities: list[float]

    app = FastAPI()

    @app.post("/score")
    def score(request: Request) -> Response:
        return Response(probabilities=model.score(lambda name: [getattr(row, name) for row in request.rows]))

    return app


def _type(feature: Feature) -> Any:
    value: Any = float if feature.kind is Kind.NUMERIC else str if feature.dtype == "string" else int
    return list[value] if feature.multi_valued else value


if __name__ == "__main__":
    os.environ[BUNDLE] = sys.argv[1]
    workers, port = int(sys.argv[2]), int(sys.argv[3])
    app = "pipelines.bench.plain_service:plain_app"
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=workers, log_level="warning", timeout_keep_alive=KEEP_ALIVE_S)
