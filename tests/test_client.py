import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from ctrkit.client import AsyncClient, Client, Ranked, ServiceError
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
