"""``:recommend``, stage by stage: read and parse the body, encode the users, search, rank, choose; and changes of the items."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import orjson

from ctrkit.feeds import NotFinite, RowError, rows_to_columns
from serving.batcher import Done, Feed
from serving.diversity import diversified
from serving.http import Receive, Scope, Send, header, read_body, respond
from serving.items import View
from serving.model import Served
from serving.predict import media_type
from serving.problems import Forbidden, InvalidBody, WrongType
from serving.ranker import Ranking
from serving.recommend_metrics import TowerMetrics
from serving.repository import Repository
from serving.rollout import Rollout
from serving.search import Found, search
from serving.settings import ServingSettings
from serving.towers import ServedTowers
from serving.unpacking import unpacked
from serving.wire.ask import JSON, Answer
from serving.wire.recommend import Asked, allowed_items, histories, read_recommend, read_remove, read_upsert
from serving.wire.rows import task_place

log = logging.getLogger("ctrkit.serving")


@dataclass
class Retrieved:
    """What was found for each user, before anybody ranks it.

    Attributes:
        view: that the numbers are of.
        ranking: makes the ranker's inputs.
        ranker: who ranks, its inputs and the task's place.
        seconds: of the stages so far.
    """

    asked: Asked
    view: View
    found: list[Found]
    ranking: Ranking
    ranker: tuple[Served, dict[str, np.ndarray], int] | None
    seconds: dict[str, float] = field(default_factory=dict)


class Recommendations:
    """The handlers of all routes that towers answer.

    Args:
        repository: the models.
        pool: where users are encoded and items searched, and where items are encoded.
        metrics: where recommendations are counted.
        settings: limits of a request.
        rollout: which version of a model ranks.
        ranked: told of the ranker, its inputs, how many rows they hold and what became of them.
    """

    def __init__(
        self,
        repository: Repository,
        pool: Executor,
        metrics: TowerMetrics,
        settings: ServingSettings,
        rollout: Rollout,
        ranked: Callable[[Served, Feed, int, Done], None],
    ) -> None:
        self._repository = repository
        self._rollout = rollout
        self._ranker_answered = ranked
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
            retrieved = await self._in_pool(self._retrieve, towers, body, scope)
            scope["ctrkit"]["rows"] = len(retrieved.found)
            searched = perf_counter()
            retrieved, done = await self._ranked(retrieved)
            scores = _scores(retrieved, done)
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
        if retrieved.ranker is not None and done is not None:
            ranker, feed, _ = retrieved.ranker
            self._ranker_answered(ranker, feed, len(done.probabilities), done)

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

    def _retrieve(self, towers: ServedTowers, body: bytes, scope: Scope) -> Retrieved:
        """All up to the candidates and the rows that the ranker gets; runs in a thread."""
        clock = _Clock()
        asked = read_recommend(towers.bundle, body, self._limits)
        by = asked.rank_by
        ranker = None if by is None else self._rollout.asked(by.model, None if by.version is None else str(by.version), scope)
        task = task_place(by.task, ranker.bundle.tasks, ("rank_by", "task")) if by is not None and ranker is not None else 0
        ranking = Ranking(towers.bundle, None if ranker is None else ranker.bundle)
        ranking.check(asked)
        try:
            return self._found(towers, asked, ranking, (ranker, task), clock)
        except RowError as error:
            raise _misfit(asked, error) from None

    def _found(self, towers: ServedTowers, asked: Asked, ranking: Ranking, by: tuple[Served | None, int], clock: "_Clock") -> Retrieved:
        """
        Args:
            by: who ranks and the task's place.

        Raises:
            RowError: a user whose values do not fit, or whose vector is not finite.
        """
        columns = rows_to_columns(ranking.of_towers(asked.users), towers.bundle.manifest.user_features)
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
        found: list[Found] = []
        for user, mine in zip(vectors, seen, strict=True):
            barred = mine[allowed[mine]]
            allowed[barred] = False
            found.append(search(view, towers.index, user, allowed, asked.fetch, asked.exact))
            allowed[barred] = True
        clock.stop("index")
        ranker, task = by
        if ranker is None:
            return Retrieved(asked, view, found, ranking, None, clock.seconds)
        feed = ranking.feed(asked.users, view, [one.numbers for one in found], self._limits) if found else {}
        clock.stop("parse")
        return Retrieved(asked, view, found, ranking, (ranker, feed, task), clock.seconds)

    async def _ranked(self, retrieved: Retrieved) -> tuple[Retrieved, Done | None]:
        """The candidates that the ranker makes finite numbers of, and what it makes of them; None without a ranker or without candidates.

        Raises:
            InvalidBody: a user whose numbers spoil his candidates'.
        """
        if retrieved.ranker is None:
            return retrieved, None
        ranker, feed, _ = retrieved.ranker
        ranker.admit()
        try:
            while rows := sum(len(found.numbers) for found in retrieved.found):
                try:
                    return retrieved, await ranker.run(feed, rows)
                except NotFinite as error:
                    retrieved, feed = await self._in_pool(self._without, retrieved, error)
            return retrieved, None
        finally:
            ranker.leave()

    def _without(self, retrieved: Retrieved, error: NotFinite) -> tuple[Retrieved, Feed]:
        """Without the candidates that are not finite, of which one spoils nobody's list; and the ranker's inputs.

        Raises:
            InvalidBody: a user of whom none is left.
        """
        assert retrieved.ranker is not None
        ranker, _, task = retrieved.ranker
        numbers = np.concatenate([found.numbers for found in retrieved.found])
        ends = np.cumsum([len(found.numbers) for found in retrieved.found])
        (key,) = retrieved.view.keys(numbers[error.rows[:1]])
        kept = np.ones(len(numbers), bool)
        kept[error.rows] = False
        parts = np.split(kept, ends[:-1])
        for user, own in enumerate(parts):
            if len(own) and not own.any():
                first = user == np.searchsorted(ends, error.rows[0], side="right")
                field, reason = (error.field, error.reason) if first else (None, "the model makes no finite number of any candidate")
                raise _misfit(retrieved.asked, RowError(user, field, reason), f", item {key!r}" if first else "")
        items = {"candidates": len(error.rows), "item": key, "reason": error.reason}
        log.warning("candidates are left out", extra={"model": ranker.name, "version": ranker.version, **items})
        found = [replace(one, numbers=one.numbers[own], scores=one.scores[own]) for one, own in zip(retrieved.found, parts, strict=True)]
        feed = retrieved.ranking.feed(retrieved.asked.users, retrieved.view, [one.numbers for one in found], self._limits)
        return replace(retrieved, found=found, ranker=(ranker, feed, task)), feed


class _Clock:
    """Adds up the seconds of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def stop(self, stage: str) -> None:
        """What has passed since the last stop belongs to this stage."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _scores(retrieved: Retrieved, done: Done | None) -> list[np.ndarray]:
    """Each user's candidates' scores: of the ranker, or the inner products."""
    if retrieved.ranker is None or done is None:
        return [found.scores for found in retrieved.found]
    ranker, _, task = retrieved.ranker
    scores = done.probabilities[:, task] if ranker.bundle.tasks else done.probabilities
    return np.split(scores, np.cumsum([len(found.numbers) for found in retrieved.found])[:-1])


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


def _misfit(asked: Asked, error: RowError, item: str = "") -> InvalidBody:
    """
    Args:
        error: of a user's row.
        item: that the row is joined with, for the message.
    """
    user, field = error.row or 0, error.field
    place = (*asked.place(user), field) if field in asked.users[user] else asked.place(user)
    return InvalidBody(place, f"user {user}{item}{'' if field is None else f', field {field!r}'}: {error.reason}")
