"""JSON: rows or columns to score, and one context with candidates to rank."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson

from ctrkit.bundle import Bundle, as_lists
from ctrkit.errors import nearest
from ctrkit.feeds import Columns, RowError, lists_to_columns, rows_to_columns
from serving.problems import InvalidBody, Location, TooLarge
from serving.wire.ask import UNFOLDED, Answer, Ask, Limits, check_rows, served
from serving.wire.json_text import parse


def read_score(bundle: Bundle, body: bytes, limits: Limits) -> Ask:
    """``{"rows": [{feature: value}]}`` or ``{"columns": {feature: [values]}}`` -> probabilities in the rows' order.

    The answer has a list, or one for each of several tasks. No rows give no probabilities.

    Raises:
        InvalidBody: no such JSON, or values that do not fit the model's features.
        TooLarge: too many rows.
    """
    content = parse(body, limits.depth, optional=["rows", "columns"])
    if "columns" in content:
        if "rows" in content:
            raise InvalidBody(("rows",), "the body has both 'rows' and 'columns': give one of them")
        columns, rows = _columns(content["columns"], bundle, limits)
        misfit = _in_columns
    elif "rows" in content:
        given = _listed(content, "rows", limits)
        rows, misfit = len(given), _in_rows
        try:
            columns = rows_to_columns(given, bundle.features)
        except RowError as error:
            raise misfit(error) from None
    else:
        raise InvalidBody(("rows",), "the body has no 'rows' and no 'columns'")
    return Ask(bundle.feed(columns), rows, partial(scored, bundle), misfit)


def scored(bundle: Bundle, probabilities: np.ndarray) -> Answer:
    """``{"model": ..., "version": ..., "probabilities": ...}``."""
    return Answer(orjson.dumps({**served(bundle), "probabilities": as_lists(probabilities, bundle.tasks)}))


def read_rank(bundle: Bundle, body: bytes, limits: Limits) -> Ask:
    """``{"context": {...}, "candidates": [...], "top_k": n, "task": name}`` -> the candidates, the highest probability first.

    Equal probabilities keep the candidates' order. Of several tasks the main one ranks, unless another is named.

    Raises:
        InvalidBody: no such JSON, or context and a candidate do not make a row of the model's features.
        TooLarge: too many candidates, or a context too long for so many.
    """
    content = parse(body, limits.depth, required=["candidates"], optional=["context", "top_k", "task"])
    candidates = _listed(content, "candidates", limits)
    context = content.get("context")
    if not isinstance(context := {} if context is None else context, dict):
        raise InvalidBody(("context",), "context: expected an object")
    top_k = content.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise InvalidBody(("top_k",), f"top_k: expected an integer from 1, got {top_k!r:.60}")
    task = task_place(content.get("task"), bundle.tasks)
    if len(body) * len(candidates) > UNFOLDED * limits.bytes and len(orjson.dumps(context)) * len(candidates) > UNFOLDED * limits.bytes:
        raise TooLarge(f"the context is too long to be joined with {len(candidates):,} candidates: send them in several requests")
    try:
        columns = rows_to_columns([_joined(context, candidate, index) for index, candidate in enumerate(candidates)], bundle.features)
    except RowError as error:
        raise _in_candidates(context, error) from None
    answer = partial(_ranked, bundle, candidates, task, top_k)
    return Ask(bundle.feed(columns), len(candidates), answer, partial(_in_candidates, context))


def _ranked(bundle: Bundle, candidates: list[Any], task: int, top_k: int | None, probabilities: np.ndarray) -> Answer:
    scores = probabilities[:, task] if bundle.tasks else probabilities
    order = np.argsort(-scores, kind="stable")[:top_k]
    ranked = [{"index": int(i), "score": float(scores[i]), "candidate": candidates[i]} for i in order]
    return Answer(orjson.dumps({**served(bundle), "candidates": ranked}))


def _columns(lists: Any, bundle: Bundle, limits: Limits) -> tuple[Columns, int]:
    if not isinstance(lists, dict):
        raise InvalidBody(("columns",), "columns: expected an object of feature -> list of values")
    rows = max((len(values) for values in lists.values() if isinstance(values, list)), default=0)
    check_rows(rows, "rows", limits)
    try:
        return lists_to_columns(lists, bundle.features), rows
    except RowError as error:
        raise _in_columns(error) from None


def task_place(name: Any, tasks: Sequence[str], location: Location = ("task",)) -> int:
    """Place of the task that ranks."""
    if name is None:
        return 0
    if name not in tasks:
        known = nearest(str(name)[:100], list(tasks)) if tasks else "This model has one task: leave 'task' out"
        raise InvalidBody(location, f"{'.'.join(str(part) for part in location)}: unknown task {name!r:.60}. {known}")
    return tasks.index(name)


def _listed(content: dict[str, Any], key: str, limits: Limits) -> list[Any]:
    rows = content[key]
    if not isinstance(rows, list):
        raise InvalidBody((key,), f"{key}: expected a list of objects")
    check_rows(len(rows), key, limits)
    return rows


def _joined(context: dict[str, Any], candidate: Any, index: int) -> dict[str, Any]:
    if not isinstance(candidate, dict):
        raise InvalidBody(("candidates", index), f"candidate {index}: expected an object")
    twice = context.keys() & candidate.keys()
    if twice:
        field = min(twice)
        raise InvalidBody(("candidates", index, field), f"candidate {index}, field {field!r}: the context gives this field too")
    return {**context, **candidate}


def _in_rows(error: RowError) -> InvalidBody:
    return InvalidBody(_place("rows", error), str(error))


def _in_columns(error: RowError) -> InvalidBody:
    place = [part for part in (error.field, error.row) if part is not None]
    return InvalidBody(("columns", *place), str(error))


def _in_candidates(context: dict[str, Any], error: RowError) -> InvalidBody:
    if error.field in context:
        return InvalidBody(("context", str(error.field)), f"context, field {error.field!r}: {error.reason}")
    where = "" if error.field is None else f", field {error.field!r}"
    return InvalidBody(_place("candidates", error), f"candidate {error.row}{where}: {error.reason}")


def _place(key: str, error: RowError) -> Location:
    row = error.row or 0
    return (key, row) if error.field is None else (key, row, error.field)
