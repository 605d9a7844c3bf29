"""``:recommend``, stage by stage: read and parse the body, encode the users, search, rank, choose; and changes of the items."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import orjson

from ctrkit.feeds import RowError, rows_to_columns
from serving.diversity import diversified
from serving.http import Receive, Scope, Send, header, read_body, respond, unpacked
from serving.items import View
from serving.model import Served
from serving.predict import media_type
from serving.problems import Forbidden, InvalidBody, WrongType
from serving.ranker import Ranking
from serving.recommend_metrics import TowerMetrics
from serving.repository import Repository
from serving.search import Found, search
from serving.settings import ServingSettings
from serving.towers import ServedTowers
from serving.wire.ask import JSON, Answer
from serving.wire.recommend import Asked, allowed_items, histories, read_recommend, read_remove, read_upsert
from serving.wire.rows import task_place


@dataclass
class Retrieved:
    """What was found for each user, before anybody ranks it.

    Attributes:
        view: that the numbers are of.
        ranker: who ranks, its inputs and the task's place.
        seconds: of the stages so far.
    """

    asked: Asked
    view: View
    found: list[Found]
    ranker: tuple[Served, dict[str, np.ndarray], int] | None
    seconds: dict[str, float] = field(default_factory=dict)


class Recommendations:
    """The handlers of all routes that towers answer.

    Args:
        repository: the models.
        pool: where users are encoded and items searched, and where items are encoded.
        metrics: where recommendations are counted.
        settings: limits of a request.
    """

    def __init__(self, repository: Repository, pool: Executor, metrics: TowerMetrics, settings: ServingSettings) -> None:
        self._repository = repository
        self._pool = pool
        self._metrics = metrics
        self._limits = settings.limits
        self._changes_reach_all = settings.workers == 1 or settings.journal is not None

    async def recommend(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``:recommend``: JSON in and out."""
        started = perf_counter()
        towers = self._towers(scope)
        towers.admit()
        try:
            body = await self._body(scope, receive)
            read = perf_counter()
            retrieved = await self._in_pool(self._retrieve, towers, body)
            scope["ctrkit"]["rows"] = len(retrieved.found)
            searched = perf_counter()
            scores = await self._ranked(retrieved)
            ranked = perf_counter()
            chosen = (
                await self._in_pool(_chosen, retrieved, scores) if retrieved.asked.diversity is not None else _chosen(retrieved, scores)
            )
            picked = perf_counter()
            await respond(send, _answer(towers, retrieved, chosen))
        finally:
            towers.leave()
        ended = perf_counter()
        seconds = retrieved.seconds
        seconds |= {"queue": searched - read - sum(seconds.values()), "read": read - started, "rank": ranked - searched}
        seconds["filter"] += picked - ranked
        seconds |= {"answer": ended - picked, "total": ended - started}
        self._metrics.recommended(towers, seconds, [found.exact for found in retrieved.found])

    async def upsert(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``items:upsert``: items are encoded and found from the next request on."""

        def change(towers: ServedTowers, body: bytes) -> dict[str, int]:
            rows = read_upsert(towers.row_features, towers.bundle.manifest.item_key, body, self._limits)
            added, changed = self._repository.changes(towers.name).upsert(towers, rows)
            return {"added": added, "changed": changed}

        await self._change(scope, receive, send, change)

    async def remove(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``items:remove``: items are not found from the next request on."""

        def change(towers: ServedTowers, body: bytes) -> dict[str, int]:
            keys = list(dict.fromkeys(read_remove(towers.bundle.manifest.item_key, body, self._limits)))
            removed = self._repository.changes(towers.name).remove(towers, keys)
            return {"removed": removed, "unknown": len(keys) - removed}

        await self._change(scope, receive, send, change)

    async def _change(self, scope: Scope, receive: Receive, send: Send, change: Callable[[ServedTowers, bytes], dict[str, int]]) -> None:
        towers = self._towers(scope)
        if not self._changes_reach_all:
            raise Forbidden("a change of items would reach one of several workers", "Give them a journal: --set journal=FOLDER")
        towers.admit()
        try:
            done = await self._in_pool(change, towers, await self._body(scope, receive))
            scope["ctrkit"].update(done)
            await respond(send, Answer(orjson.dumps({"model": towers.name, "version": towers.version, **done})))
        finally:
            towers.leave()

    def _towers(self, scope: Scope) -> ServedTowers:
        parameters = scope["path_params"]
        towers = self._repository.towers(parameters["name"], parameters.get("version"))
        scope["ctrkit"].update(model=towers.name, version=towers.version)
        sent = media_type(header(scope, b"content-type"))
        if sent != JSON:
            raise WrongType(f"a body of type '{sent[:100]}' is not read", f"Send '{JSON}'")
        return towers

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        body = await read_body(receive, scope, self._limits.bytes)
        return unpacked(body, header(scope, b"content-encoding"), self._limits.bytes)

    async def _in_pool(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _retrieve(self, towers: ServedTowers, body: bytes) -> Retrieved:
        """All up to the candidates and the rows that the ranker gets; runs in a thread."""
        seconds: dict[str, float] = {}
        clock = _Clock(seconds)
        asked = read_recommend(towers.bundle, body, self._limits)
        by = asked.rank_by
        ranker = None if by is None else self._repository.served(by.model, None if by.version is None else str(by.version))
        task = task_place(by.task, ranker.bundle.tasks, ("rank_by", "task")) if by is not None and ranker is not None else 0
        ranking = Ranking(towers.bundle, None if ranker is None else ranker.bundle)
        ranking.check(asked)
        try:
            columns = rows_to_columns(ranking.of_towers(asked.users), towers.bundle.manifest.user_features)
        except RowError as error:
            raise _misfit(asked, error) from None
        clock.stop("parse")
        vectors = towers.bundle.encoded_users(columns) if asked.users else np.empty((0, towers.bundle.manifest.width), np.float32)
        clock.stop("tower")
        self._repository.changes(towers.name).catch_up()
        view = towers.view
        allowed = allowed_items(view, asked)
        seen = [view.numbers(keys) for keys in asked.seen]
        if asked.exclude_history:
            past = histories(towers.bundle, columns, len(asked.users))
            seen = [np.concatenate([mine, view.numbers(keys)]) for mine, keys in zip(seen, past, strict=True)]
        clock.stop("filter")
        found = []
        for user, mine in zip(vectors, seen, strict=True):
            barred = mine[allowed[mine]]
            allowed[barred] = False
            found.append(search(view, towers.index, user, allowed, asked.fetch, asked.exact))
            allowed[barred] = True
        clock.stop("index")
        if ranker is None:
            return Retrieved(asked, view, found, None, seconds)
        try:
            feed = ranking.feed(asked.users, view, [one.numbers for one in found]) if found else {}
        except RowError as error:
            raise _misfit(asked, error) from None
        clock.stop("parse")
        return Retrieved(asked, view, found, (ranker, feed, task), seconds)

    async def _ranked(self, retrieved: Retrieved) -> list[np.ndarray]:
        """Each user's candidates' scores: of the ranker, or the inner products."""
        sizes = [len(found.numbers) for found in retrieved.found]
        if retrieved.ranker is None or not sum(sizes):
            return [found.scores for found in retrieved.found]
        ranker, feed, task = retrieved.ranker
        ranker.admit()
        try:
            done = await ranker.run(feed, sum(sizes))
        finally:
            ranker.leave()
        scores = done.probabilities[:, task] if ranker.bundle.tasks else done.probabilities
        return np.split(scores, np.cumsum(sizes)[:-1])


class _Clock:
    """Adds up the seconds of stages."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = perf_counter()

    def stop(self, stage: str) -> None:
        """What has passed since the last stop belongs to this stage."""
        now = perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _chosen(retrieved: Retrieved, scores: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each user's items and their scores, in the order of the answer. Of equal scores the item that was retrieved first comes first."""
    asked, chosen = retrieved.asked, []
    for found, own in zip(retrieved.found, scores, strict=True):
        if asked.diversity is None:
            places = np.argsort(-own, kind="stable")[: asked.k]
        else:
            places = diversified(own, retrieved.view.vectors(found.numbers), asked.diversity, asked.k)
        chosen.append((found.numbers[places], own[places]))
    return chosen


def _answer(towers: ServedTowers, retrieved: Retrieved, chosen: list[tuple[np.ndarray, np.ndarray]]) -> Answer:
    lists = [
        {
            "index": "exact" if found.exact else "approximate",
            "items": [{"item": key, "score": score} for key, score in zip(retrieved.view.keys(numbers), scores.tolist(), strict=True)],
        }
        for found, (numbers, scores) in zip(retrieved.found, chosen, strict=True)
    ]
    ranker = retrieved.ranker
    ranked_by = {} if ranker is None else {"ranked_by": {"model": ranker[0].name, "version": ranker[0].version}}
    return Answer(orjson.dumps({"model": towers.name, "version": towers.version, **ranked_by, "recommendations": lists}))


def _misfit(asked: Asked, error: RowError) -> InvalidBody:
    user = error.row or 0
    return InvalidBody((*asked.place(user), str(error.field)), f"user {user}, field {error.field!r}: {error.reason}")
