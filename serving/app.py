"""The scoring service."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

import ctrkit
from ctrkit.bundle import Bundle
from ctrkit.errors import CtrkitError
from ctrkit.schema import Kind
from serving import predict
from serving.bodies import ModelDescription, ModelList, RankRequest, RankResponse, Refusal, ScoreRequest, ScoreResponse, Unprocessable
from serving.http import add_error_handlers, json_response, read_body
from serving.repository import Repository
from serving.settings import ServingSettings

log = logging.getLogger("uvicorn.error")


def create_app(
    repo: str | Path, settings: ServingSettings | None = None, on_failure: Callable[[CtrkitError], None] | None = None
) -> FastAPI:
    """The service for a model repository. It listens at once; ``/readyz`` is 503 until the models are loaded.

    Args:
        on_failure: called when the models cannot be loaded; without it the service stays up and ``/readyz`` tells why.
    """
    limits = settings or ServingSettings()
    repository = Repository(repo, limits.threads)
    pool = ThreadPoolExecutor(limits.workers, "score")

    def load() -> None:
        try:
            repository.load()
        except CtrkitError as error:  # the repository keeps it: /readyz and every request tell it
            log.error("%s", error)
            if on_failure:
                on_failure(error)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=load, name="load-models", daemon=True).start()
        yield
        pool.shutdown()

    app = FastAPI(title="ctrkit", summary="Click probabilities from raw feature values", version=ctrkit.__version__, lifespan=lifespan)
    add_error_handlers(app)

    async def answer(request: Request, work: Callable[[Bundle, bytes, int], dict[str, Any]], name: str, version: str | None) -> Response:
        bundle = repository.bundle(name, version)
        body = await read_body(request, limits.max_body_mb * 2**20)
        return json_response(await asyncio.get_running_loop().run_in_executor(pool, work, bundle, body, limits.max_rows))

    @app.post("/v1/models/{name}/versions/{version}:score", tags=["predict"], **_documented(ScoreRequest, ScoreResponse))
    @app.post("/v1/models/{name}:score", tags=["predict"], **_documented(ScoreRequest, ScoreResponse))
    async def score(request: Request, name: str, version: str | None = None) -> Response:
        """Click probabilities of rows of raw feature values, in the rows' order."""
        return await answer(request, predict.score, name, version)

    @app.post("/v1/models/{name}/versions/{version}:rank", tags=["predict"], **_documented(RankRequest, RankResponse))
    @app.post("/v1/models/{name}:rank", tags=["predict"], **_documented(RankRequest, RankResponse))
    async def rank(request: Request, name: str, version: str | None = None) -> Response:
        """The candidates of one context, the likeliest click first."""
        return await answer(request, predict.rank, name, version)

    @app.get("/v1/models", tags=["models"], response_model=ModelList)
    async def models() -> Response:
        """The models served."""
        return json_response({"models": [_summary(repository, repository.bundle(name)) for name in repository.names()]})

    @app.get("/v1/models/{name}/versions/{version}", tags=["models"], response_model=ModelDescription, responses={404: {"model": Refusal}})
    @app.get("/v1/models/{name}", tags=["models"], response_model=ModelDescription, responses={404: {"model": Refusal}})
    async def model(name: str, version: str | None = None) -> Response:
        """A model's features, and its metrics in training."""
        if ":" in name:  # a way to ask a model, not a model's name
            raise HTTPException(405)
        return json_response(_description(repository, repository.bundle(name, version)))

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Response:
        """The process is up."""
        return json_response({"status": "ok"})

    @app.get("/readyz", tags=["health"], responses={503: {"model": Refusal}})
    async def readyz() -> Response:
        """All models are loaded."""
        return json_response({"status": "ready", "models": repository.names()})

    return app


def _documented(request: type[ScoreRequest] | type[RankRequest], response: type[Any]) -> dict[str, Any]:
    """A route's entry in ``/docs``: its body is read by orjson, not by pydantic, and would not be there otherwise."""
    body = {"required": True, "content": {"application/json": {"schema": request.model_json_schema()}}}
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (404, 413, 503)}
    return {"openapi_extra": {"requestBody": body}, "response_model": response, "responses": {**refusals, 422: {"model": Unprocessable}}}


def _summary(repository: Repository, bundle: Bundle) -> dict[str, Any]:
    name = bundle.manifest.name
    return {"name": name, "version": bundle.manifest.version, "versions": repository.versions(name)}


def _description(repository: Repository, bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    features = [
        {"name": feature.name, "kind": feature.kind.value, "dtype": "number" if feature.kind is Kind.NUMERIC else feature.dtype}
        for feature in manifest.features
    ]
    about = manifest.model_dump(mode="json", include={"model", "created", "label", "metrics"})
    return {**_summary(repository, bundle), **about, "features": features}
