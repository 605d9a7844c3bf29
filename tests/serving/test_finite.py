"""Rows of which a model makes no finite number are refused with their place, whoever asks, and spoil nothing."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.bench.synthetic_towers import clustered, write_towers
from serving.settings import ServingSettings
from serving.wire.ask import ARROW
from tests.handmade import make_bundle
from tests.serving.live import service, wait_until

BAD = {"user": "u1", "price": -1e300}
"""The model answers 1 to everything else: infinity less infinity is no number."""

SAID = "the model makes no finite number of this row, whose largest number is -1e+300: correct it, or leave it out where it is not known"
VECTORS = 10 * clustered(40, 8, 4, seed=3)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repo = tmp_path_factory.mktemp("repo")
    make_bundle(repo, shift=math.inf)
    make_bundle(repo, "shadowed", 1)
    make_bundle(repo, "shadowed", 2, shift=math.inf)
    write_towers(repo, "shop", 1, VECTORS)
    with service(repo, ServingSettings(poll_s=0, pin={"shadowed": 1}, shadow={"shadowed": 2})) as address:
        yield address


def problem(address: str, path: str, body: Any) -> tuple[list[Any], str]:
    """Where in the body, and what."""
    answer = httpx.post(f"{address}/v1/models/{path}", json=body)
    assert answer.status_code == 422, answer.text
    (told,) = answer.json()["detail"]
    return told["loc"][1:], told["msg"]


def values(address: str, model: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.labels.get("model") == model]
    return {sample.labels.get("outcome") or sample.name: sample.value for sample in samples}


def test_scores_and_ranks_name_row_and_field_and_metrics_stay_numbers(address: str) -> None:
    good = {"user": "u2", "price": 1e300}
    assert httpx.post(f"{address}/v1/models/clicks:score", json={"rows": [good]}).json()["probabilities"] == [1.0]
    assert problem(address, "clicks:score", {"rows": [good, BAD]}) == (["rows", 1, "price"], f"row 1, field 'price': {SAID}")
    columns = {"price": [1, None, -1e300]}
    assert problem(address, "clicks:score", {"columns": columns}) == (["columns", "price", 2], f"row 2, field 'price': {SAID}")
    candidates = [{"age": 1}, {"age": 2, "price": -1e300}]
    where, said = problem(address, "clicks:rank", {"context": {"user": "u1"}, "candidates": candidates})
    assert where == ["candidates", 1, "price"] and said == f"candidate 1, field 'price': {SAID}"
    where, said = problem(address, "clicks:rank", {"context": BAD, "candidates": [{"age": 1}]})
    assert where == ["context", "price"] and said == f"context, field 'price': {SAID}"
    found = values(address, "clicks")
    assert found["ctrkit_score_sum"] == found["ctrkit_score_count"] == 1


def test_other_protocols_too(address: str) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"price": [0.0, -1e300]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"Content-Type": ARROW, "Accept": ARROW}
    answer = httpx.post(f"{address}/v1/models/clicks:score", content=sink.getvalue().to_pybytes(), headers=headers)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "price", 1]
    tensors = (("user", "BYTES", ["u1"]), ("age", "INT64", [1]), ("price", "FP64", [-1e300]), ("tags.lengths", "INT64", [0]))
    inputs = [{"name": name, "shape": [1], "datatype": kind, "data": data} for name, kind, data in tensors]
    inputs += [{"name": "tags.values", "shape": [0], "datatype": "BYTES", "data": []}]
    answer = httpx.post(f"{address}/v2/models/clicks/infer", json={"inputs": inputs})
    assert answer.status_code == 400 and answer.json()["error"] == f"input 'price', element 0: {SAID}."


def test_a_ranker_names_user_and_item(address: str) -> None:
    users = [{"likes": 7, "user": "u2"}, {"likes": 9, **BAD}]
    where, said = problem(address, "shop:recommend", {"users": users, "k": 2, "rank_by": {"model": "clicks"}})
    assert where == ["users", 1, "price"] and said.startswith("user 1, item ") and said.endswith(f", field 'price': {SAID}")


def test_an_item_whose_vector_is_not_finite_is_not_taken(address: str) -> None:
    items = [{"item": 500}, {"item": 501, "boost": 1e39}]
    where, said = problem(address, "shop/items:upsert", {"items": items})
    assert where == ["items", 1, "boost"] and said.startswith("item 1, field 'boost': the model makes no finite number of this row")
    assert httpx.get(f"{address}/v1/models/shop").json()["items"]["added"] == 0


def test_a_score_that_overflows_is_not_answered(address: str) -> None:
    """The item's vector is finite, and its inner product with the user's is not."""
    assert httpx.post(f"{address}/v1/models/shop/items:upsert", json={"items": [{"item": 47, "boost": 3e37}]}).status_code == 200
    try:
        for more in ({}, {"index": "exact"}, {"diversity": 0.5}):
            where, said = problem(address, "shop:recommend", {"users": [{"likes": 7}], "k": 1, **more})
            assert where == ["users", 0] and said == "user 0: the model makes no finite number of this row: leave it out"
    finally:
        assert httpx.post(f"{address}/v1/models/shop/items:remove", json={"items": [47]}).json()["removed"] == 1


def test_a_shadow_without_a_number_has_failed(address: str) -> None:
    assert httpx.post(f"{address}/v1/models/shadowed:score", json={"rows": [{"user": "u1"}]}).status_code == 200
    assert httpx.post(f"{address}/v1/models/shadowed:score", json={"rows": [BAD]}).json()["probabilities"] == [0.0]
    wait_until(lambda: values(address, "shadowed").get("failed") == 1)
    found = values(address, "shadowed")
    assert found["scored"] == 1 and math.isfinite(found["ctrkit_shadow_difference_sum"])
