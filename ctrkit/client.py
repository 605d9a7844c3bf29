"""A client of ``ctrkit serve``, for programs that ask it from Python: ``pip install '.[client]'``, which brings neither torch nor onnxruntime.

    from ctrkit.client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.score("clicks", [{"user_id": "u1", "item_id": "i7"}]))
        best = client.rank("clicks", [{"item_id": "i7"}, {"item_id": "i9"}], context={"user_id": "u1"}, top_k=1)

``AsyncClient`` has the same methods, to be awaited.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import orjson

from ctrkit.errors import CtrkitError

Row = Mapping[str, Any]
Probabilities = list[float] | dict[str, list[float]]
"""One a row; of a model of several tasks a list for each, under its name."""

TRIES = 3
AGAIN = (429, 503)
"""Statuses of a service that is busy or not ready, and says when to ask again."""


class ServiceError(CtrkitError):
    """The service did not answer, or refused.

    Attributes:
        status: of the HTTP answer; None when there was none.
        request_id: under which the service's log has the request.
    """

    def __init__(self, problem: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(problem)
        self.status = status
        self.request_id = request_id


class Ranked(NamedTuple):
    """A candidate's place in the request, its probability, and itself."""

    index: int
    score: float
    candidate: dict[str, Any]


class Recommended(NamedTuple):
    """An item's key, and its score: the towers' inner product, or the probability of the model that ranked."""

    item: Any
    score: float


class Client:
    """Asks a service. Safe to use from several threads; connections are kept and reused.

    A busy service (429, 503) is asked again, as often as ``TRIES``, after the time that it names.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        key: an API key, if the service wants one.
        timeout: seconds of one try.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 10) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout)

    def score(self, model: str, rows: Sequence[Row], *, version: int | None = None) -> Probabilities:
        """Probabilities of rows of raw feature values, in the rows' order; a feature that is left out is missing.

        Args:
            version: default the one that the service serves.

        Raises:
            ServiceError: it does not answer, or refuses: a row that does not fit names itself and its field.
        """
        return self._post(f"{_path(model, version)}:score", {"rows": rows})["probabilities"]

    def score_columns(self, model: str, columns: Mapping[str, Sequence[Any]], *, version: int | None = None) -> Probabilities:
        """The same for values by columns: feature -> the rows' values."""
        return self._post(f"{_path(model, version)}:score", {"columns": columns})["probabilities"]

    def rank(
        self,
        model: str,
        candidates: Sequence[Row],
        *,
        context: Row | None = None,
        top_k: int | None = None,
        task: str | None = None,
        version: int | None = None,
    ) -> list[Ranked]:
        """The candidates of one context, the likeliest click first.

        Args:
            context: features that all candidates share.
            top_k: how many to return; default all.
            task: of a model of several tasks: which one ranks; default the main one.

        Raises:
            ServiceError: it does not answer, or refuses.
        """
        answer = self._post(f"{_path(model, version)}:rank", _ranking(candidates, context, top_k, task))
        return [Ranked(**entry) for entry in answer["candidates"]]

    def recommend(self, model: str, user: Row, k: int = 10, *, version: int | None = None, **filters: Any) -> list[Recommended]:
        """The best items for a user, of a model of two towers.

        Args:
            user: features, with history and context.
            k: how many; fewer only if fewer are allowed.
            filters: what else a ``:recommend`` request may hold: ``rank_by``, ``candidates``, ``index``, ``exclude_history``, ``seen``,
                ``allow``, ``deny``, ``where``, ``diversity``.

        Raises:
            ServiceError: it does not answer, or refuses.
        """
        answer = self._post(f"{_path(model, version)}:recommend", {"user": user, "k": k, **filters})
        return _recommended(answer)[0]

    def recommend_many(
        self, model: str, users: Sequence[Row], k: int = 10, *, version: int | None = None, **filters: Any
    ) -> list[list[Recommended]]:
        """The same for several users, in one request; ``seen`` is then a list of lists."""
        return _recommended(self._post(f"{_path(model, version)}:recommend", {"users": users, "k": k, **filters}))

    def upsert_items(self, model: str, items: Sequence[Row]) -> dict[str, Any]:
        """Adds items, or changes those that are there, until the service restarts; ``{added, changed, ..}``.

        Args:
            items: features and key.

        Raises:
            ServiceError: it does not answer, or refuses; then no item was changed.
        """
        return self._post(f"{_path(model, None)}/items:upsert", {"items": items})

    def remove_items(self, model: str, keys: Sequence[Any]) -> dict[str, Any]:
        """Takes items out, until the service restarts; ``{removed, unknown, ..}``. Raises as ``upsert_items``."""
        return self._post(f"{_path(model, None)}/items:remove", {"items": keys})

    def model(self, name: str, *, version: int | None = None) -> dict[str, Any]:
        """A model's versions, features and metrics in training."""
        return self._ask("GET", _path(name, version), None)

    def ready(self) -> bool:
        """Whether the service has loaded its models; False also if nobody listens."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, _body(content))

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        for last in range(TRIES - 1, -1, -1):
            try:
                answer = self._http.request(method, path, content=body)
            except httpx.HTTPError as error:
                raise _silent(error, self._http.base_url) from error
            if answer.status_code not in AGAIN or not last:
                break
            time.sleep(_wait(answer))
        return _read(answer)


class AsyncClient:
    """``Client`` for asyncio: the same methods, to be awaited, and used with ``async with``."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 10) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout)

    async def score(self, model: str, rows: Sequence[Row], *, version: int | None = None) -> Probabilities:
        """See ``Client.score``."""
        return (await self._post(f"{_path(model, version)}:score", {"rows": rows}))["probabilities"]

    async def score_columns(self, model: str, columns: Mapping[str, Sequence[Any]], *, version: int | None = None) -> Probabilities:
        """See ``Client.score_columns``."""
        return (await self._post(f"{_path(model, version)}:score", {"columns": columns}))["probabilities"]

    async def rank(
        self,
        model: str,
        candidates: Sequence[Row],
        *,
        context: Row | None = None,
        top_k: int | None = None,
        task: str | None = None,
        version: int | None = None,
    ) -> list[Ranked]:
        """See ``Client.rank``."""
        answer = await self._post(f"{_path(model, version)}:rank", _ranking(candidates, context, top_k, task))
        return [Ranked(**entry) for entry in answer["candidates"]]

    async def recommend(self, model: str, user: Row, k: int = 10, *, version: int | None = None, **filters: Any) -> list[Recommended]:
        """See ``Client.recommend``."""
        answer = await self._post(f"{_path(model, version)}:recommend", {"user": user, "k": k, **filters})
        return _recommended(answer)[0]

    async def recommend_many(
        self, model: str, users: Sequence[Row], k: int = 10, *, version: int | None = None, **filters: Any
    ) -> list[list[Recommended]]:
        """See ``Client.recommend_many``."""
        return _recommended(await self._post(f"{_path(model, version)}:recommend", {"users": users, "k": k, **filters}))

    async def upsert_items(self, model: str, items: Sequence[Row]) -> dict[str, Any]:
        """See ``Client.upsert_items``."""
        return await self._post(f"{_path(model, None)}/items:upsert", {"items": items})

    async def remove_items(self, model: str, keys: Sequence[Any]) -> dict[str, Any]:
        """See ``Client.remove_items``."""
        return await self._post(f"{_path(model, None)}/items:remove", {"items": keys})

    async def model(self, name: str, *, version: int | None = None) -> dict[str, Any]:
        """See ``Client.model``."""
        return await self._ask("GET", _path(name, version), None)

    async def ready(self) -> bool:
        """See ``Client.ready``."""
        try:
            return (await self._http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        await self.close()

    async def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return await self._ask("POST", path, _body(content))

    async def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        for last in range(TRIES - 1, -1, -1):
            try:
                answer = await self._http.request(method, path, content=body)
            except httpx.HTTPError as error:
                raise _silent(error, self._http.base_url) from error
            if answer.status_code not in AGAIN or not last:
                break
            await asyncio.sleep(_wait(answer))
        return _read(answer)


def _headers(key: str | None) -> dict[str, str]:
    return {"Content-Type": "application/json", **({} if key is None else {"Authorization": f"Bearer {key}"})}


def _path(model: str, version: int | None) -> str:
    return f"/v1/models/{model}" if version is None else f"/v1/models/{model}/versions/{version}"


def _ranking(candidates: Sequence[Row], context: Row | None, top_k: int | None, task: str | None) -> dict[str, Any]:
    chosen = {"context": context, "top_k": top_k, "task": task}
    return {"candidates": candidates, **{key: value for key, value in chosen.items() if value is not None}}


def _recommended(answer: Mapping[str, Any]) -> list[list[Recommended]]:
    return [[Recommended(**entry) for entry in one["items"]] for one in answer["recommendations"]]


def _body(content: Mapping[str, Any]) -> bytes:
    """JSON; numpy's arrays and numbers are taken, NaN becomes null, which is missing."""
    try:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise ServiceError(f"a row cannot be written as JSON: {error}") from error


def _wait(answer: httpx.Response) -> float:
    """Seconds that the service asks to be left alone, at most 30."""
    told = answer.headers.get("retry-after", "")
    return min(float(told), 30.0) if told.isdecimal() else 1.0


def _silent(error: httpx.HTTPError, url: httpx.URL) -> ServiceError:
    return ServiceError(f"no answer from {url}: {error or type(error).__name__}")


def _read(answer: httpx.Response) -> dict[str, Any]:
    request_id = answer.headers.get("x-request-id")
    try:
        content = orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise ServiceError(f"{answer.url} answered {answer.status_code} with no JSON", answer.status_code, request_id) from error
    if answer.status_code == 200:
        return content
    detail = content.get("detail", content) if isinstance(content, dict) else content
    said = "; ".join(problem["msg"] for problem in detail) if isinstance(detail, list) else str(detail)
    raise ServiceError(said, answer.status_code, request_id)
