"""A request for probabilities, stage by stage: read the body, parse it, wait for the graph, run it, answer."""

import asyncio
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from time import perf_counter

from ctrkit.bundle import Bundle
from ctrkit.feeds import RowError
from serving.batcher import Done, Feed
from serving.http import Receive, Scope, Send, header, read_body, respond
from serving.metrics import Metrics
from serving.model import Served
from serving.problems import NotAcceptable, WrongType
from serving.rollout import Rollout
from serving.settings import ServingSettings
from serving.shadow import Shadow
from serving.tracing import STAGES_KEY
from serving.unpacking import unpacked
from serving.wire import arrow, rows, v2
from serving.wire.ask import ARROW, JSON, Ask, Limits, Reader

INLINE_BYTES = 64 * 1024
"""Longer bodies are parsed in a thread: the event loop has others to look after."""


class Predictions:
    """The handlers of all routes that run a model.

    Args:
        pool: where long bodies are parsed.
        metrics: where predictions are counted.
        settings: limits of a request.
        rollout: which version answers.
        shadow: is shown what was answered.
    """

    def __init__(self, pool: Executor, metrics: Metrics, settings: ServingSettings, rollout: Rollout, shadow: Shadow) -> None:
        self._rollout = rollout
        self._shadow = shadow
        self._pool = pool
        self._metrics = metrics
        self._limits = settings.limits

    async def score(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``:score``: JSON or an Arrow stream in, JSON or an Arrow stream out."""
        sent = media_type(header(scope, b"content-type"))
        if sent == ARROW:
            reader: Reader = arrow.read_score
        elif sent == JSON:
            reader = rows.read_score
        else:
            raise WrongType(f"a body of type '{sent[:100]}' is not read", f"Send '{JSON}' or '{ARROW}'")
        if _wanted(header(scope, b"accept")) == ARROW:
            reader = partial(_answered_in_arrow, reader)
        await self._answer(scope, receive, send, reader)

    async def rank(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``:rank``: JSON in and out."""
        sent = media_type(header(scope, b"content-type"))
        if sent != JSON:
            raise WrongType(f"a body of type '{sent[:100]}' is not read", f"Send '{JSON}'")
        await self._answer(scope, receive, send, rows.read_rank)

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The Open Inference Protocol's ``infer``: JSON, or JSON with tensors behind it, in and out."""
        length = v2.header_length(header(scope, v2.HEADER_LENGTH_KEY))
        await self._answer(scope, receive, send, partial(v2.read_infer, header=length))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, reader: Reader) -> None:
        started = perf_counter()
        name, version = scope["path_params"]["name"], scope["path_params"].get("version")
        model = self._rollout.asked(name, version, scope)
        told = scope["ctrkit"]
        told["model"], told["version"] = model.name, model.version
        model.admit()
        try:
            body = await read_body(receive, scope, self._limits.bytes)
            body = unpacked(body, header(scope, b"content-encoding"), self._limits.bytes)
            read = perf_counter()
            if len(body) <= INLINE_BYTES:
                ask = reader(model.bundle, body, self._limits)
            else:
                ask = await asyncio.get_running_loop().run_in_executor(self._pool, reader, model.bundle, body, self._limits)
            told["rows"] = ask.rows
            parsed = perf_counter()
            try:
                done = await model.run(ask.feed, ask.rows)
            except RowError as error:
                raise ask.misfit(error) from None
            returned = perf_counter()
            await respond(send, ask.answer(done.probabilities))
        finally:
            model.leave()
        ended = perf_counter()
        stages = scope[STAGES_KEY] = (
            read - started,
            parsed - read,
            returned - parsed - (done.ended - done.started),
            done.ended - done.started,
            ended - returned,
            ended - started,
        )
        self.answered(model, ask.feed, ask.rows, done, stages)

    def answered(self, model: Served, feed: Feed, rows: int, done: Done, stages: tuple[float, ...] | None = None) -> None:
        """Counts a prediction that was answered and shows it to the shadow.

        Args:
            stages: seconds of each of the metrics' stages; None: as part of a recommendation, which has others.
        """
        self._metrics.model(model).predicted(stages, rows, done.batch_rows, feed, done.probabilities)
        self._shadow.offer(model, feed, rows, done.probabilities)


def media_type(content_type: str) -> str:
    """Of a Content-Type header, without parameters; JSON when there is none."""
    return content_type.partition(";")[0].strip().lower() or JSON


def _wanted(accept: str) -> str:
    """JSON or Arrow, whichever an Accept header names first; JSON when it takes anything.

    Raises:
        NotAcceptable: it takes neither.
    """
    if not accept:
        return JSON
    for part in accept.lower().split(","):
        kind, _, parameters = part.partition(";")
        if parameters.replace(" ", "") in ("q=0", "q=0.0"):
            continue
        if kind.strip() in (JSON, "*/*", "application/*"):
            return JSON
        if kind.strip() == ARROW:
            return ARROW
    raise NotAcceptable(f"an answer of type '{accept[:100]}' is not written", f"Accept '{JSON}' or '{ARROW}'")


def _answered_in_arrow(reader: Reader, bundle: Bundle, body: bytes, limits: Limits) -> Ask:
    return replace(reader(bundle, body, limits), answer=partial(arrow.scored, bundle))
