from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from ctrkit.bundle import Bundle, open_bundle
from serving.problems import InvalidBody, TooLarge
from serving.wire.ask import Limits, Reader
from serving.wire.rows import read_rank, read_score
from tests.handmade import make_bundle, probability


def answered(read: Reader, bundle: Bundle, body: bytes, rows: int) -> dict[str, Any]:
    """What a body is answered with, the graph's run included."""
    ask = read(bundle, body, Limits(rows=rows, depth=16, bytes=2**20))
    return orjson.loads(ask.answer(bundle.predict(ask.feed)).body)


def score(bundle: Bundle, body: bytes, rows: int) -> dict[str, Any]:
    return answered(read_score, bundle, body, rows)


def rank(bundle: Bundle, body: bytes, rows: int) -> dict[str, Any]:
    return answered(read_rank, bundle, body, rows)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("repo")))


def test_probabilities_come_in_the_rows_order(bundle: Bundle) -> None:
    rows = [{"user": "u2"}, {"user": "u1", "price": 3}, {}]
    answer = score(bundle, orjson.dumps({"rows": rows}), 10)
    assert (answer["model"], answer["version"]) == ("clicks", 1)
    np.testing.assert_allclose(answer["probabilities"], [probability(row) for row in rows], rtol=1e-5)


def test_no_rows_give_no_probabilities(bundle: Bundle) -> None:
    assert score(bundle, b'{"rows": []}', 10)["probabilities"] == []
    assert rank(bundle, b'{"candidates": []}', 10)["candidates"] == []


def test_candidates_are_ranked_in_their_context(bundle: Bundle) -> None:
    prices = [1, 5, 5, -3, 5]
    body = {"context": {"user": "u1", "age": 30}, "candidates": [{"price": price} for price in prices]}
    ranked = rank(bundle, orjson.dumps(body), 10)["candidates"]
    assert [entry["index"] for entry in ranked] == [1, 2, 4, 0, 3], "ties keep the candidates' order"
    assert [entry["candidate"] for entry in ranked] == [body["candidates"][i] for i in (1, 2, 4, 0, 3)]
    expected = [probability({"user": "u1", "age": 30, "price": prices[i]}) for i in (1, 2, 4, 0, 3)]
    np.testing.assert_allclose([entry["score"] for entry in ranked], expected, rtol=1e-5)
    best = rank(bundle, orjson.dumps({**body, "top_k": 2}), 10)["candidates"]
    assert best == ranked[:2]
    assert len(rank(bundle, orjson.dumps({**body, "top_k": 99}), 10)["candidates"]) == 5


def test_a_candidate_without_context_is_a_row(bundle: Bundle) -> None:
    row = {"user": "u1", "price": 2}
    (ranked,) = rank(bundle, orjson.dumps({"context": None, "candidates": [row]}), 10)["candidates"]
    (scored,) = score(bundle, orjson.dumps({"rows": [row]}), 10)["probabilities"]
    assert ranked["score"] == scored


@pytest.mark.parametrize(
    ("work", "body", "location", "problem"),
    [
        (score, "{", (), "not valid JSON"),
        (score, '{"rows": [{"price": NaN}]}', (), "not valid JSON"),
        (score, '{"rows": [{"user": "\\ud800"}]}', (), "not valid JSON"),
        (score, "[]", (), "not a JSON object"),
        (score, "{}", ("rows",), "no 'rows'"),
        (score, '{"row": []}', ("row",), "unknown key 'row'. Did you mean 'rows'?"),
        (score, '{"rows": [], "extra": 1}', ("extra",), "unknown key 'extra'"),
        (score, '{"rows": {"user": "u1"}}', ("rows",), "expected a list"),
        (score, '{"rows": [{}, 5]}', ("rows", 1), "row 1: expected an object, got 5"),
        (score, '{"rows": [{}, {"usr": "u1"}]}', ("rows", 1, "usr"), "row 1, field 'usr': unknown feature. Did you mean 'user'?"),
        (score, '{"rows": [{}, {"price": "5"}]}', ("rows", 1, "price"), "row 1, field 'price': expected a number, got '5' (string)"),
        (score, '{"rows": [{"age": 9223372036854775808}]}', ("rows", 0, "age"), "64 bits"),
        (score, '{"rows": [{"age": 99999999999999999999}]}', ("rows", 0, "age"), "expected an integer"),
        (rank, '{"context": {}}', ("candidates",), "no 'candidates'"),
        (rank, '{"context": [], "candidates": []}', ("context",), "context: expected an object"),
        (rank, '{"candidates": [{}], "top_k": 0}', ("top_k",), "top_k: expected an integer from 1"),
        (rank, '{"candidates": [{}], "top_k": true}', ("top_k",), "top_k: expected an integer from 1"),
        (rank, '{"candidates": [{}], "task": "click"}', ("task",), "unknown task 'click'. This model has one task"),
        (rank, '{"candidates": [{}, "x"]}', ("candidates", 1), "candidate 1: expected an object"),
        (
            rank,
            '{"context": {"price": 1}, "candidates": [{}, {"price": 2}]}',
            ("candidates", 1, "price"),
            "candidate 1, field 'price': the context gives this field too",
        ),
        (rank, '{"context": {"price": "x"}, "candidates": [{}]}', ("context", "price"), "context, field 'price': expected a number"),
        (rank, '{"context": {"pric": 1}, "candidates": [{}]}', ("context", "pric"), "context, field 'pric': unknown feature"),
        (rank, '{"candidates": [{}, {"age": 1.5}]}', ("candidates", 1, "age"), "candidate 1, field 'age': expected an integer"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_its_place(
    bundle: Bundle, work: Callable[[Bundle, bytes, int], dict[str, Any]], body: str, location: tuple[str | int, ...], problem: str
) -> None:
    with pytest.raises(InvalidBody) as refused:
        work(bundle, body.encode(), 10)
    assert refused.value.location == location
    assert problem in refused.value.problem


def test_too_many_rows_are_refused(bundle: Bundle) -> None:
    assert len(score(bundle, orjson.dumps({"rows": [{}] * 3}), 3)["probabilities"]) == 3
    with pytest.raises(TooLarge, match="4 rows in one request, 3 are allowed"):
        score(bundle, orjson.dumps({"rows": [{}] * 4}), 3)
    with pytest.raises(TooLarge, match="4 candidates"):
        rank(bundle, orjson.dumps({"candidates": [{}] * 4}), 3)


def test_this_file_uses_the_bundle_as_written(tmp_path: Path) -> None:
    shifted = open_bundle(make_bundle(tmp_path, shift=1.0))
    (got,) = score(shifted, b'{"rows": [{"user": "u1"}]}', 1)["probabilities"]
    assert got == pytest.approx(probability({"user": "u1"}, shift=1.0), rel=1e-5)
