"""The service one writes first: FastAPI, a pydantic model for a row, a NumPy array for each column, ``session.run``.

Run as ``python -m pipelines.bench.plain_service BUNDLE PORT``. It answers ``POST /score`` as ``ctrkit serve`` answers ``:score``.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from ctrkit.bundle import MODEL_FILE, open_bundle, output_names
from ctrkit.schema import MISSING_INT, Feature, Kind


def plain_app(bundle_path: str) -> FastAPI:
    """The app for a bundle whose multi-valued cells are lists."""
    bundle = open_bundle(bundle_path)
    session = onnxruntime.InferenceSession(str(bundle.path / MODEL_FILE), providers=["CPUExecutionProvider"])
    names = list(output_names(bundle.tasks))
    fields: dict[str, Any] = {feature.name: (_type(feature) | None, None) for feature in bundle.features}
    row_model = create_model("Row", **fields)

    class Request(BaseModel):
        rows: list[row_model]  # type: ignore[valid-type]

    class Response(BaseModel):
        probabilities: list[float]

    app = FastAPI()

    @app.post("/score")
    def score(request: Request) -> Response:
        feed: dict[str, np.ndarray] = {}
        for feature in bundle.features:
            values = [getattr(row, feature.name) for row in request.rows]
            if feature.kind is Kind.NUMERIC:
                feed[feature.name] = np.array([np.nan if value is None else value for value in values], np.float64)
                continue
            missing, dtype = ("", object) if feature.dtype == "string" else (MISSING_INT, np.int64)
            if feature.multi_valued:
                bags = [value or [] for value in values]
                feed[f"{feature.name}.values"] = np.array([element for bag in bags for element in bag], dtype)
                feed[f"{feature.name}.lengths"] = np.array([len(bag) for bag in bags], np.int64)
            else:
                feed[feature.name] = np.array([missing if value is None else value for value in values], dtype)
        return Response(probabilities=np.asarray(session.run(names, feed)[0]).tolist())

    return app


def _type(feature: Feature) -> Any:
    value: Any = float if feature.kind is Kind.NUMERIC else str if feature.dtype == "string" else int
    return list[value] if feature.multi_valued else value


if __name__ == "__main__":
    uvicorn.run(plain_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
