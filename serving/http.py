"""Bodies in, JSON out, errors as FastAPI itself writes them: ``{"detail": ...}``."""

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from serving.predict import InvalidBody, TooLarge
from serving.repository import NotReady, UnknownModel


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def read_body(request: Request, max_bytes: float) -> bytes:
    """The request's body.

    Raises:
        TooLarge: more than ``max_bytes``; the rest is not read.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise TooLarge(f"the body has more than {max_bytes / 2**20:g} MB: send its rows in several requests")
        parts.append(part)
    return b"".join(parts)


def add_error_handlers(app: FastAPI) -> None:
    """422 names the place in the body, 404 the known models, 405 how models are asked, 413 the limit, 503 what the service waits for."""

    async def invalid(_: Request, error: Any) -> Response:
        return json_response({"detail": [{"loc": ["body", *error.location], "msg": error.problem, "type": "value_error"}]}, 422)

    app.add_exception_handler(InvalidBody, invalid)
    for kind, status in ((UnknownModel, 404), (TooLarge, 413), (NotReady, 503)):
        app.add_exception_handler(kind, _refusal(status))
    app.add_exception_handler(405, _not_asked_like_this)


async def _not_asked_like_this(request: Request, _: Exception) -> Response:
    how = "POST asks a model: /v1/models/<name>:score or :rank. GET describes it: /v1/models/<name>. See /docs."
    return json_response({"detail": f"{request.method} {request.url.path} is not answered. {how}"}, 405)


def _refusal(status: int) -> Any:
    async def handler(_: Request, error: Exception) -> Response:
        return json_response({"detail": str(error)}, status)

    return handler
