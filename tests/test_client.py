import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from ctrkit.client import AsyncClient, Client, Ranked, Recommended, ServiceError
from pipelines.bench.synthetic_towers import write_towers
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service

KEY = "a-long-secret-key-1"
ROWS = [{"user": "u1", "price": 2.5, "tags": ["a"]}, {"user": "x"}, {}]
EXPECTED = [probability(row) for row in ROWS]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repo: Path = tmp_path_factory.mktemp("repo")
    make_bundle(repo)
    make_bundle(repo, version=2, shift=1.0)
    keys = repo.parent / "keys"
    keys.write_text(KEY)
    with service(repo, ServingSettings(key_file=keys, poll_s=0)) as address:
        yield address


def test_it_scores_and_ranks(address: str) -> None:
    with Client(address, KEY) as client:
        assert client.ready()
        assert client.score("clicks", ROWS, version=1) == pytest.approx(EXPECTED, rel=1e-5)
        columns = {"user": ["u1", "x"], "price": np.array([2.5, np.nan]), "tags": [["a"], []]}
        assert client.score_columns("clicks", columns, version=1) == pytest.approx(EXPECTED[:2], rel=1e-5)
        assert client.score("clicks", [{}]) == pytest.approx([probability({}, 1.0)], rel=1e-5)
        (best,) = client.rank("clicks", [{"price": 1}, {"price": 9}], context={"user": "u1"}, top_k=1)
        assert isinstance(best, Ranked) and best.index == 1 and best.candidate == {"price": 9}
        assert client.model("clicks")["versions"] == [1, 2] and client.model("clicks", version=1)["version"] == 1


def test_it_does_the_same_for_asyncio(address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(address, KEY) as client:
            assert await client.ready()
            answers = await asyncio.gather(*(client.score("clicks", [row], version=1) for row in ROWS))
            assert [one for answer in answers for one in answer] == pytest.approx(EXPECTED, rel=1e-5)
            assert await client.score_columns("clicks", {"user": ["x"]}, version=1) == pytest.approx([EXPECTED[1]], rel=1e-5)
            assert [r.index for r in await client.rank("clicks", [{"price": 1}, {"price": 9}])] == [1, 0]
            assert (await client.model("clicks"))["version"] == 2
            with pytest.raises(ServiceError, match="unknown feature"):
                await client.score("clicks", [{"usr": 1}])

    asyncio.run(ask())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repo = tmp_path_factory.mktemp("shop")
    write_towers(repo, "shop", 1, np.eye(6, dtype=np.float32) + 0.1)
    with service(repo, ServingSettings(poll_s=0)) as address:
        yield address


def test_it_recommends_and_changes_items(shop: str) -> None:
    with Client(shop) as client:
        first, second = client.recommend("shop", {"likes": 4, "recent": [0, 1]}, 2)
        assert isinstance(first, Recommended) and first.item == 4 and first.score == pytest.approx(1.26)
        assert second.item in (2, 3, 5) and second.score == pytest.approx(0.26), "of those not seen, which score the same"
        lists = client.recommend_many("shop", [{"likes": 1}, {"likes": 2}], 1, seen=[[1], []], version=1)
        assert [[one.item for one in items] for items in lists] == [[0], [2]]
        assert client.upsert_items("shop", [{"item": 10, "colour": "gold", "boost": 1}])["added"] == 1
        assert client.recommend("shop", {"likes": 4}, 1, where={"colour": "gold"})[0].item == 10
        assert client.remove_items("shop", [10, 11]) == {"model": "shop", "version": 1, "removed": 1, "unknown": 1}
        with pytest.raises(ServiceError, match="recommends items and scores no rows") as refused:
            client.score("shop", [{}])
        assert refused.value.status == 400


def test_it_recommends_for_asyncio(shop: str) -> None:
    async def ask() -> None:
        async with AsyncClient(shop) as client:
            assert [one.item for one in await client.recommend("shop", {"likes": 4}, 1, index="exact")] == [4]
            assert [items[0].item for items in await client.recommend_many("shop", [{"likes": 3}, {"likes": 5}], 1)] == [3, 5]
            assert (await client.upsert_items("shop", [{"item": 16}]))["added"] == 1
            assert (await client.remove_items("shop", [16]))["removed"] == 1

    asyncio.run(ask())


def test_a_refusal_says_what_the_service_said(address: str) -> None:
    with Client(address, KEY) as client:
        with pytest.raises(ServiceError, match="row 1, field 'usr': unknown feature. Did you mean 'user'?") as refused:
            client.score("clicks", [{}, {"usr": "u1"}])
        assert refused.value.status == 422 and refused.value.request_id
        with pytest.raises(ServiceError, match="no model 'click'. Did you mean 'clicks'?"):
            client.score("click", [{}])
        with pytest.raises(ServiceError, match="cannot be written as JSON"):
            client.score("clicks", [{"user": object()}])
    with Client(address) as client, pytest.raises(ServiceError, match="needs an API key"):
        client.score("clicks", [{}])
    with Client("http://127.0.0.1:9") as client:
        assert not client.ready()
        with pytest.raises(ServiceError, match="no answer from http://127.0.0.1:9"):
            client.score("clicks", [{}])


@pytest.mark.parametrize(("refusals", "status"), [(2, 200), (3, 429)])
def test_a_busy_service_is_asked_again(refusals: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked <= refusals:
            return httpx.Response(429, headers={"Retry-After": "7"}, json={"detail": "busy"})
        return httpx.Response(200, json={"probabilities": [0.5]})

    monkeypatch.setattr("time.sleep", waited.append)
    client = Client("http://service")
    client._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))
    if status == 200:
        assert client.score("clicks", [{}]) == [0.5]
    else:
        with pytest.raises(ServiceError, match="busy") as refused:
            client.score("clicks", [{}])
        assert refused.value.status == status
    assert waited == [7.0, 7.0]


def test_it_needs_neither_torch_nor_the_serving_stack() -> None:
    blocked = ["torch", "torchrec", "onnxruntime", "polars", "pyarrow", "fastapi", "uvicorn", "numpy"]
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import ctrkit.client"
    subprocess.run([sys.executable, "-c", program], check=True)
