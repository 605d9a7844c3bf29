"""What every request passes: its id, its key, its time limit, its line in the log.

One layer of plain ASGI around everything, which hands predictions straight to their handlers: FastAPI's own layers cost as much as a
small model's graph for one row.
"""

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from time import monotonic, perf_counter
from typing import Any

from fastapi import FastAPI

from serving.console import PATHS
from serving.http import Direct, Gone, Handler, Receive, Scope, Send, drain, header, note, refusal, respond
from serving.keys import Keys
from serving.logs import AccessLog
from serving.metrics import Metrics
from serving.problems import NoKey, Refused, SlowBody, TooSlow
from serving.settings import ServingSettings
from serving.tracing import Tracer

log = logging.getLogger("ctrkit.serving")

OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *PATHS})
"""Paths that need no key: health, for orchestrators that have none, and the page that asks for it."""

REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
_PROCESS = os.urandom(6).hex().encode() + b"-"
_NUMBERS = count(1)
TICK_S = 0.25
"""How often time limits are looked at and log lines written: a timer for each request would cost more than it is worth."""


class _Request:
    """One that is being answered."""

    __slots__ = ("deadline", "late", "reading", "status", "task")

    def __init__(self, task: "asyncio.Task[Any]", deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.late = False
        self.reading = True
        self.status = 0


class Gate:
    """An ASGI layer around the whole service.

    Args:
        app: what it lets requests through to.
        direct: routes of ``app`` that need nothing of what lies between it and them.
        keys: who may ask.
        metrics: where requests are counted.
        settings: the time limit; whether there is an access log.
        tracer: is told of every request that has ended.
    """

    def __init__(
        self, app: FastAPI, direct: Sequence[Direct], keys: Keys, metrics: Metrics, settings: ServingSettings, tracer: Tracer | None = None
    ) -> None:
        self._app = app
        self._direct = direct
        self._keys = keys
        self._metrics = metrics
        self._seconds = settings.timeout_s
        self._access = AccessLog() if settings.access_log else None
        self._tracer = tracer
        self._requests: set[_Request] = set()
        self._ticking: asyncio.TimerHandle | None = None
        metrics.in_flight.set_function(lambda: len(self._requests))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            try:
                await self._app(scope, receive, send)
            finally:  # the service has ended
                if self._access is not None:
                    self._access.flush()
            return
        started = perf_counter()
        path = scope["path"]
        request_id = scope["ctrkit.id"] = _request_id(scope)
        scope["ctrkit"] = told = {}
        task = asyncio.current_task()
        assert task is not None
        request = _Request(task, monotonic() + self._seconds)
        self._requests.add(request)
        self._tick_later()

        async def watched_receive() -> Any:
            message = await receive()
            request.reading = message.get("more_body", False)
            return message

        async def named_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            if self._keys and path not in OPEN and not self._keys.open(scope["headers"]):
                raise NoKey("this service needs an API key", "Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
            await self._handler(scope)(scope, watched_receive, named_send)
        except Refused as error:
            await self._refuse(error, request, scope, watched_receive, named_send)
        except Gone:
            request.status = 499  # nginx's word for it
        except asyncio.CancelledError:
            if not request.late:
                raise
            task.uncancel()
            error = SlowBody if request.reading else TooSlow
            what = "the body did not arrive" if request.reading else "there was no answer"
            await self._refuse(error(f"{what} within {self._seconds:g} s"), request, scope, watched_receive, named_send)
        except Exception:
            log.exception("request failed", extra={"request_id": request_id.decode(), "path": path[:200]})
            if request.status:  # half of an answer is out: the server cuts it off
                raise
            await self._refuse(
                _Failed("the service failed, see its log", f"The request's id is {request_id.decode()}"),
                request,
                scope,
                watched_receive,
                named_send,
            )
        finally:
            self._requests.discard(request)
            seconds = perf_counter() - started
            self._metrics.request(path, request.status, seconds)
            if "refused" in told:
                self._metrics.refused(told["refused"])
            if self._tracer is not None:
                self._tracer.request(scope, request_id, request.status, seconds, told)
            if self._access is not None:
                about = {"method": scope["method"], "path": path[:200], "status": request.status, "ms": int(1e6 * seconds) / 1000}
                self._access.add({"request_id": request_id.decode(), **about, **told})

    def _handler(self, scope: Scope) -> Handler:
        """Who answers a request."""
        if scope["method"] == "POST":
            for route in self._direct:
                match = route.path_regex.match(scope["path"])
                if match:
                    scope["path_params"] = match.groupdict()
                    return route.app
        return self._app

    async def _refuse(self, error: Refused, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, unless an answer is out already."""
        note(scope, error)
        if request.status:
            return
        request.late = True  # whatever comes now takes a moment only
        answer, status = refusal(error, scope["path"])
        if request.reading and _long(scope):
            await drain(receive)
            answer = replace(answer, headers=(*answer.headers, ("Connection", "close")))
        await respond(send, answer, status)

    def _tick_later(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = monotonic()
        for request in self._requests:
            if request.deadline < now and not request.late:
                request.late = True
                request.task.cancel()
        if self._access is not None:
            self._access.flush()
        if self._requests:
            self._tick_later()


class _Failed(Refused):
    """A mistake of the service's own."""

    status = 500


def _long(scope: Scope) -> bool:
    """Whether the request's body may be too long to be read for nothing."""
    length = header(scope, b"content-length")
    return int(length) > 2**16 if length.isdecimal() and len(length) < 18 else length != "" or header(scope, b"transfer-encoding") != ""


def _request_id(scope: Scope) -> bytes:
    """The client's ``X-Request-Id``, if it is a plain word, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value
    return _PROCESS + b"%x" % next(_NUMBERS)
