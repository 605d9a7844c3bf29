import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
import uvicorn
from fastapi.testclient import TestClient

from ctrkit.bundle import MODEL_FILE, open_bundle
from ctrkit.errors import CtrkitError
from pipelines.serve import serve_repository as serve
from serving.app import create_app
from serving.settings import ServingSettings
from tests.handmade import make_bundle

ROWS = [{"user": "u1", "age": 40, "price": 2.5, "tags": ["a"]}, {"user": "nobody", "price": -1}, {}]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    make_bundle(repo, "clicks", 1)
    make_bundle(repo, "clicks", 2, shift=1.0)
    make_bundle(repo, "likes", 1, shift=2.0)
    return repo


@pytest.fixture(scope="module")
def client(repo: Path) -> Iterator[TestClient]:
    with TestClient(create_app(repo, ServingSettings(max_rows=5, max_body_mb=0.001))) as client:
        wait_until_ready(client)
        yield client


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 30
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_latest_version_answers_unless_one_is_named(client: TestClient, repo: Path) -> None:
    for path, version in (("clicks", 2), ("clicks/versions/1", 1), ("clicks/versions/2", 2), ("likes", 1)):
        answer = client.post(f"/v1/models/{path}:score", json={"rows": ROWS})
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        name = path.partition("/")[0]
        offline = open_bundle(repo / name / str(version)).score(ROWS)
        assert answer.json() == {"model": name, "version": version, "probabilities": offline.astype(float).tolist()}


def test_rank(client: TestClient) -> None:
    body = {"context": {"user": "u1"}, "candidates": [{"price": 1}, {"price": 9}, {}], "top_k": 2}
    for path in ("clicks", "clicks/versions/1"):
        answer = client.post(f"/v1/models/{path}:rank", json=body).json()
        assert [entry["index"] for entry in answer["candidates"]] == [1, 0]
        assert answer["candidates"][0]["candidate"] == {"price": 9}


def test_models_are_listed_and_described(client: TestClient) -> None:
    assert client.get("/v1/models").json() == {
        "models": [
            {"name": "clicks", "kind": "scorer", "version": 2, "versions": [1, 2], "refused": []},
            {"name": "likes", "kind": "scorer", "version": 1, "versions": [1], "refused": []},
        ]
    }
    about = client.get("/v1/models/clicks").json()
    assert about["version"] == 2 and about["metrics"] == {"test": {"auc": 0.75}} and about["label"] == "click"
    assert about["features"][2] == {"name": "price", "kind": "numeric", "dtype": "number"}
    assert client.get("/v1/models/clicks/versions/1").json()["version"] == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("clicksy", "no model 'clicksy'. Did you mean 'clicks'? Known: clicks, likes."),
        ("xyz", "no model 'xyz'. Known: clicks, likes."),
        ("clicks/versions/3", "no version '3' of the model 'clicks'. Known: 1, 2."),
        ("clicks/versions/one", "no version 'one' of the model 'clicks'. Known: 1, 2."),
    ],
)
def test_an_unknown_model_is_a_404_that_names_the_known_ones(client: TestClient, path: str, message: str) -> None:
    for answer in (
        client.post(f"/v1/models/{path}:score", json={"rows": []}),
        client.post(f"/v1/models/{path}:rank", json={"candidates": []}),
        client.get(f"/v1/models/{path}"),
    ):
        assert answer.status_code == 404
        assert answer.json() == {"detail": message}


@pytest.mark.parametrize(("method", "action"), [("POST", ":scor"), ("POST", ""), ("GET", ":score"), ("GET", ":rank"), ("PUT", ":score")])
def test_a_model_asked_in_another_way_is_a_405_that_says_how(client: TestClient, method: str, action: str) -> None:
    answer = client.request(method, f"/v1/models/clicks{action}")
    assert answer.status_code == 405
    assert answer.json()["detail"].startswith(f"{method} /v1/models/clicks{action} is not answered. POST asks a model: ")


def test_a_row_that_does_not_fit_is_a_422_with_its_place(client: TestClient) -> None:
    answer = client.post("/v1/models/clicks:score", json={"rows": [{}, {"price": "5"}]})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", "rows", 1, "price"]
    assert problem["msg"] == "row 1, field 'price': expected a number, got '5' (string)"


def test_too_large_a_request_is_a_413(client: TestClient) -> None:
    answer = client.post("/v1/models/clicks:score", json={"rows": [{}] * 6})
    assert answer.status_code == 413 and "6 rows in one request, 5 are allowed" in answer.json()["detail"]
    answer = client.post("/v1/models/clicks:score", content=b" " * 1100)
    assert answer.status_code == 413 and "more than 1,048 bytes" in answer.json()["detail"]


def test_the_bodies_are_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for verb, key in (("score", "rows"), ("rank", "candidates")):
        for path in (f"/v1/models/{{name}}:{verb}", f"/v1/models/{{name}}/versions/{{version}}:{verb}"):
            schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            assert key in schema["properties"]
            assert {"200", "404", "413", "422", "503"} <= set(paths[path]["post"]["responses"])
    assert client.get("/docs").status_code == 200


def test_it_is_alive_but_not_ready_until_the_models_are_loaded(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    load = open_bundle

    def slow(*arguments, **settings):
        go_on.wait(30)
        return load(*arguments, **settings)

    monkeypatch.setattr("serving.model.open_bundle", slow)
    with TestClient(create_app(repo)) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        for answer in (client.get("/readyz"), client.get("/v1/models"), client.post("/v1/models/clicks:score", json={"rows": []})):
            assert answer.status_code == 503 and "being loaded" in answer.json()["detail"]
        go_on.set()
        wait_until_ready(client)
        assert client.get("/readyz").json() == {"status": "ready", "models": ["clicks", "likes"]}


def test_a_damaged_bundle_keeps_it_unready_and_says_why(tmp_path: Path) -> None:
    (make_bundle(tmp_path) / MODEL_FILE).write_bytes(b"")
    failed = threading.Event()
    with TestClient(create_app(tmp_path, on_failure=lambda _: failed.set())) as client:
        assert failed.wait(30)
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "corrupted" in answer.json()["detail"]


def test_serve_ends_with_the_reason_when_a_bundle_is_damaged(tmp_path: Path) -> None:
    (make_bundle(tmp_path) / MODEL_FILE).write_bytes(b"")
    with pytest.raises(CtrkitError, match="corrupted"):
        serve(tmp_path, port=0)
    with pytest.raises(CtrkitError, match="no model repository"):
        serve(tmp_path / "nowhere", port=0)


def test_serve_says_when_the_port_is_taken(repo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CtrkitError, match=f"could not start on 127.0.0.1:{port}"):
            serve(repo, port=port)


def test_over_a_real_socket_the_offline_scores_come_back_exactly(repo: Path) -> None:
    server = uvicorn.Server(uvicorn.Config(create_app(repo), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
            wait_until_ready(client)
            rows = [{"user": f"u{i % 5}", "price": i / 7} for i in range(1000)]
            got = client.post("/v1/models/likes:score", json={"rows": rows}).json()["probabilities"]
    finally:
        server.should_exit = True
        thread.join()
    offline = open_bundle(repo / "likes").score(rows)
    assert pl.Series(got, dtype=pl.Float32).to_list() == offline.tolist()


def test_the_service_needs_neither_torch_nor_polars(repo: Path) -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchrec", "onnx", "polars"]))  # importing one raises ImportError
from fastapi.testclient import TestClient
from serving.app import create_app
with TestClient(create_app(sys.argv[1])) as client:
    while client.get("/readyz").status_code != 200:
        pass
    assert len(client.post("/v1/models/clicks:score", json={"rows": [{}]}).json()["probabilities"]) == 1
"""
    subprocess.run([sys.executable, "-c", program, str(repo)], check=True)
