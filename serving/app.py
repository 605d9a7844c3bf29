"""The scoring service."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.types import ASGIApp

import ctrkit
from ctrkit.errors import CtrkitError
from ctrkit.schema import Kind
from serving import console
from serving.bodies import (
    SPLIT_KEY,
    ModelDescription,
    ModelList,
    RankRequest,
    RankResponse,
    Refusal,
    ScoreRequest,
    ScoreResponse,
    TowersDescription,
    Unprocessable,
)
from serving.gate import Gate
from serving.http import Direct, Handler, add_direct, add_error_handlers, json_response
from serving.keys import read_keys
from serving.metrics import Metrics
from serving.model import Served
from serving.open_inference import add_open_inference
from serving.peers import Peers
from serving.predict import Predictions
from serving.recommend import Recommendations
from serving.recommend_metrics import TowerMetrics
from serving.repository import Repository, Version, Watcher
from serving.rollout import Rollout
from serving.settings import ServingSettings
from serving.shadow import Shadow
from serving.towers import ServedTowers, describe
from serving.tracing import open_tracer
from serving.wire.ask import ARROW, JSON
from serving.wire.recommend import RecommendRequest, RecommendResponse, RemoveRequest, RemoveResponse, UpsertRequest, UpsertResponse

log = logging.getLogger("ctrkit.serving")


def create_app(
    repo: str | Path,
    settings: ServingSettings | None = None,
    on_failure: Callable[[CtrkitError], None] | None = None,
    peers: Peers | None = None,
) -> ASGIApp:
    """The service for a model repository. It listens at once; ``/readyz`` is 503 until the models are loaded and warm.

    Args:
        on_failure: called when the models cannot be loaded; without it the service stays up and ``/readyz`` tells why.
        peers: of one worker among several. It listens when its models are loaded: others answer meanwhile.
    """
    settings = settings or ServingSettings()
    pool = ThreadPoolExecutor(settings.runs, "score")
    metrics = Metrics(settings)
    keys = read_keys(settings.key_file)
    repository = Repository(repo, pool, settings, lambda name, outcome: metrics.reloads.labels(name, outcome).inc())
    watcher = Watcher(repository, settings.poll_s)
    rollout = Rollout(repository, settings)
    tracer = open_tracer() if settings.tracing else None
    shadow = Shadow(rollout, settings.shadow_rows)
    metrics.registry.register(shadow)
    predictions = Predictions(pool, metrics, settings, rollout, shadow)
    tower_metrics = TowerMetrics(lambda: [v for _, _, versions in repository.answering() for v in versions if isinstance(v, ServedTowers)])
    metrics.registry.register(tower_metrics)
    recommendations = Recommendations(repository, pool, tower_metrics, settings, rollout, predictions.answered)

    def load() -> bool:
        try:
            repository.load()
        except CtrkitError as error:  # the repository keeps it: /readyz and every request tell it
            log.error("models cannot be loaded", extra={"reason": str(error)})
            if on_failure:
                on_failure(error)
            return False
        return True

    def look_after(loaded: bool | None) -> None:
        if (load() if loaded is None else loaded) and settings.poll_s:
            watcher.watch()

    def own_metrics() -> bytes:
        return metrics.text(repository.answering())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loaded = await run_in_threadpool(load) if peers is not None else None
        if peers is not None:
            peers.listen(own_metrics)
        thread = threading.Thread(target=look_after, args=(loaded,), name="watch-models", daemon=True)
        thread.start()
        yield
        if peers is not None:
            peers.close()
        watcher.stop()
        repository.close()
        await run_in_threadpool(thread.join)  # an interpreter that ends under onnxruntime's feet aborts
        await run_in_threadpool(shadow.close)
        if tracer is not None:
            await run_in_threadpool(tracer.close)
        pool.shutdown()

    app = FastAPI(title="ctrkit", summary="Click probabilities from raw feature values", version=ctrkit.__version__, lifespan=lifespan)
    add_error_handlers(app)
    _add_predictions(app, predictions)
    _add_recommendations(app, recommendations)
    app.include_router(console.router)
    add_open_inference(app, repository, predictions, settings)

    @app.get("/v1/models", tags=["models"], response_model=ModelList, responses=_refusals(401, 503))
    async def models() -> Response:
        """The models served, and versions that were refused."""
        found = ((name, repository.default(name)) for name in repository.names())
        return json_response({"models": [_summary(repository, rollout, name, version) for name, version in found]})

    @app.get(
        "/v1/models/{name}/versions/{version}",
        tags=["models"],
        response_model=ModelDescription | TowersDescription,
        responses=_refusals(401, 404, 405, 503),
    )
    @app.get(
        "/v1/models/{name}",
        tags=["models"],
        response_model=ModelDescription | TowersDescription,
        responses=_refusals(401, 404, 405, 503),
    )
    async def model(name: str, version: str | None = None) -> Response:
        """A model's features, and its metrics in training."""
        if ":" in name:  # a way to ask a model, not a model's name
            raise HTTPException(405, headers={"Allow": "POST"})
        found = repository.version(name, version)
        if isinstance(found, ServedTowers):
            return json_response({**_summary(repository, rollout, name, found), **describe(found)})
        return json_response(_description(repository, rollout, found))

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Response:
        """The process is up."""
        return json_response({"status": "ok"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["health"], responses=_refusals(503))
    async def readyz() -> Response:
        """All models are loaded and warm."""
        return json_response({"status": "ready", "models": repository.names()})

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=_refusals(401))
    async def prometheus() -> Response:
        """Latencies, batch sizes, scores, missing and unknown values, for Prometheus."""
        return Response(await run_in_threadpool(peers.text if peers is not None else own_metrics), media_type=CONTENT_TYPE_LATEST)

    gate = Gate(app, [route for route in app.routes if isinstance(route, Direct)], keys, metrics, settings, tracer)
    if not settings.cors_origins:
        return gate
    return CORSMiddleware(gate, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"])


def _add_predictions(app: FastAPI, predictions: Predictions) -> None:
    """``:score`` and ``:rank``. They read their bodies themselves; what FastAPI is told of them is for ``/docs``."""

    def add(verb: str, handler: Handler, about: str, **documented: Any) -> None:
        for path in (f"/v1/models/{{name}}:{verb}", f"/v1/models/{{name}}/versions/{{version}}:{verb}"):
            add_direct(app, path, handler, about, name=verb, tags=["predict"], **documented)

    arrow = {"schema": {"type": "string", "format": "binary"}}
    about = "Click probabilities of rows of raw feature values, in the rows' order."
    add("score", predictions.score, about, **_documented(ScoreRequest, ScoreResponse, {ARROW: arrow}, parameters=[SPLIT_KEY]))
    rank = _documented(RankRequest, RankResponse, parameters=[SPLIT_KEY])
    add("rank", predictions.rank, "The candidates of one context, the likeliest click first.", **rank)


def _add_recommendations(app: FastAPI, recommendations: Recommendations) -> None:
    """``:recommend`` and the changes of items, whose rows all versions of a model take.

    Without a journal the changes end with the service.
    """

    def add(path: str, handler: Handler, about: str, request: type[BaseModel], response: type[BaseModel], *parameters: Any) -> None:
        documented = _documented(request, response, parameters=parameters)
        add_direct(app, path, handler, about, name=path.rpartition(":")[2], tags=["recommend"], **documented)

    about = "The best items for users, of a model of two towers."
    for path in ("/v1/models/{name}:recommend", "/v1/models/{name}/versions/{version}:recommend"):
        add(path, recommendations.recommend, about, RecommendRequest, RecommendResponse, SPLIT_KEY)
    upsert, remove = "Add items or change them.", "Take items out."
    add("/v1/models/{name}/items:upsert", recommendations.upsert, upsert, UpsertRequest, UpsertResponse)
    add("/v1/models/{name}/items:remove", recommendations.remove, remove, RemoveRequest, RemoveResponse)


def _documented(
    request: type[BaseModel], response: type[BaseModel], others: dict[str, Any] | None = None, parameters: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A route's entry in ``/docs``."""
    body = {"required": True, "content": {JSON: {"schema": request.model_json_schema()}, **(others or {})}}
    responses = {
        **_refusals(400, 401, 403, 404, 406, 408, 413, 415, 429, 503),
        422: {"model": Unprocessable},
        200: {"content": others or {}},
    }
    return {"openapi_extra": {"requestBody": body, "parameters": list(parameters)}, "response_model": response, "responses": responses}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Their entries in ``/docs``."""
    return {status: {"model": Refusal} for status in statuses}


def _summary(repository: Repository, rollout: Rollout, name: str, model: Version | None) -> dict[str, Any]:
    refused = [{"version": state.version, "reason": state.reason} for state in repository.states(name)[name] if state.reason]
    kind = None if model is None else "towers" if isinstance(model, ServedTowers) else "scorer"
    version = None if model is None else model.version
    about = {"name": name, "kind": kind, "version": version, "versions": repository.versions(name), "refused": refused}
    return {**about, **rollout.about(name)}


def _description(repository: Repository, rollout: Rollout, model: Served) -> dict[str, Any]:
    manifest = model.bundle.manifest
    features = [
        {"name": feature.name, "kind": feature.kind.value, "dtype": "number" if feature.kind is Kind.NUMERIC else feature.dtype}
        for feature in manifest.features
    ]
    about = manifest.model_dump(mode="json", include={"model", "created", "label", "metrics"})
    return {**_summary(repository, rollout, model.name, model), **about, "features": features}
