"""Rows of which a model makes no finite number are refused with their place, whoever asks, and spoil nothing."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.bundle import MANIFEST_FILE, MODEL_FILE, Manifest, describe_files
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
    reads_boost(repo)
    with service(repo, ServingSettings(poll_s=0, pin={"shadowed": 1}, shadow={"shadowed": 2})) as address:
        yield address


def reads_boost(repo: Path) -> None:
    """A ranker of which an item's boost of -1e10 makes infinity less infinity, and any other number of items 1."""
    folder = make_bundle(repo, "boosted", shift=math.inf)
    model = onnx.load(folder / MODEL_FILE)
    for node in model.graph.node:
        node.input[:] = ["boost" if name == "price" else name for name in node.input]
    next(one for one in model.graph.input if one.name == "price").name = "boost"
    next(one for one in model.graph.initializer if one.name == "tenth").CopyFrom(helper.make_tensor("tenth", TensorProto.FLOAT, [], [1e38]))
    onnx.save(model, folder / MODEL_FILE)
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    features = tuple(f.model_copy(update={"name": "boost"}) if f.name == "price" else f for f in manifest.features)
    inputs = manifest.inputs.model_copy(update={"numeric_fields": ("boost",)})
    (folder / MANIFEST_FILE).unlink()
    written = manifest.model_copy(update={"features": features, "inputs": inputs, "files": describe_files(folder)})
    (folder / MANIFEST_FILE).write_text(written.model_dump_json())


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


def test_an_item_whose_score_could_overflow_is_not_taken(address: str) -> None:
    """Its vector is finite, and its inner product with a user's need not be."""
    where, said = problem(address, "shop/items:upsert", {"items": [{"item": 47, "boost": 3e37}]})
    assert where == ["items", 0, "boost"] and said.startswith("item 0, field 'boost': the model makes no finite number of this row")


def test_an_item_that_a_ranker_makes_no_number_of_is_left_out(address: str) -> None:
    items = [{"item": 47, "boost": -1e10}, {"item": 48, "boost": -1e10}, {"item": 49, "boost": 2}]
    assert httpx.post(f"{address}/v1/models/shop/items:upsert", json={"items": items}).status_code == 200
    try:
        ask = {"users": [{"likes": 7}, {"likes": 8}], "allow": [3, 47, 48, 49], "k": 9, "rank_by": {"model": "boosted"}}
        lists = httpx.post(f"{address}/v1/models/shop:recommend", json=ask).json()["recommendations"]
        assert [sorted(entry["item"] for entry in one["items"]) for one in lists] == [[3, 49], [3, 49]]
        assert {entry["score"] for one in lists for entry in one["items"]} == {1.0}
        where, said = problem(address, "shop:recommend", {**ask, "allow": [47, 48], "diversity": 0.5})
        assert where == ["users", 0] and said.startswith("user 0, item 4") and "makes no finite number of this row" in said
    finally:
        assert httpx.post(f"{address}/v1/models/shop/items:remove", json={"items": [47, 48, 49]}).json()["removed"] == 3


def test_a_shadow_without_a_number_has_failed(address: str) -> None:
    assert httpx.post(f"{address}/v1/models/shadowed:score", json={"rows": [{"user": "u1"}]}).status_code == 200
    assert httpx.post(f"{address}/v1/models/shadowed:score", json={"rows": [BAD]}).json()["probabilities"] == [0.0]
    wait_until(lambda: values(address, "shadowed").get("failed") == 1)
    found = values(address, "shadowed")
    assert found["scored"] == 1 and math.isfinite(found["ctrkit_shadow_difference_sum"])
