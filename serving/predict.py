"""A request's body -> the answer's body. No HTTP in here."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson

from ctrkit.bundle import Bundle, as_lists
from ctrkit.errors import nearest
from ctrkit.feeds import RowError

Location = tuple[str | int, ...]


class InvalidBody(Exception):
    """A body that the model cannot take.

    Attributes:
        location: where in the body: ``("rows", 3, "price")``.
        problem: what is wrong there, naming row and field.
    """

    def __init__(self, location: Location, problem: str) -> None:
        self.location = location
        self.problem = problem
        super().__init__(problem)


class TooLarge(Exception):
    """More rows, or more bytes, than the service allows."""


def score(bundle: Bundle, body: bytes, max_rows: int) -> dict[str, Any]:
    """``{"rows": [...]}`` -> model, version and probabilities in the rows' order, a list for each of several tasks.

    No rows give no probabilities.

    Raises:
        InvalidBody: no such JSON, or a row that does not fit the model's features.
        TooLarge: more than ``max_rows`` rows.
    """
    content = _parse(body, required=["rows"])
    rows = _rows(content, "rows", max_rows)
    try:
        probabilities = bundle.score(rows)
    except RowError as error:
        raise InvalidBody(_place("rows", error), str(error).rstrip(".")) from None
    return {**_served(bundle), "probabilities": as_lists(probabilities, bundle.tasks)}


def rank(bundle: Bundle, body: bytes, max_rows: int) -> dict[str, Any]:
    """``{"context": {...}, "candidates": [...], "top_k": n, "task": name}`` -> the candidates, the highest probability first.

    Equal probabilities keep the candidates' order. Of several tasks the main one ranks, unless another is named.

    Raises:
        InvalidBody: no such JSON, or context and a candidate do not make a row of the model's features.
        TooLarge: more than ``max_rows`` candidates.
    """
    content = _parse(body, required=["candidates"], optional=["context", "top_k", "task"])
    candidates = _rows(content, "candidates", max_rows)
    context = content.get("context")
    if not isinstance(context := {} if context is None else context, dict):
        raise InvalidBody(("context",), "context: expected an object")
    top_k = content.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise InvalidBody(("top_k",), f"top_k: expected an integer from 1, got {top_k!r}")
    task = _task(content.get("task"), bundle.tasks)
    try:
        probabilities = bundle.score([_joined(context, candidate, index) for index, candidate in enumerate(candidates)])
    except RowError as error:
        if error.field in context:
            raise InvalidBody(("context", str(error.field)), f"context, field {error.field!r}: {error.reason}") from None
        where = f"candidate {error.row}, field {error.field!r}"
        raise InvalidBody(_place("candidates", error), f"{where}: {error.reason}") from None
    scores = probabilities[:, task] if bundle.tasks else probabilities
    order = np.argsort(-scores, kind="stable")[:top_k]
    ranked = [{"index": int(i), "score": float(scores[i]), "candidate": candidates[i]} for i in order]
    return {**_served(bundle), "candidates": ranked}


def _parse(body: bytes, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody((), f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidBody((), "the body is not a JSON object")
    _check_keys(content, required, [*required, *optional])
    return content


def _check_keys(content: dict[str, Any], required: Iterable[str], known: list[str]) -> None:
    for key in required:
        if key not in content:
            raise InvalidBody((key,), f"the body has no '{key}'")
    for key in content:
        if key not in known:
            raise InvalidBody((key,), f"unknown key '{key}'. {nearest(key, known)}")


def _task(name: Any, tasks: Sequence[str]) -> int:
    """Place of the task that ranks."""
    if name is None:
        return 0
    if name not in tasks:
        known = nearest(str(name), list(tasks)) if tasks else "This model has one task: leave 'task' out"
        raise InvalidBody(("task",), f"unknown task {name!r}. {known}")
    return tasks.index(name)


def _rows(content: dict[str, Any], key: str, most: int) -> list[Any]:
    rows = content[key]
    if not isinstance(rows, list):
        raise InvalidBody((key,), f"{key}: expected a list of objects")
    if len(rows) > most:
        raise TooLarge(f"{len(rows):,} {key} in one request, {most:,} are allowed: send them in several requests")
    return rows


def _joined(context: dict[str, Any], candidate: Any, index: int) -> dict[str, Any]:
    if not isinstance(candidate, dict):
        raise InvalidBody(("candidates", index), f"candidate {index}: expected an object")
    twice = context.keys() & candidate.keys()
    if twice:
        field = min(twice)
        raise InvalidBody(("candidates", index, field), f"candidate {index}, field {field!r}: the context gives this field too")
    return {**context, **candidate}


def _place(key: str, error: RowError) -> Location:
    return (key, error.row) if error.field is None else (key, error.row, error.field)


def _served(bundle: Bundle) -> dict[str, Any]:
    return {"model": bundle.manifest.name, "version": bundle.manifest.version}
