"""``:recommend`` around vectors that a test knows: what is found, what is left out, who ranks, what is refused."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.bundle import open_bundle
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.bundle import open_retrieval_bundle
from ctrkit.retrieval.index import INDEX_FOLDER, write_index
from ctrkit.schema import Feature
from pipelines.bench.synthetic_towers import COLOURS, write_towers
from serving.problems import InvalidBody
from serving.ranker import Ranking
from serving.repository import Repository
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service, wait_until
from tests.serving.shop import ITEMS, VECTORS, ask, change, in_order, items, refused, rewrite


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


@pytest.mark.parametrize("what", [{"split": {"shop": {1: 0.5}}}, {"shadow": {"shop": 1}}])
def test_towers_are_not_split_and_have_no_shadow(repo: Path, what: dict[str, Any]) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(CtrkitError, match="'shop' recommends items"):
        Repository(repo, pool, ServingSettings(**what)).load()
