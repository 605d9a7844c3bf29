"""The routes of the Open Inference Protocol v2: https://github.com/kserve/open-inference-protocol, and Triton's model repository.

``tritonclient[http]`` works against them unchanged.
"""

from enum import Enum
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

import ctrkit
from ctrkit.errors import CtrkitError
from serving.bodies import SPLIT_KEY, InferResponse, ProtocolError, infer_schema
from serving.http import add_direct, header, json_response, read_body
from serving.predict import Predictions
from serving.problems import Forbidden, InvalidBody, Refused
from serving.repository import Repository
from serving.settings import ServingSettings
from serving.unpacking import unpacked
from serving.wire import v2
from serving.wire.ask import JSON
from serving.wire.json_text import parse

TAGS: list[str | Enum] = ["open inference protocol"]
BINARY = "application/octet-stream"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository"]


class CannotLoad(Refused):
    """A model that was asked for, and whose files cannot be served."""

    status = 400


def add_open_inference(app: FastAPI, repository: Repository, predictions: Predictions, settings: ServingSettings) -> None:
    """All that is below ``/v2``."""
    about = "Probabilities of tensors under the graph's own names."
    binary = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
    body = {"required": True, "content": {JSON: {"schema": infer_schema()}, **binary}}
    documented: dict[str, Any] = {
        "openapi_extra": {"requestBody": body, "parameters": [SPLIT_KEY]},
        "response_model": InferResponse,
        "responses": {**_refusals(400, 401, 404, 408, 413, 415, 429, 503), 200: {"content": binary}},
    }
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        add_direct(app, path, predictions.infer, about, name="infer", tags=TAGS, **documented)
    app.include_router(_about(repository, settings))


def _about(repository: Repository, settings: ServingSettings) -> APIRouter:
    """All but ``infer``."""
    router = APIRouter(prefix="/v2", tags=TAGS, responses=_refusals(400, 401, 404, 503))
    packed = _refusals(408, 413, 415)

    @router.get("")
    @router.get("/", include_in_schema=False)
    async def server() -> Response:
        """Who serves."""
        return json_response({"name": "ctrkit", "version": ctrkit.__version__, "extensions": EXTENSIONS})

    @router.get("/health/live")
    async def live() -> Response:
        """The process is up."""
        return json_response({"live": True})

    @router.get("/health/ready")
    async def ready() -> Response:
        """All models are loaded and warm."""
        repository.require_ready()
        return json_response({"ready": True})

    @router.get("/models/{name}/versions/{version}/ready")
    @router.get("/models/{name}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """The model answers."""
        model = repository.version(name, version)
        return json_response({"name": model.name, "ready": True})

    @router.get("/models/{name}/versions/{version}")
    @router.get("/models/{name}")
    async def metadata(name: str, version: str | None = None) -> Response:
        """A model's inputs and outputs."""
        return json_response(v2.metadata(repository.served(name, version).bundle, repository.versions(name)))

    @router.get("/models/{name}/versions/{version}/config")
    @router.get("/models/{name}/config")
    async def config(name: str, version: str | None = None) -> Response:
        """A model's configuration, as Triton has it."""
        return json_response(v2.config(repository.served(name, version).bundle))

    @router.post("/repository/index", responses=packed)
    async def index(request: Request) -> Response:
        """Every version that is served or was refused, and why."""
        only_ready = (await _content(request)).get("ready", False) is True
        repository.require_ready()
        found = [
            {"name": name, "version": str(state.version), "state": state.state, "reason": state.reason}
            for name, states in repository.states().items()
            for state in states
            if state.state == "READY" or not only_ready
        ]
        return json_response(found)

    @router.post("/repository/models/{name}/load", responses={**packed, **_refusals(403)})
    async def load(name: str, request: Request) -> Response:
        """Look at the model's folder now, and serve what is there."""
        _allow()
        if (await _content(request)).get("parameters"):
            raise InvalidBody(("parameters",), "a model is served as its files have it: load takes no parameters")
        repository.require_ready()
        await _changed(repository.load_model, name)
        return json_response({})

    @router.post("/repository/models/{name}/unload", responses={**packed, **_refusals(403)})
    async def unload(name: str, request: Request) -> Response:
        """Serve the model no more."""
        _allow()
        await _content(request)
        repository.require_ready()
        await _changed(repository.unload_model, name)
        return json_response({})

    def _allow() -> None:
        if not settings.control:
            raise Forbidden("this service does not let clients load and unload models", "Start it with --control")

    async def _content(request: Request) -> dict[str, Any]:
        body = await read_body(request.receive, request.scope, settings.limits.bytes)
        body = unpacked(body, header(request.scope, b"content-encoding"), settings.limits.bytes)
        return parse(body, settings.max_depth, optional=None) if body else {}

    return router


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Their entries in the document."""
    return {status: {"model": ProtocolError} for status in statuses}


async def _changed(change: Any, name: str) -> None:
    try:
        await run_in_threadpool(change, name)
    except Refused:
        raise
    except CtrkitError as error:
        raise CannotLoad(error.problem, error.remedy) from error
