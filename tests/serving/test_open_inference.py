"""The Open Inference Protocol, spoken by Triton's own client."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from ctrkit.bundle import MODEL_FILE, open_bundle
from ctrkit.feeds import rows_to_columns
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service

ROWS = [{"user": "u1", "age": 40, "price": 2.5, "tags": ["ä", "b"]}, {"user": "", "price": -1.0}, {"user": "x", "tags": ["", "c", "d"]}]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    make_bundle(repo, "clicks", 1)
    make_bundle(repo, "clicks", 2, shift=1.0)
    make_bundle(repo, "likes", 1, shift=2.0)
    return repo


@pytest.fixture(scope="module")
def address(repo: Path) -> Iterator[str]:
    with service(repo, ServingSettings(control=True, max_rows=100, max_body_mb=0.1, poll_s=0)) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address.removeprefix("http://"), concurrency=2) as client:
        yield client


def tensors(repo: Path, rows: list[dict], binary: bool) -> list[triton.InferInput]:
    bundle = open_bundle(repo / "clicks")
    feed = bundle.feed(rows_to_columns(rows, bundle.features))
    kinds = {"O": "BYTES", "i": "INT64", "f": "FP64"}
    found = []
    for name, array in feed.items():
        tensor = triton.InferInput(name, list(array.shape), kinds[array.dtype.kind])
        found.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return found


def test_the_server_and_its_models_tell_about_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata()["name"] == "ctrkit"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready("clicks") and client.is_model_ready("clicks", "1") and not client.is_model_ready("clicks", "7")
    about = client.get_model_metadata("clicks")
    assert about["versions"] == ["1", "2"] and about["platform"] == "onnxruntime_onnx"
    assert about["inputs"] == [
        {"name": "user", "datatype": "BYTES", "shape": [-1]},
        {"name": "age", "datatype": "INT64", "shape": [-1]},
        {"name": "price", "datatype": "FP64", "shape": [-1]},
        {"name": "tags.values", "datatype": "BYTES", "shape": [-1]},
        {"name": "tags.lengths", "datatype": "INT64", "shape": [-1]},
    ]
    assert about["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]
    config = client.get_model_config("clicks", "1")
    assert config["max_batch_size"] == 0 and config["backend"] == "onnxruntime"
    assert config["input"][0] == {"name": "user", "data_type": "TYPE_STRING", "dims": [-1]}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize(("version", "shift"), [("", 1.0), ("1", 0.0), ("2", 1.0)])
def test_tensors_in_probabilities_out(
    client: triton.InferenceServerClient, repo: Path, binary_in: bool, binary_out: bool | None, version: str, shift: float
) -> None:
    rows = ROWS if binary_in else ROWS[:1]  # NaN, a missing price, is not in JSON
    outputs = None if binary_out is None else [triton.InferRequestedOutput("probability", binary_data=binary_out)]
    result = client.infer("clicks", tensors(repo, rows, binary_in), model_version=version, outputs=outputs, request_id="r7")
    got = result.as_numpy("probability")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [probability(row, shift) for row in rows], rtol=1e-5)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r7", "clicks", version or "2")


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_requests_may_be_packed_and_sent_side_by_side(client: triton.InferenceServerClient, repo: Path, packing: str) -> None:
    waiting = [client.async_infer("likes", tensors(repo, ROWS[i:], True), request_compression_algorithm=packing) for i in (0, 1, 2)]
    for i, answer in enumerate(waiting):
        np.testing.assert_allclose(answer.get_result().as_numpy("probability"), [probability(row, 2.0) for row in ROWS[i:]], rtol=1e-5)


def test_models_come_and_go(client: triton.InferenceServerClient, repo: Path) -> None:
    index = client.get_model_repository_index()
    assert {(m["name"], m["version"], m["state"]) for m in index} == {
        ("clicks", "1", "READY"),
        ("clicks", "2", "READY"),
        ("likes", "1", "READY"),
    }
    client.unload_model("likes")
    assert not client.is_model_ready("likes")
    with pytest.raises(InferenceServerException, match="no model 'likes'"):
        client.infer("likes", tensors(repo, ROWS, True))
    make_bundle(repo, "likes", 2, shift=3.0)
    client.load_model("likes")
    result = client.infer("likes", tensors(repo, ROWS[:1], True))
    np.testing.assert_allclose(result.as_numpy("probability"), [probability(ROWS[0], 3.0)], rtol=1e-5)
    (make_bundle(repo, "broken") / MODEL_FILE).write_bytes(b"")
    with pytest.raises(InferenceServerException, match="corrupted"):
        client.load_model("broken")
    for name in ("nothing", "../repo/clicks", "..", ".hidden", "clicks/1", ""):
        with pytest.raises(InferenceServerException):
            client.load_model(name)
        with pytest.raises(InferenceServerException):
            client.unload_model(name)
    with pytest.raises(InferenceServerException, match="no parameters"):
        client.load_model("clicks", config="{}")
    assert client.is_model_ready("clicks")


def test_without_control_nobody_loads_or_unloads(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with service(tmp_path, ServingSettings(poll_s=0)) as address, triton.InferenceServerClient(address.removeprefix("http://")) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="does not let clients load and unload"):
                change("clicks")
        assert client.is_model_ready("clicks")


INPUTS = [
    {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["u1"]},
    {"name": "age", "shape": [1], "datatype": "INT64", "data": [40]},
    {"name": "price", "shape": [1], "datatype": "FP64", "data": [2]},
    {"name": "tags.values", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
    {"name": "tags.lengths", "shape": [1], "datatype": "INT64", "data": [2]},
]


def with_input(place: int, **changed: object) -> dict:
    return {"inputs": [{**tensor, **changed} if i == place else tensor for i, tensor in enumerate(INPUTS)]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no 'inputs'"),
        ({"inputs": {}}, "expected a list"),
        ({"inputs": [5]}, "input 0: expected an object"),
        ({"inputs": INPUTS[1:]}, "the inputs lack 'user'"),
        ({"inputs": [*INPUTS, INPUTS[0]]}, "input 'user' is there twice"),
        (with_input(0, name="usr"), "no such input. Did you mean 'user'?"),
        (with_input(0, datatype="INT64"), "input 'user': expected datatype BYTES, got 'INT64'"),
        (with_input(0, shape=[1, 1]), "input 'user': expected a shape of one dimension"),
        (with_input(0, shape=[-1]), "expected a shape of one dimension"),
        (with_input(0, shape=[10**15]), "more elements than a body may have bytes"),
        (with_input(0, data=["u1", "u2"]), "input 'user': its shape has 1 elements, its data 2 elements"),
        (with_input(0, data=[5]), "input 'user', element 0: expected BYTES, got int"),
        (with_input(1, data=[4.5]), "input 'age', element 0: expected INT64, got float"),
        (with_input(1, data=[2**63]), "more than 64 bits"),
        (with_input(1, data=[True]), "expected INT64, got bool"),
        (with_input(1, shape=[2], data=[1, 2]), "input 'age' has 2 rows where 'user' has 1"),
        (with_input(4, data=[3]), "input 'tags.lengths': its lengths do not add up to the 2 values"),
        (with_input(4, data=[-1]), "do not add up"),
        (with_input(0, parameters={"shared_memory_region": "x"}), "shared memory"),
        (with_input(0, parameters={"binary_data_size": 4}), "binary_data_size is 4, 0 bytes are left"),
        (with_input(0, parameters={"binary_data_size": -4}), "no number of bytes"),
        ({"inputs": INPUTS, "outputs": [{"name": "prob"}]}, "output 'prob': the model has no such output. Known: probability"),
        ({"inputs": INPUTS, "outputs": [{"name": "probability", "parameters": {"classification": 2}}]}, "neither classification nor"),
        ({"inputs": INPUTS, "id": 5}, "id: expected a string"),
        ({"inputs": INPUTS, "parameters": [1]}, "no object"),
    ],
)
def test_a_request_that_does_not_fit_is_a_400_that_says_why(address: str, body: dict, message: str) -> None:
    answer = httpx.post(f"{address}/v2/models/clicks/infer", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]


def test_binary_tensors_that_do_not_fit_are_refused(address: str) -> None:
    import json

    def send(tail: bytes, size: int, length: str | None = None, place: int = 0) -> str:
        text = json.dumps(with_input(place, data=None, parameters={"binary_data_size": size})).encode()
        headers = {"Inference-Header-Content-Length": length or str(len(text))}
        answer = httpx.post(f"{address}/v2/models/clicks/infer", content=text + tail, headers=headers)
        assert answer.status_code == 400
        return answer.json()["error"]

    assert "ends behind the tensor" in send(b"\x09\0\0\0u1", 6)
    assert "its shape has 1 elements, its data 2" in send(b"\1\0\0\0u\1\0\0\0u", 10)
    assert "element 0" in send(b"\2\0\0\0\xff\xfe", 6)
    assert "element 1" in send(b"\1\0\0\0u\1", 6)
    assert "1 bytes after the last tensor" in send(b"\1\0\0\0u!", 5)
    assert "1 elements of INT64 have 8 bytes, binary_data_size is 7" in send(b"1234567", 7, place=1)
    assert "is no number of bytes" in send(b"", 0, "-5")
    assert "says 99999 bytes" in send(b"", 0, "99999")


def test_limits_and_unknown_paths_are_told_in_the_protocols_words(address: str, client: triton.InferenceServerClient, repo: Path) -> None:
    with pytest.raises(InferenceServerException, match="101 rows in one request, 100 are allowed") as refused:
        client.infer("clicks", tensors(repo, [{}] * 101, True))
    assert refused.value.status() == "413"
    assert httpx.post(f"{address}/v2/models/clicks/infer", content=b" " * 200_000).json()["error"].startswith("the body has more than")
    for method, path, status in (
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/clicks/infer", 405),
        ("GET", "/v2/models/no/config", 404),
    ):
        answer = httpx.request(method, f"{address}{path}")
        assert answer.status_code == status and answer.json()["error"]
