"""What a service refuses, over a real socket: the right status each time, and alive after it."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.bundle import Bundle, open_bundle
from ctrkit.errors import CtrkitError
from serving.keys import read_keys
from serving.problems import Refused
from serving.settings import ServingSettings
from serving.wire import arrow, rows, v2
from serving.wire.ask import ARROW, Limits
from tests.handmade import make_bundle
from tests.serving.live import service, wait_until

SCORE = "/v1/models/clicks:score"
GOOD = {"rows": [{"user": "u1"}]}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    make_bundle(repo)
    return repo


@pytest.fixture(scope="module")
def address(repo: Path) -> Iterator[str]:
    with service(repo, ServingSettings(max_rows=1000, max_body_mb=1, timeout_s=1, poll_s=0)) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=20) as client:
        yield client
        assert client.post(SCORE, json=GOOD).status_code == 200, "alive and well"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b'{"rows": [{"price": NaN}]}', 422),
        (b'{"rows": [{"price": 1e999}]}', 422),
        (b'{"rows": [{"user": "\xff"}]}', 422),
        (b"\x00" * 1000, 422),
        (b"[" * 100_000 + b"]" * 100_000, 422),
        (b'{"rows":' + b'[{"tags":' * 2000 + b"0" + b"}]" * 2000 + b"}", 422),
        (b'{"rows": [{"user": ' + b"[" * 900 + b"]" * 900 + b"}]}", 422),
        (b'{"rows": [{"user": "' + b"[{" * 5000 + b'"}]}', 200),
        (b'{"rows": [{"user": "' + b'[{\\"\\\\' * 50 + b'"}]}', 200),
        (b'{"rows": [{"user": "[\\"", "tags": ' + b"[" * 20 + b"]" * 20 + b"}]}", 422),
        (b'{"rows":' + b"[" * 17 + b'"' + b'\\"' * 400_000, 422),
        (orjson.dumps({"rows": [{"user": "x" * 900_000}]}), 200),
        (orjson.dumps({"rows": [{"tags": "|" * 100_000}]}), 200),
        (orjson.dumps({"rows": [{f"f{i}": 1 for i in range(20_000)}]}), 422),
        (orjson.dumps({"rows": [{}] * 1001}), 413),
        (orjson.dumps({"columns": {"price": [0] * 1001}}), 413),
        (b'{"rows": [' + b"{}," * 1_000_000 + b"{}]}", 413),
        (b" " * 1_200_000, 413),
    ],
    ids=lambda value: f"{value[:30]!r}" if isinstance(value, bytes) else str(value),
)
def test_a_body_is_answered_with_its_status(client: httpx.Client, body: bytes, status: int) -> None:
    answer = client.post(SCORE, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] and (status == 200 or answer.json()["detail"])


def test_a_body_without_an_end_is_cut_off(client: httpx.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**16
            yield b"x" * 2**16

    try:
        assert client.post(SCORE, content=endless()).status_code == 413
    except httpx.TransportError:  # it was cut off while it sent, before it looked for an answer
        pass
    assert sent < 200 * 2**20


def test_a_packed_body_may_not_unpack_to_more(client: httpx.Client) -> None:
    def post(body: bytes, encoding: str) -> int:
        return client.post(SCORE, content=body, headers={"Content-Encoding": encoding, "Content-Type": "application/json"}).status_code

    packed = gzip.compress(orjson.dumps(GOOD))
    assert post(packed, "gzip") == 200
    assert post(gzip.compress(b" " * 50_000_000), "gzip") == 413
    assert post(packed[:-9], "gzip") == 422 and post(packed + b"more", "gzip") == 422 and post(b"{}", "gzip") == 422
    assert post(packed, "br") == 415
    assert post(packed, "GZIP") == post(packed, "x-gzip") == 200
    two = gzip.compress(orjson.dumps(GOOD)[:5]) + gzip.compress(orjson.dumps(GOOD)[5:])
    assert post(two, "gzip") == 200 and post(two[:-9], "gzip") == 422
    assert post(2 * gzip.compress(b" " * 600_000), "gzip") == 413
    assert post(gzip.compress(b"") * 50_000, "gzip") == 422


def test_bodies_of_the_model_repository_have_the_same_bounds(client: httpx.Client) -> None:
    def index(body: bytes, **headers: str) -> httpx.Response:
        return client.post("/v2/repository/index", content=body, headers=headers)

    answer = index(b" " * 1_200_000 + b"{}")
    assert answer.status_code == 413 and answer.json()["error"].startswith("the body has more than 1,048,576 bytes")
    assert index(gzip.compress(b" " * 1_200_000 + b"{}"), **{"Content-Encoding": "gzip"}).status_code == 413
    packed = index(gzip.compress(b'{"ready": true}'), **{"Content-Encoding": "gzip"})
    assert packed.status_code == 200 and packed.json() == index(b"").json()
    assert index(b"{}", **{"Content-Encoding": "br"}).status_code == 415


def test_a_context_is_not_multiplied_without_bound(client: httpx.Client) -> None:
    body = {"context": {"user": "x" * 100_000}, "candidates": [{}] * 1000}
    assert client.post("/v1/models/clicks:rank", json=body).status_code == 413


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/..:score", 404),
        ("/v1/models/../../etc/passwd:score", 404),
        ("/v1/models/%2e%2e%2fclicks:score", 404),
        ("/v1/models/clicks%00:score", 404),
        ("/v1/models/clicks/versions/..:score", 404),
        ("/v1/models/clicks/versions/%2e%2e%2f1:score", 404),
        (f"/v1/models/{'a' * 5000}:score", 404),
        ("/v2/models/..%2fclicks/infer", 404),
        ("/v2/repository/models/..%2f..%2fclicks/load", 404),
        ("/v2/repository/models/clicks/load", 403),
        ("/nothing", 404),
    ],
)
def test_names_lead_nowhere_else(address: str, client: httpx.Client, path: str, status: int) -> None:
    (line, _, body) = raw(
        address, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nConnection: close\r\n\r\n".encode() + b'{"rows": []}'
    )
    assert int(line.split()[1]) == status, body


def test_wrong_types_and_methods(client: httpx.Client) -> None:
    assert client.post(SCORE, content=b"a,b", headers={"Content-Type": "text/csv"}).status_code == 415
    assert client.post(SCORE, content=b"no arrow", headers={"Content-Type": ARROW}).status_code == 422
    assert client.post(SCORE, json=GOOD, headers={"Accept": "text/html"}).status_code == 406
    assert client.put(SCORE, json=GOOD).status_code == 405
    for path in ("/healthz", "/readyz"):
        whole, head = client.get(path), client.head(path)
        assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == str(len(whole.content))


def raw(address: str, data: bytes, then: bytes = b"", pause: float = 0.0) -> tuple[str, str, bytes]:
    """Status line, headers and body of what a socket is answered with until it is closed."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        for byte in then:
            time.sleep(pause)
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    line, _, headers = head.decode().partition("\r\n")
    return line, headers.lower(), body


def test_who_sends_slowly_is_not_waited_for(address: str, client: httpx.Client) -> None:
    line, _, _ = raw(address, b"POST " + SCORE.encode() + b" HTTP/1.1\r\nHost: x\r\n", b"X-Slow: 1234567890" * 10, 0.05)
    assert line == "HTTP/1.1 408 Request Timeout"
    line, _, _ = raw(address, b"")
    assert line == "HTTP/1.1 408 Request Timeout"
    head = f"POST {SCORE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n"
    line, _, body = raw(address, head.encode(), b'{"rows": [{"user"', 0.02)
    assert line.startswith("HTTP/1.1 408") and "did not arrive within 1 s" in json.loads(body)["detail"]


def test_endless_headers_are_refused(address: str, client: httpx.Client) -> None:
    line, _, _ = raw(address, b"GET /healthz HTTP/1.1\r\n" + b"X-Long: " + b"x" * 200_000)
    assert line in ("HTTP/1.1 431 Request Header Fields Too Large", "HTTP/1.1 400 Bad Request")
    line, _, _ = raw(address, b"nonsense\r\n\r\n")
    assert line == "HTTP/1.1 400 Bad Request"


def test_more_requests_than_a_model_may_have_are_told_to_come_back(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    begun = threading.Semaphore(0)
    predict = Bundle.predict

    def slow(self, feed):
        if len(feed["user"]) == 3:
            begun.release()
            go_on.wait(20)
        return predict(self, feed)

    monkeypatch.setattr(Bundle, "predict", slow)
    limits = ServingSettings(max_in_flight=2, inline_ms=0, runs=2, batch_rows=1, poll_s=0)
    three = {"rows": [{}] * 3}
    with service(repo, limits) as address, ThreadPoolExecutor(2) as threads, httpx.Client(base_url=address, timeout=30) as client:
        busy = [threads.submit(httpx.post, f"{address}{SCORE}", json=three, timeout=30) for _ in range(2)]
        try:
            assert begun.acquire(timeout=20) and begun.acquire(timeout=20)
            answer = client.post(SCORE, json=GOOD)
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            assert "is answering 2 requests" in answer.json()["detail"]
            assert client.get("/healthz").status_code == 200
            assert "ctrkit_in_flight 3.0" in client.get("/metrics").text, "the two, and the one that asks for it"
        finally:
            go_on.set()
        assert [answer.result().status_code for answer in busy] == [200, 200]
        assert client.post(SCORE, json=GOOD).status_code == 200
        assert 'ctrkit_refused_total{reason="Busy"} 1.0' in client.get("/metrics").text


def test_an_answer_that_takes_too_long_is_given_up(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    predict = Bundle.predict

    def slow(self, feed):
        if len(feed["user"]) == 3:
            go_on.wait(20)
        return predict(self, feed)

    monkeypatch.setattr(Bundle, "predict", slow)
    with service(repo, ServingSettings(timeout_s=0.3, inline_ms=0, runs=2, poll_s=0)) as address:
        try:
            answer = httpx.post(f"{address}{SCORE}", json={"rows": [{}] * 3}, timeout=20)
            assert answer.status_code == 503 and "no answer within 0.3 s" in answer.json()["detail"] and answer.headers["retry-after"]
            assert httpx.post(f"{address}{SCORE}", json=GOOD).status_code == 200
        finally:
            go_on.set()


KEY, OTHER = "a-long-secret-key-1", "a-long-secret-key-2"


def test_with_keys_only_their_holders_are_answered(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n")
    monkeypatch.setenv("CTRKIT_API_KEYS", f"{OTHER},")
    with service(repo, ServingSettings(key_file=file, poll_s=0)) as address, httpx.Client(base_url=address) as client:
        for headers in (
            {"Authorization": f"Bearer {KEY}"},
            {"authorization": f"bearer  {OTHER}"},
            {"X-API-Key": OTHER},
        ):
            assert client.post(SCORE, json=GOOD, headers=headers).status_code == 200
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": ""}):
            answer = client.post(SCORE, json=GOOD, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text
        for path, status in (
            ("/healthz", 200),
            ("/readyz", 200),
            ("/v2/health/ready", 200),
            ("/metrics", 401),
            ("/v1/models", 401),
            ("/v2", 401),
        ):
            assert client.get(path).status_code == status
        assert client.get("/metrics", headers={"X-API-Key": KEY}).status_code == 200


def test_keys_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTRKIT_API_KEYS", raising=False)
    assert not read_keys(None)
    with pytest.raises(CtrkitError, match="cannot be read"):
        read_keys(tmp_path / "none")
    (tmp_path / "empty").write_text("# nothing\n\n")
    with pytest.raises(CtrkitError, match="holds no key"):
        read_keys(tmp_path / "empty")
    monkeypatch.setenv("CTRKIT_API_KEYS", "short")
    with pytest.raises(CtrkitError, match="fewer than 16"):
        read_keys(None)


def test_other_origins_may_ask_only_if_they_are_named(repo: Path, address: str) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{address}{SCORE}", headers=asked).headers
    assert "access-control-allow-origin" not in httpx.post(f"{address}{SCORE}", json=GOOD, headers=asked).headers
    with service(repo, ServingSettings(cors_origins=("https://shop.example",), poll_s=0)) as open_address:
        assert httpx.options(f"{open_address}{SCORE}", headers=asked).headers["access-control-allow-origin"] == "https://shop.example"
        assert (
            "access-control-allow-origin"
            not in httpx.options(f"{open_address}{SCORE}", headers={**asked, "Origin": "https://x.example"}).headers
        )


def test_loading_and_unloading_at_once_leaves_a_service_that_answers(tmp_path: Path) -> None:
    make_bundle(tmp_path, "clicks")
    make_bundle(tmp_path, "likes")
    with service(tmp_path, ServingSettings(control=True, poll_s=0.05)) as address:

        def change(i: int) -> int:
            return httpx.post(f"{address}/v2/repository/models/likes/{'unload' if i % 3 else 'load'}", timeout=30).status_code

        def ask(i: int) -> tuple[int, int]:
            statuses = [httpx.post(f"{address}/v1/models/{name}:score", json=GOOD, timeout=30).status_code for name in ("clicks", "likes")]
            return statuses[0], statuses[1]

        with ThreadPoolExecutor(4) as threads:
            changed = list(threads.map(change, range(12)))
            asked = list(threads.map(ask, range(12)))
        assert set(changed) <= {200, 404} and {clicks for clicks, _ in asked} == {200} and {likes for _, likes in asked} <= {200, 404}
        assert httpx.post(f"{address}/v2/repository/models/likes/load", timeout=30).status_code == 200
        wait_until(lambda: httpx.post(f"{address}/v1/models/likes:score", json=GOOD).status_code == 200)


def test_the_log_names_requests_and_never_their_values(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with service(repo, ServingSettings(poll_s=0)) as address:
        headers = {"X-Request-Id": "my-request.7"}
        assert (
            httpx.post(f"{address}{SCORE}", json={"rows": [{"user": "secret-user"}] * 2}, headers=headers).headers["x-request-id"]
            == "my-request.7"
        )
        for bad in ({"rows": [{}, {"price": "secret-price"}]}, {"rows": [{"secret-name": 1}]}):
            made = httpx.post(f"{address}{SCORE}", json=bad, headers={"X-Request-Id": 'a"b'}).headers["x-request-id"]
            assert made != 'a"b'
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request" and line["path"] == SCORE]
    first, wrong_type, wrong_name = requests
    assert first["request_id"] == "my-request.7" and first["status"] == 200 and first["rows"] == 2 and first["ms"] > 0
    assert (first["model"], first["version"], first["method"]) == ("clicks", 1, "POST")
    assert wrong_type["status"] == 422 and wrong_type["refused"] == "InvalidBody" and wrong_type["at"] == "rows.1.price"
    assert "secret-user" not in str(lines) and "secret-price" not in str(lines) and wrong_name["status"] == 422


def test_a_failure_of_the_service_itself_is_a_500_that_gives_nothing_away(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with service(repo, ServingSettings(poll_s=0)) as address:

        def broken(self, feed, rows):
            raise RuntimeError("with the value secret-user")

        monkeypatch.setattr("serving.batcher.Batcher.submit", broken)
        answer = httpx.post(f"{address}{SCORE}", json=GOOD)
        assert answer.status_code == 500 and answer.headers["x-request-id"] in answer.json()["detail"]
    said = capfd.readouterr().err
    assert "RuntimeError" in said and "batcher" not in answer.text and "secret-user" not in said + answer.text


@pytest.fixture(scope="module")
def bundle(repo: Path) -> Bundle:
    return open_bundle(repo / "clicks")


LIMITS = Limits(rows=50, depth=8, bytes=10_000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["user", "age", "price", "tags", "x"]), inner, max_size=4),
    max_leaves=12,
)
names = ["rows", "columns", "context", "candidates", "top_k", "task", "inputs", "outputs", "parameters", "id", "x"]
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["user", "age", "price", "tags.values", "tags.lengths", "x"]),
        "datatype": st.sampled_from(["BYTES", "INT64", "FP64", "FP32", "BOOL"]),
        "shape": st.lists(st.integers(-2, 3), max_size=2),
        "data": st.lists(json_values, max_size=3),
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region"]), st.integers(-1, 30), max_size=2),
    },
)
bodies = st.dictionaries(st.sampled_from(names), json_values | st.lists(tensors, max_size=6), max_size=4)


@settings(max_examples=100)
@given(bodies | json_values, st.binary(max_size=40), st.integers(0, 400))
def test_whatever_is_sent_is_refused_or_scored(bundle: Bundle, body: object, tail: bytes, cut: int) -> None:
    """No reader lets anything else than a refusal out, and no feed that it gives breaks the graph."""
    text = json.dumps(body).encode()
    for content in (text, text[:cut] + tail, text + tail):
        for read in (rows.read_score, rows.read_rank, arrow.read_score, lambda b, c, limits: v2.read_infer(b, c, limits, len(text))):
            try:
                ask = read(bundle, content, LIMITS)
            except Refused as refused:
                assert 400 <= refused.status < 500
            else:
                probabilities = bundle.predict(ask.feed)
                assert probabilities.shape == (ask.rows,)
                assert ask.answer(probabilities).body


@settings(max_examples=100)
@given(st.data())
def test_a_spoilt_arrow_stream_is_refused_or_scored(bundle: Bundle, data: st.DataObject) -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = pa.table({"user": ["u1", None, "ä"], "price": [1.0, 2.0, None], "tags": [["a"], [], ["b", None]], "age": [1, 2, 3]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = bytearray(sink.getvalue().to_pybytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        ask = arrow.read_score(bundle, bytes(body), LIMITS)
    except Refused:
        return
    assert bundle.predict(ask.feed).shape == (ask.rows,)
