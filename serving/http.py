"""ASGI as the service uses it: bodies in within their bound, answers out, refusals as the caller's protocol writes them."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from serving.problems import InvalidBody, Refused, TooLarge
from serving.wire.ask import JSON, Answer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


DRAIN_S, DRAIN_BYTES = 1.0, 64 * 2**20


class Gone(Exception):
    """The client hung up before its body was complete: nobody waits for an answer."""


class Direct(APIRoute):
    """A route that is documented like any other and handled by a plain ASGI callable.

    FastAPI's resolving of parameters costs as much as a model's graph for one row.
    """

    def __init__(self, path: str, endpoint: Any, **settings: Any) -> None:
        super().__init__(path, endpoint, **settings)
        self.app: ASGIApp = endpoint.handler


def add_direct(app: FastAPI, path: str, handler: Handler, about: str, openapi_extra: dict[str, Any], **documented: Any) -> None:
    """Adds a POST route that ``handler`` answers; ``openapi_extra`` is its entry in the document but for the path's parameters."""

    def endpoint() -> None: ...

    in_path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", path)]
    documented["openapi_extra"] = {**openapi_extra, "parameters": [*in_path, *openapi_extra.get("parameters", [])]}
    endpoint.handler = handler
    endpoint.__doc__ = about
    app.router.add_api_route(path, endpoint, methods=["POST"], route_class_override=Direct, **documented)


def header(scope: Scope, name: bytes) -> str:
    """A header's value, "" when it is not there."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


async def read_body(receive: Receive, scope: Scope, most: int) -> bytes:
    """The request's body.

    Raises:
        TooLarge: more than ``most`` bytes, told or sent; the rest is not read.
        Gone: the client hung up.
    """
    told = header(scope, b"content-length")
    if told.isdecimal() and int(told) > most:
        raise too_large(most)
    message = await receive()
    body = message.get("body", b"")
    if not message.get("more_body") and message["type"] == "http.request":
        if len(body) > most:
            raise too_large(most)
        return body
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large(most)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


def too_large(most: int) -> TooLarge:
    return TooLarge(f"the body has more than {most:,} bytes: send its rows in several requests")


async def respond(send: Send, answer: Answer, status: int = 200) -> None:
    headers = [(b"content-type", answer.media_type.encode()), (b"content-length", str(len(answer.body)).encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def drain(receive: Receive) -> None:
    """Reads on after a body was refused, for a moment: who is cut off while it sends may never see the answer."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while size < DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def refusal(error: Refused, path: str) -> tuple[Answer, int]:
    """A refusal's answer and status. Under ``/v2`` as the Open Inference Protocol writes it, elsewhere as FastAPI does."""
    status = error.status
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content: dict[str, Any]
    if path.startswith("/v2"):
        content = {"error": str(error)}
        status = 400 if status == 422 else status
    elif isinstance(error, InvalidBody):
        content = {"detail": [{"loc": ["body", *error.location], "msg": error.problem, "type": "value_error"}]}
    else:
        content = {"detail": str(error)}
    return Answer(orjson.dumps(content), JSON, tuple(headers.items())), status


def note(scope: Scope, error: Refused) -> None:
    """Tells the log the kind of a refusal and its place in the body. Its text stays out: it may quote the body."""
    told = scope["ctrkit"]
    told["refused"] = type(error).__name__
    if isinstance(error, InvalidBody) and error.location:
        told["at"] = ".".join(str(part) for part in error.location)[:200]


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=JSON)


def add_error_handlers(app: FastAPI) -> None:
    """Every ``Refused`` and every status of Starlette's own, in the words of the protocol that was used."""

    async def refused(request: Request, error: Any) -> Response:
        note(request.scope, error)
        answer, status = refusal(error, request.url.path)
        return Response(answer.body, status, dict(answer.headers), answer.media_type)

    async def by_status(request: Request, error: Any) -> Response:
        path = request.url.path
        message = str(error.detail)
        if error.status_code == 405 and path.startswith("/v1/models"):
            how = "POST asks a model: /v1/models/<name>:score, :rank or :recommend. GET describes it: /v1/models/<name>. See /docs."
            message = f"{request.method} {path} is not answered. {how}"
        answer = json_response({"error" if path.startswith("/v2") else "detail": message}, error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, by_status)
