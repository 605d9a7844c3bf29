"""``:recommend`` around vectors that a test knows: what is found, what is left out, who ranks, what is refused."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.bundle import FileEntry, open_bundle
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.bundle import ITEM_FILE, ITEMS_FILE, KEY, MANIFEST_FILE, RetrievalManifest, open_retrieval_bundle
from ctrkit.retrieval.index import INDEX_FOLDER, write_index
from ctrkit.schema import Feature
from pipelines.bench.synthetic_towers import COLOURS, ITEM_FEATURES, clustered, write_towers
from serving.items import ItemTable, View
from serving.problems import InvalidBody
from serving.ranker import Ranking
from serving.repository import Repository
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service, wait_until

ITEMS, WIDTH = 400, 8
VECTORS = clustered(ITEMS, WIDTH, 12, seed=3)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    write_towers(repo, "shop", 1, VECTORS)
    make_bundle(repo, "clicks", 1)
    return repo


@pytest.fixture(scope="module")
def address(repo: Path) -> Iterator[str]:
    with service(repo, ServingSettings(poll_s=0, max_rows=2000)) as address:
        yield address


@pytest.fixture(params=["exact", "graph"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the rule that few items are compared one by one, which holds for the whole catalogue of a test."""
    if request.param == "graph":
        monkeypatch.setattr("serving.search.EXACT_ROWS", 5)
    return request.param


def ask(address: str, path: str = "shop", **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/models/{path}:recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def items(address: str, **body: Any) -> list[Any]:
    (one,) = ask(address, **body)["recommendations"]
    return [entry["item"] for entry in one["items"]]


def in_order(user: int, allowed: Any) -> list[int]:
    """The allowed items, the nearest to a liked one first."""
    return sorted(allowed, key=lambda item: -float(VECTORS[item] @ VECTORS[user]))


def refused(address: str, status: int, path: str = "shop:recommend", **body: Any) -> str:
    answer = httpx.post(f"{address}/v1/models/{path}", json=body)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    return detail if isinstance(detail, str) else f"{'.'.join(str(part) for part in detail[0]['loc'])}: {detail[0]['msg']}"


def test_the_nearest_items_come_first_with_their_inner_products(address: str, few: str) -> None:
    for path in ("shop", "shop/versions/1"):
        answer = ask(address, path, users=[{"likes": 7}, {"likes": 9}], k=5)
        assert (answer["model"], answer["version"]) == ("shop", 1)
        for user, one in zip((7, 9), answer["recommendations"], strict=True):
            found = [entry["item"] for entry in one["items"]]
            assert one["index"] == ("exact" if few == "exact" else "approximate")
            assert found == in_order(user, range(ITEMS))[:5]
            assert [entry["score"] for entry in one["items"]] == pytest.approx((VECTORS[found] @ VECTORS[user]).tolist(), abs=1e-5)
    assert ask(address, user={"likes": 7}, k=2, index="exact")["recommendations"][0]["index"] == "exact"
    assert ask(address, users=[])["recommendations"] == []


def test_what_was_seen_is_left_out(address: str, few: str) -> None:
    best = in_order(7, range(ITEMS))
    assert items(address, user={"likes": 7, "recent": best[:3]}, k=4) == best[3:7]
    assert items(address, user={"likes": 7, "recent": best[:3]}, k=4, exclude_history=False) == best[:4]
    assert items(address, user={"likes": 7, "recent": [best[0]]}, k=4, seen=[best[2], 10**6]) == [best[1], *best[3:6]]
    both = ask(address, users=[{"likes": 7}, {"likes": 7}], k=1, seen=[[best[0]], []])["recommendations"]
    assert [one["items"][0]["item"] for one in both] == [best[1], best[0]]


def test_lists_and_attributes_allow_and_deny(address: str, few: str) -> None:
    best = in_order(7, range(ITEMS))
    assert items(address, user={"likes": 7}, k=3, deny=[best[0], best[2]]) == [best[1], *best[3:5]]
    assert items(address, user={"likes": 7}, k=9, allow=[best[300], best[20], best[20], 10**6]) == [best[20], best[300]]
    assert items(address, user={"likes": 7}, allow=[]) == []
    red = [i for i in range(ITEMS) if COLOURS[i % 4] == "red"]
    assert items(address, user={"likes": 7}, k=5, where={"colour": "red"}) == in_order(7, red)[:5]
    two = [i for i in red if i % 7 in (1, 2)]
    assert items(address, user={"likes": 7}, k=5, where={"colour": ["red"], "tags": ["t1", "t2", "t1", "no such"]}) == in_order(7, two)[:5]
    assert items(address, user={"likes": 7}, where={"colour": "purple"}) == []
    assert items(address, user={"likes": 7}, where={"item": [best[5], best[4]]}) == [best[4], best[5]]


@pytest.mark.parametrize("seed", range(6))
def test_never_fewer_than_k_while_there_are_k(address: str, few: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    worst_first = in_order(seed, range(ITEMS))[::-1]
    for share in (0.01, 0.05, 0.5, 0.97):
        allowed = random.permutation(worst_first[: max(1, int(share * ITEMS))]).tolist()
        seen = allowed[: len(allowed) // 3]
        left = set(allowed) - set(seen)
        for k in (1, 10, 60):
            found = items(address, user={"likes": seed, "recent": seen}, k=k, allow=allowed)
            assert len(found) == len(set(found)) == min(k, len(left)) and set(found) <= left
            if few == "exact":
                assert found == in_order(seed, left)[:k]


def test_rare_items_are_found_by_asking_the_graph_for_more(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.search.EXACT_ROWS", 0)
    (one,) = ask(address, user={"likes": 7}, k=3, where={"tags": "rare"})["recommendations"]
    assert {entry["item"] for entry in one["items"]} <= {0, 100, 200, 300} and len(one["items"]) == 3
    monkeypatch.setattr("serving.search.MOST_FETCHED", 10)
    (one,) = ask(address, user={"likes": 7}, k=4, where={"tags": "rare"})["recommendations"]
    assert [entry["item"] for entry in one["items"]] == in_order(7, [0, 100, 200, 300]) and one["index"] == "exact"


def test_another_model_ranks_user_and_item_features_together(address: str) -> None:
    user = {"likes": 7, "user": "u1", "price": 4.0}
    answer = ask(address, user=user, k=5, candidates=30, rank_by={"model": "clicks"})
    assert answer["ranked_by"] == {"model": "clicks", "version": 1}
    candidates = in_order(7, range(ITEMS))[:30]
    tags = {item: [f"t{item % 7}", *(["rare"] if item % 100 == 0 else [])] for item in candidates}
    chance = {item: probability({"user": "u1", "price": 4.0, "tags": tags[item]}) for item in candidates}
    expected = sorted(candidates, key=lambda item: -round(chance[item], 6))[:5]
    (one,) = answer["recommendations"]
    assert [entry["item"] for entry in one["items"]] == expected
    assert [entry["score"] for entry in one["items"]] == pytest.approx([chance[item] for item in expected], rel=1e-5)
    several = ask(address, users=[user, {"likes": 100}], k=200, rank_by={"model": "clicks", "version": 1})["recommendations"]
    assert [len(one["items"]) for one in several] == [200, 200]
    assert several[1]["items"][-1]["item"] in (0, 100, 200, 300), "the rare ones have two tags, which this model likes least"
    assert ask(address, user=user, allow=[], rank_by={"model": "clicks"})["recommendations"][0]["items"] == []


def test_diverse_lists_are_of_different_clusters(address: str) -> None:
    by_score = items(address, user={"likes": 7}, k=5)
    assert items(address, user={"likes": 7}, k=5, diversity=1.0) == by_score
    diverse = items(address, user={"likes": 7}, k=5, diversity=0.3, candidates=300)
    assert diverse[0] == by_score[0] and set(diverse) != set(by_score)

    def closest(found: list[int]) -> float:
        similar = VECTORS[found] @ VECTORS[found].T
        return float(similar[~np.eye(len(found), dtype=bool)].mean())

    assert closest(diverse) < closest(by_score) - 0.2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "body.user: the body needs either 'user' or 'users'"),
        ({"user": {}, "users": []}, "body.user: the body needs either 'user' or 'users'"),
        ({"user": {"like": 7}}, "body.user.like: user 0, field 'like': unknown feature. Did you mean 'likes'?"),
        ({"users": [{}, {"likes": "x"}]}, "body.users.1.likes: user 1, field 'likes': expected an integer, got 'x' (string)"),
        ({"user": {}, "kk": 3}, "body.kk: unknown key 'kk'. Did you mean 'k'?"),
        ({"user": {}, "k": 0}, "body.k: k: Input should be greater than or equal to 1, got 0"),
        ({"user": {}, "k": True}, "body.k: k: Input should be a valid integer, got True"),
        ({"user": {}, "index": "fast"}, "body.index: index: Input should be 'approximate' or 'exact', got 'fast'"),
        ({"user": {}, "diversity": 1.5}, "body.diversity: diversity: Input should be less than or equal to 1, got 1.5"),
        ({"user": {}, "candidates": 50}, "body.candidates: candidates: of use with 'rank_by' or 'diversity' only"),
        ({"user": {}, "deny": ["a"]}, "body.deny.0: deny, entry 0: expected an integer, got 'a' (string)"),
        ({"user": {}, "allow": [1, None]}, "body.allow.1: allow, entry 1 is no key of an item"),
        ({"users": [{}, {}], "seen": [[1]]}, "body.seen: seen: expected a list of items for each of 2 users"),
        ({"users": [{}], "seen": [[1, "b"]]}, "body.seen.0.1: seen.0, entry 1: expected an integer, got 'b' (string)"),
        ({"user": {}, "where": {"color": "red"}}, "body.where.color: where: the items have no feature 'color'. Did you mean 'colour'?"),
        ({"user": {}, "where": {"boost": 1}}, "body.where.boost: where: 'boost' is a number; items are chosen by features of values"),
        ({"user": {}, "where": {"colour": [1.5]}}, "body.where.colour: where, 'colour': expected a string, got 1.5 (number)"),
        ({"user": {}, "rank_by": {"model": "clicks", "taks": "x"}}, "body.rank_by.taks: unknown key 'rank_by.taks'. Did you mean 'task'?"),
        ({"user": {}, "rank_by": {"model": "clicks", "task": "x"}}, "body.rank_by.task: rank_by.task: unknown task 'x'"),
        ({"user": {"tags": ["a"]}, "rank_by": {"model": "clicks"}}, "body.user.tags: user 0, field 'tags': the catalogue has this feature"),
        ({"user": {"price": "a"}, "rank_by": {"model": "clicks"}}, "body.user.price: user 0, field 'price': expected a number, got 'a'"),
    ],
)
def test_a_body_that_does_not_fit_is_a_422_with_its_place(address: str, body: dict[str, Any], said: str) -> None:
    assert refused(address, 422, **body).startswith(said)


def test_what_else_is_refused(address: str) -> None:
    assert "no model 'click'" in refused(address, 404, user={}, rank_by={"model": "click"})
    assert "no version '7' of the model 'clicks'" in refused(address, 404, user={}, rank_by={"model": "clicks", "version": 7})
    assert "recommends items and scores no rows" in refused(address, 400, user={}, rank_by={"model": "shop"})
    assert "2,001 users in one request" in refused(address, 413, users=[{}] * 2001)
    assert "2,010 candidates of all users" in refused(address, 413, users=[{}] * 201, k=10)
    assert "2,001 items in one request" in refused(address, 413, "shop/items:remove", items=list(range(2001)))
    answer = httpx.post(f"{address}/v1/models/shop:recommend", content=b"[]", headers={"Content-Type": "text/csv"})
    assert answer.status_code == 415
    for body in (b"[]", b"{", b'{"user": {}, "user": NaN}'):
        assert httpx.post(f"{address}/v1/models/shop:recommend", content=body).status_code == 422


def test_towers_score_no_rows_and_scorers_recommend_nothing(address: str) -> None:
    for path, body in (("shop:score", {"rows": []}), ("shop:rank", {"candidates": []}), ("shop/versions/1:score", {"rows": []})):
        assert refused(address, 400, path, **body) == (
            "the model 'shop' recommends items and scores no rows. Ask /v1/models/shop:recommend."
        )
    for path in ("clicks:recommend", "clicks/versions/1:recommend", "clicks/items:upsert", "clicks/items:remove"):
        assert "the model 'clicks' scores rows and recommends no items" in refused(address, 400, path, user={})
    assert httpx.post(f"{address}/v2/models/shop/infer", json={"inputs": []}).status_code == 400
    assert httpx.get(f"{address}/v2/models/shop").status_code == 400
    assert httpx.get(f"{address}/v2/models/shop/ready").json() == {"name": "shop", "ready": True}
    assert "no model 'shops'" in refused(address, 404, "shops:recommend", user={})


def test_towers_are_listed_and_described(address: str) -> None:
    listed = httpx.get(f"{address}/v1/models").json()["models"]
    assert [(model["name"], model["kind"]) for model in listed] == [("clicks", "scorer"), ("shop", "towers")]
    about = httpx.get(f"{address}/v1/models/shop").json()
    assert about["item_key"] == "item" and about["items"] == {"indexed": ITEMS, "hidden": 0, "added": 0}
    assert [feature["name"] for feature in about["user_features"]] == ["likes", "recent"]
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    schema = paths["/v1/models/{name}:recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "diversity" in schema["properties"] and "/v1/models/{name}/items:upsert" in paths


def test_stages_are_measured(address: str) -> None:
    ask(address, users=[{"likes": 1}, {"likes": 2}], rank_by={"model": "clicks"}, diversity=0.5)
    text = httpx.get(f"{address}/metrics").text
    for stage in ("read", "queue", "parse", "tower", "filter", "index", "rank", "answer", "total"):
        (line,) = [one for one in text.splitlines() if one.startswith("ctrkit_recommend_seconds_sum") and f'stage="{stage}"' in one]
        assert 'model="shop"' in line and float(line.split()[-1]) > 0
    assert 'ctrkit_items{model="shop",state="indexed",version="1"} 400.0' in text
    assert 'ctrkit_request_seconds_count{route="recommend",status="200"}' in text


def test_a_ranker_must_read_the_items_and_as_they_are(repo: Path) -> None:
    towers, clicks = open_retrieval_bundle(repo / "shop"), open_bundle(repo / "clicks")

    def reading(*features: dict[str, Any]) -> Ranking:
        kinds = tuple(Feature.model_validate(feature) for feature in features)
        clicks.manifest = clicks.manifest.model_copy(update={"features": kinds})
        return Ranking(towers, clicks)

    with pytest.raises(InvalidBody, match="reads none of the items' features: item, colour, tags, boost"):
        reading({"name": "user", "kind": "categorical"})
    for wrong in ({"name": "tags", "kind": "categorical"}, {"name": "colour", "kind": "categorical", "dtype": "int"}):
        with pytest.raises(InvalidBody, match=f"'{wrong['name']}' is of another type there"):
            reading(wrong)
    reading({"name": "item", "kind": "categorical"})


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A repository for a test alone."""
    write_towers(tmp_path, "shop", 1, VECTORS)
    return tmp_path


def rewrite(folder: Path, **changed: Any) -> None:
    """Changes the manifest of towers and takes their files' checksums anew."""
    manifest = RetrievalManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    contents = {name: (folder / name).read_bytes() for name in manifest.files}
    files = {name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)) for name, content in contents.items()}
    (folder / MANIFEST_FILE).write_text(manifest.model_copy(update={**changed, "files": files}).model_dump_json())


def test_where_reads_the_key_also_if_it_is_no_feature(own: Path) -> None:
    rewrite(own / "shop" / "1", item_key=Feature.model_validate({"name": "id", "kind": "categorical", "dtype": "int"}))
    with service(own, ServingSettings(poll_s=0)) as address:
        best = in_order(7, range(ITEMS))
        assert items(address, user={"likes": 7}, where={"id": [best[5], best[4], 10**6]}) == [best[4], best[5]]
        assert items(address, user={"likes": 7}, where={"id": best[4], "item": best[5]}) == []
        change(address, "upsert", [{"id": ITEMS + 7, "item": ITEMS + 7}])
        assert items(address, user={"likes": 7}, where={"id": [ITEMS + 7, best[4]]}) == [ITEMS + 7, best[4]]
        change(address, "remove", [best[4]])
        assert items(address, user={"likes": 7}, where={"id": best[4]}) == []


def test_users_are_not_multiplied_by_candidates_without_bound(own: Path) -> None:
    make_bundle(own, "clicks", 1)
    with service(own, ServingSettings(poll_s=0, max_body_mb=0.05)) as address:
        user = {"likes": 7, "user": "x" * 20_000}
        asked = {"candidates": 400, "rank_by": {"model": "clicks"}}
        said = refused(address, 413, user=user, **asked)
        assert said.startswith("what the ranker reads of the users is too long to be joined with 400 candidates")
        assert len(items(address, user=user, k=2, candidates=20, rank_by={"model": "clicks"})) == 2
        assert len(items(address, user={"likes": 7, "recent": [1] * 10_000}, k=2, **asked)) == 2, "the ranker does not read this"


def colours_are_numbers(folder: Path) -> None:
    graph = onnx.load(folder / ITEM_FILE)
    (colour,) = [one for one in graph.graph.input if one.name == "colour"]
    colour.type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(graph, folder / ITEM_FILE)
    catalogue = pl.read_parquet(folder / ITEMS_FILE)
    catalogue.with_columns(colour=pl.lit(1, pl.Int64)).write_parquet(folder / ITEMS_FILE)
    features = tuple(f.model_copy(update={"dtype": "int"}) if f.name == "colour" else f for f in ITEM_FEATURES)
    rewrite(folder, item_features=features)


def test_an_item_that_an_older_version_cannot_take_is_named(own: Path) -> None:
    """A service that starts loads both versions."""
    colours_are_numbers(own / "shop" / "1")
    write_towers(own, "shop", 2, VECTORS)
    with service(own, ServingSettings(poll_s=0)) as address:
        assert httpx.get(f"{address}/v1/models/shop").json()["versions"] == [1, 2]
        said = refused(address, 422, "shop/items:upsert", items=[{"item": 5000}, {"item": 5001, "colour": "gold"}])
        assert said.startswith(
            "body.items.1.colour: item 1, field 'colour': version 1, which is loaded too, cannot take it: expected an integer, got 'gold'"
        )
        assert said.endswith("Send what all loaded versions take, or serve the newest alone: --set live_versions=1")
        assert httpx.get(f"{address}/v1/models/shop").json()["items"]["added"] == 0
        assert change(address, "upsert", [{"item": 5000}])["added"] == 1
    with service(own, ServingSettings(poll_s=0, live_versions=1)) as address:
        assert change(address, "upsert", [{"item": 5001, "colour": "gold"}])["added"] == 1


def test_the_ranker_is_the_version_that_a_caller_gets_elsewhere_and_is_counted_and_shadowed(own: Path) -> None:
    for version in (1, 2):
        make_bundle(own, "clicks", version, shift=float(version))
    settings = ServingSettings(poll_s=0, pin={"clicks": 1}, split={"clicks": {2: 0.5}}, shadow={"clicks": 1}, drift_min_rows=1)
    with service(own, settings) as address, httpx.Client(base_url=address) as client:
        body = {"user": {"likes": 7, "user": "u1"}, "k": 1, "candidates": 5, "rank_by": {"model": "clicks"}}
        for key in [f"user-{number}" for number in range(20)]:
            headers = {"X-Split-Key": key}
            scored = client.post("/v1/models/clicks:score", json={"rows": [{}]}, headers=headers).json()["version"]
            answer = client.post("/v1/models/shop:recommend", json=body, headers=headers).json()
            assert answer["ranked_by"] == {"model": "clicks", "version": scored}
        named = {**body, "rank_by": {"model": "clicks", "version": 1}}
        assert client.post("/v1/models/shop:recommend", json=named, headers=headers).json()["ranked_by"]["version"] == 1

        def value(name: str, **labels: str) -> float:
            text = client.get("/metrics").text
            families = text_string_to_metric_families(text)
            return sum(
                sample.value
                for family in families
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            )

        rows = 20 * (1 + 5) + 5
        assert value("ctrkit_score_count", model="clicks") == value("ctrkit_drift_rows", model="clicks") == rows
        assert value("ctrkit_request_rows_count", model="clicks") == 41
        assert value("ctrkit_stage_seconds_count", model="clicks", stage="total") == 20, "a recommendation has stages of its own"
        by_two = value("ctrkit_request_rows_count", model="clicks", version="2")
        wait_until(lambda: value("ctrkit_shadow_total", model="clicks", version="2", outcome="scored") == by_two)


def change(address: str, verb: str, items: list[Any]) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/models/shop/items:{verb}", json={"items": items})
    assert answer.status_code == 200, answer.text
    return answer.json()


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_items_come_change_and_go_without_a_restart(own: Path, few: str) -> None:
    before = digests(own)
    with service(own, ServingSettings(poll_s=0)) as address:
        best = in_order(7, range(ITEMS))
        new = {"item": ITEMS + 7, "colour": "gold", "tags": ["new"], "boost": 0.5}
        assert change(address, "upsert", [new]) == {"model": "shop", "version": 1, "added": 1, "changed": 0}
        (one,) = ask(address, user={"likes": 7}, k=2)["recommendations"]
        assert one["items"] == [{"item": ITEMS + 7, "score": pytest.approx(1.5)}, {"item": 7, "score": pytest.approx(1.0)}]
        assert items(address, user={"likes": 7}, where={"colour": "gold"}) == [ITEMS + 7]
        assert items(address, user={"likes": 7}, k=1, where={"tags": ["new", "t0"]}) == [ITEMS + 7]
        assert items(address, user={"likes": 7, "recent": [ITEMS + 7]}, k=2) == best[:2]
        assert change(address, "upsert", [{"item": best[9], "boost": 9}, {**new, "boost": -3}])["changed"] == 2
        assert items(address, user={"likes": 7}, k=3) == [best[9], best[0], best[1]]
        colour = COLOURS[best[9] % 4]
        assert best[9] not in items(address, user={"likes": 7}, k=ITEMS, where={"colour": colour}), "what is left out is missing"
        assert change(address, "remove", [best[0], best[9], ITEMS + 7, 10**6]) == {
            "model": "shop",
            "version": 1,
            "removed": 3,
            "unknown": 1,
        }
        assert items(address, user={"likes": 7}, k=8) == best[1:9]
        assert items(address, user={"likes": 7}, allow=[best[0], best[9]]) == []
        assert change(address, "remove", [best[0]])["unknown"] == 1
        assert change(address, "upsert", [{"item": best[0]}])["added"] == 1
        assert items(address, user={"likes": 7}, k=2) == best[:2]
        text = httpx.get(f"{address}/metrics").text
        assert 'ctrkit_items{model="shop",state="hidden",version="1"} 2.0' in text
        assert len(items(address, user={"likes": 7}, k=10 * ITEMS)) == ITEMS - 1
    assert digests(own) == before, "requests never write to the repository"


def test_a_change_that_is_refused_changes_nothing(own: Path) -> None:
    with service(own, ServingSettings(poll_s=0, max_changed_items=2, max_rows=3)) as address:
        path = "shop/items:upsert"
        for body, said in (
            ({}, "body.items: the body has no 'items'"),
            ({"items": [{"item": 1, "color": "x"}]}, "body.items.0.color: item 0, field 'color': unknown feature. Did you mean 'colour'?"),
            ({"items": [{"item": 5000}, {"colour": "x"}]}, "body.items.1.item: item 1 has no 'item', which is its key"),
            ({"items": [{"item": 5000}, {"item": 5000}]}, "body.items.1.item: item 1 has the 'item' of another one"),
            ({"items": [{"item": 5000, "boost": "x"}]}, "body.items.0.boost: item 0, field 'boost': expected a number"),
        ):
            assert refused(address, 422, path, **body).startswith(said)
        assert "3 items would differ from the indexed catalogue, 2 may" in refused(
            address, 413, path, items=[{"item": 5000 + i} for i in range(3)]
        ).replace(",", ",")
        assert "3 items would differ" in refused(address, 413, "shop/items:remove", items=[1, 2, 3])
        assert httpx.get(f"{address}/v1/models/shop").json()["items"] == {"indexed": ITEMS, "hidden": 0, "added": 0}
        assert change(address, "upsert", []) == {"model": "shop", "version": 1, "added": 0, "changed": 0}
        assert change(address, "upsert", [{"item": 5000}, {"item": 1}]) | {"version": 0} == {
            "model": "shop",
            "version": 0,
            "added": 1,
            "changed": 1,
        }
        assert change(address, "upsert", [{"item": 5000, "boost": 1}])["changed"] == 1


def test_a_catalogue_of_several_chunks_is_joined_once() -> None:
    """Rows of a list column in several chunks cost Polars a copy of it, and each answer names its items' rows."""
    parts = [pl.DataFrame({KEY: [number], "tags": [["a", "b"]]}) for number in range(3)]
    frame = pl.concat(parts, rechunk=False)
    assert frame.n_chunks() == 3
    view = View.of(ItemTable(frame, np.zeros((3, 2), np.float32))).with_items(parts[0], np.ones((1, 2), np.float32))
    assert [table.frame.n_chunks("all") for table in (view.base, view.added)] == [[1, 1], [1, 1]]
    assert view.keys(np.array([2, 3])) == [2, 0]


def test_readers_never_see_half_of_a_change(own: Path) -> None:
    """Two items change together, again and again: their scores always tell of the same change."""
    ratio = float(VECTORS[8] @ VECTORS[7])
    stop, wrong = threading.Event(), []

    def look(address: str) -> None:
        with httpx.Client(base_url=address) as client:
            while not stop.is_set():
                body = {"user": {"likes": 7}, "allow": [ITEMS + 7, ITEMS + 8], "k": 2}
                found = client.post("/v1/models/shop:recommend", json=body).json()["recommendations"][0]["items"]
                scores = {entry["item"]: entry["score"] for entry in found}
                if len(scores) != 2 or abs(scores[ITEMS + 8] / scores[ITEMS + 7] - ratio) > 1e-4:
                    wrong.append(found)

    with service(own, ServingSettings(poll_s=0)) as address:
        change(address, "upsert", [{"item": ITEMS + 7}, {"item": ITEMS + 8}])
        threads = [threading.Thread(target=look, args=(address,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for boost in range(25):
            change(address, "upsert", [{"item": ITEMS + 7, "boost": boost}, {"item": ITEMS + 8, "boost": boost}])
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_new_version_takes_over_with_the_changes(own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with service(own, ServingSettings(poll_s=0.05)) as address:
        change(address, "upsert", [{"item": ITEMS + 7, "colour": "gold", "boost": 1}])
        change(address, "remove", [7])
        write_towers(tmp_path_factory.mktemp("new"), "shop", 2, VECTORS[::-1].copy()).rename(own / "shop" / "2")
        wait_until(lambda: ask(address, user={"likes": 7}, k=1)["version"] == 2)
        (one,) = ask(address, user={"likes": 7}, k=2)["recommendations"]
        assert one["items"][0] == {"item": ITEMS + 7, "score": pytest.approx(2.0)} and one["items"][1]["item"] != 7
        (old,) = ask(address, "shop/versions/1", user={"likes": 7}, k=2)["recommendations"]
        assert old["items"][0]["item"] == ITEMS + 7
        change(address, "remove", [ITEMS + 7])
        for path in ("shop", "shop/versions/1"):
            assert ask(address, path, user={"likes": 7}, k=1)["recommendations"][0]["items"][0]["item"] not in (7, ITEMS + 7)


def test_a_version_that_cannot_recommend_is_refused_and_the_old_one_stays(own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    scratch = tmp_path_factory.mktemp("new")

    def no_index(folder: Path) -> None:
        shutil.rmtree(folder / INDEX_FOLDER)

    def another_index(folder: Path) -> None:
        write_index(-VECTORS, folder / INDEX_FOLDER)

    def shorter_index(folder: Path) -> None:
        write_index(VECTORS[:-1], folder / INDEX_FOLDER)

    def altered(folder: Path) -> None:
        (folder / "items.parquet").write_bytes(b"")

    def endless(folder: Path) -> None:
        write_index(np.where(np.arange(ITEMS)[:, None] == 99, np.nan, VECTORS), folder / INDEX_FOLDER)

    cases = {
        endless: "holds vectors that are not finite",
        no_index: "Build it with 'ctrkit index RUN'",
        another_index: "the index in",
        shorter_index: "is of 399 vectors",
        altered: "corrupted",
    }
    with service(own, ServingSettings(poll_s=0.05)) as address:

        def reasons(name: str = "shop") -> str:
            return " ".join(entry["reason"] for entry in httpx.get(f"{address}/v1/models/{name}").json()["refused"])

        for version, (spoil, reason) in enumerate(cases.items(), 2):
            folder = write_towers(scratch, "shop", version, VECTORS)
            spoil(folder)
            folder.rename(own / "shop" / str(version))
            wait_until(lambda reason=reason: reason in reasons())
        make_bundle(scratch, "shop", 9).rename(own / "shop" / "9")
        wait_until(lambda: "version 9 scores rows, and version 1 recommends items" in reasons())
        assert ask(address, user={"likes": 7}, k=1)["version"] == 1
        index = write_towers(tmp_path_factory.mktemp("whole"), "shop", 3, VECTORS) / INDEX_FOLDER
        index.rename(own / "shop" / "3" / INDEX_FOLDER)
        wait_until(lambda: ask(address, user={"likes": 7}, k=1)["version"] == 3)
        make_bundle(own, "clicks", 1)
        wait_until(lambda: httpx.get(f"{address}/v1/models/clicks").status_code == 200)
        write_towers(scratch, "clicks", 2, VECTORS).rename(own / "clicks" / "2")
        wait_until(lambda: "version 2 recommends items, and version 1 scores rows" in reasons("clicks"))


def test_keys_and_bounds_hold_as_for_scores(own: Path) -> None:
    keys = own.parent / "keys"
    keys.write_text("a-long-secret-key-1")
    with service(own, ServingSettings(poll_s=0, key_file=keys, max_body_mb=0.001)) as address:
        for path in ("shop:recommend", "shop/items:upsert", "shop/items:remove"):
            assert httpx.post(f"{address}/v1/models/{path}", json={"user": {}}).status_code == 401
            headers = {"X-API-Key": "a-long-secret-key-1"}
            assert httpx.post(f"{address}/v1/models/{path}", content=b" " * 2000, headers=headers).status_code == 413


def test_a_journal_keeps_changes_and_processes_share_it(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as one, service(own, settings) as other:
        change(one, "upsert", [{"item": ITEMS + 7, "colour": "gold", "boost": 1}])
        assert items(other, user={"likes": 7}, k=1) == [ITEMS + 7], "the next request of another process sees it"
        assert change(other, "upsert", [{"item": ITEMS + 7, "boost": 2}, {"item": ITEMS + 8}])["changed"] == 1
        assert change(one, "remove", [ITEMS + 8, 7]) | {"model": ""} == {"model": "", "version": 1, "removed": 2, "unknown": 0}
        file = own / "kept" / "shop.jsonl"
        with file.open("ab") as stream:  # a process died while it wrote
            stream.write(b"[[9, null")
        for address in (one, other):
            (found,) = ask(address, user={"likes": 7}, k=3)["recommendations"]
            assert found["items"][0] == {"item": ITEMS + 7, "score": pytest.approx(3.0)}
            assert {7, ITEMS + 8}.isdisjoint(entry["item"] for entry in found["items"])
        change(other, "remove", [9])
        assert len(file.read_bytes().splitlines()) == 4 and b"[[9, null" not in file.read_bytes()
    with service(own, settings) as again:
        assert httpx.get(f"{again}/v1/models/shop").json()["items"] == {"indexed": ITEMS, "hidden": 2, "added": 1}
        assert items(again, user={"likes": 7}, k=1) == [ITEMS + 7] and items(again, user={"likes": 9}, allow=[9]) == []


def test_an_item_of_another_process_that_a_version_cannot_take_is_hidden_there(tmp_path: Path) -> None:
    """As while a new version is rolled out, one service after the other."""
    settings = ServingSettings(poll_s=0, journal=tmp_path / "kept")
    for repo, version in (("before", 1), ("after", 2)):
        write_towers(tmp_path / repo, "shop", version, VECTORS)
    colours_are_numbers(tmp_path / "before" / "shop" / "1")
    with service(tmp_path / "before", settings) as before, service(tmp_path / "after", settings) as after:
        one, other = ITEMS + 7, 2 * ITEMS + 7
        change(before, "upsert", [{"item": one, "boost": 2}])
        change(after, "upsert", [{"item": one, "colour": "gold", "boost": 2}, {"item": other, "boost": 1}, {"item": 5}])
        assert items(after, user={"likes": 7}, k=2) == [one, other]
        assert items(before, user={"likes": 7}, k=2) == [other, 7]
        change(after, "upsert", [{"item": one, "boost": 2}])
        assert items(before, user={"likes": 7}, k=2) == [one, other]


def test_writers_of_several_processes_agree(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as one, service(own, settings) as other:

        def write(address: str, first: int) -> None:
            for step in range(6):
                change(address, "upsert", [{"item": 1000 + first + step}, {"item": 2000, "boost": first + step}])

        threads = [threading.Thread(target=write, args=(address, 100 * place)) for place, address in enumerate((one, other, one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = [ask(address, user={"likes": 7}, k=ITEMS + 25)["recommendations"] for address in (one, other)]
    assert answers[0] == answers[1] and len(answers[0][0]["items"]) == ITEMS + 25


def test_a_journal_that_cannot_be_used_is_said(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as address:

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("serving.journal.os.fsync", full)
            assert "No space left on device" in refused(address, 503, "shop/items:remove", items=[7])
        assert items(address, user={"likes": 7}, k=1) == [7] and (own / "kept" / "shop.jsonl").read_bytes() == b""
        change(address, "remove", [7])
    file = own / "kept" / "shop.jsonl"
    for text, said in ((b"nonsense\n", "is damaged"), (b'[[5000, {"boost": "x"}]]\n', "expected a number, got 'x'")):
        file.write_bytes(text)
        pool = ThreadPoolExecutor(1)
        with pytest.raises(CtrkitError, match=said):
            Repository(own, pool, settings).load()
        pool.shutdown()


def test_a_journal_that_was_emptied_takes_no_change_until_the_service_starts_again(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as address:
        change(address, "remove", [7])
        file = own / "kept" / "shop.jsonl"
        file.write_bytes(b"")
        assert "the journal is shorter than it was" in refused(address, 503, "shop/items:remove", items=[9])
        assert file.read_bytes() == b"" and items(address, user={"likes": 7}, allow=[7, 9]) == [9]
    with service(own, settings) as address:
        change(address, "remove", [9])
        assert items(address, user={"likes": 7}, allow=[7, 9]) == [7]


def test_several_workers_take_changes_with_a_journal_only(repo: Path, tmp_path: Path) -> None:
    with service(repo, ServingSettings(poll_s=0, workers=2)) as address:
        assert "one of several workers" in refused(address, 403, "shop/items:upsert", items=[])
        assert "one of several workers" in refused(address, 403, "shop/items:remove", items=[])
    with service(repo, ServingSettings(poll_s=0, workers=2, journal=tmp_path)) as address:
        assert httpx.post(f"{address}/v1/models/shop/items:remove", json={"items": [3]}).json()["removed"] == 1


@pytest.mark.parametrize("what", [{"split": {"shop": {1: 0.5}}}, {"shadow": {"shop": 1}}])
def test_towers_are_not_split_and_have_no_shadow(repo: Path, what: dict[str, Any]) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(CtrkitError, match="'shop' recommends items"):
        Repository(repo, pool, ServingSettings(**what)).load()
