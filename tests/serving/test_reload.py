import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ctrkit.bundle import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, describe_files
from ctrkit.errors import CtrkitError
from serving.model import Served, best_batch, within
from serving.problems import UnknownModel
from serving.repository import Repository
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service, wait_until

QUICK = ServingSettings(poll_s=0.05)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def loaded(repo: Path, pool: ThreadPoolExecutor, **settings) -> Repository:
    repository = Repository(repo, pool, ServingSettings(**settings))
    repository.load()
    return repository


def rewrite(folder: Path, **changed: object) -> None:
    """Changes a version's manifest and takes its files' checksums anew."""
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    manifest = manifest.model_copy(update={**changed, "files": describe_files(folder)})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())


def score(address: str, path: str = "clicks") -> dict:
    answer = httpx.post(f"{address}/v1/models/{path}:score", json={"rows": [{"user": "u1"}]})
    return answer.json()


def test_a_new_version_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    answers: list[tuple[int, dict]] = []
    stop = threading.Event()

    def ask(address: str) -> None:
        with httpx.Client(base_url=address) as client:
            while not stop.is_set():
                answer = client.post("/v1/models/clicks:score", json={"rows": [{"user": "u1"}]})
                answers.append((answer.status_code, answer.json()))

    with service(tmp_path, QUICK) as address:
        threads = [threading.Thread(target=ask, args=(address,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for version in (2, 3, 4):
                scratch = make_bundle(tmp_path / "new", "clicks", version, shift=float(version))
                scratch.rename(tmp_path / "clicks" / str(version))
                wait_until(lambda version=version: score(address)["version"] == version)
            shutil.rmtree(tmp_path / "clicks" / "4")
            wait_until(lambda: score(address)["version"] == 3)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for status, _ in answers} == {200}
    shifts = {1: 0.0, 2: 2.0, 3: 3.0, 4: 4.0}
    for _, answer in answers:
        assert answer["probabilities"] == [pytest.approx(probability({"user": "u1"}, shifts[answer["version"]]), rel=1e-5)]


def test_versions_that_are_gone_are_let_go_of_though_nobody_reads_metrics(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with service(tmp_path, ServingSettings(poll_s=0.05, live_versions=2)) as address:
        for version in range(1, 7):
            make_bundle(tmp_path / "made", version=version + 1)
            wait_until(lambda: score(address)["version"] == version)  # noqa: B023
            (tmp_path / "made/clicks" / str(version + 1)).rename(tmp_path / "clicks" / str(version + 1))
        wait_until(lambda: score(address)["version"] == 7)
        gc.collect()
        there = {one.version for one in gc.get_objects() if isinstance(one, Served) and one.bundle.path.is_relative_to(tmp_path)}
    assert there == {6, 7}


def test_the_newest_versions_are_live_and_the_latest_answers(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    for version in (1, 2, 10, 3):
        make_bundle(tmp_path, "clicks", version)
    repository = loaded(tmp_path, pool, live_versions=2)
    assert repository.versions("clicks") == [3, 10] and repository.served("clicks").version == 10
    assert repository.served("clicks", "3").version == 3
    for wrong in ("1", "007", "-3", "3.0", "²", "", "9" * 50, "../3"):
        with pytest.raises(UnknownModel):
            repository.served("clicks", wrong)
    repository = loaded(tmp_path, pool, live_versions=1, pin={"clicks": 1})
    assert repository.versions("clicks") == [1, 10] and repository.served("clicks").version == 1
    for pin, message in (
        ({"clicks": 7}, "no version 7 to be pinned to"),
        ({"click": 1}, "no model 'click' to pin. Did you mean 'clicks'?"),
    ):
        with pytest.raises(CtrkitError, match=message):
            loaded(tmp_path, pool, pin=pin)


def test_a_version_that_cannot_be_taken_is_refused_and_the_old_one_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path)

    def corrupt(folder: Path) -> None:
        (folder / MODEL_FILE).write_bytes(b"")

    def no_model(folder: Path) -> None:
        (folder / MODEL_FILE).write_bytes(b"garbage")
        rewrite(folder)

    def other_predictions(folder: Path) -> None:
        (folder / GOLDEN_FILE).write_text(json.dumps({"rows": [{"user": "u1"}], "probabilities": [0.123]}))
        rewrite(folder)

    def lacks_a_feature(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        renamed = Manifest.model_validate({**manifest, "features": [{**manifest["features"][0], "name": "usr"}, *manifest["features"][1:]]})
        rewrite(folder, features=renamed.features)

    def elsewhere(folder: Path) -> None:
        rewrite(folder, name="likes")

    def no_manifest(folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text("{")

    cases = {
        corrupt: "corrupted",
        no_model: "onnxruntime",
        other_predictions: "does not predict what it did when it was exported",
        lacks_a_feature: "other inputs than its manifest",
        elsewhere: "as its manifest says",
        no_manifest: "no manifest",
    }
    with service(tmp_path, QUICK) as address:
        for version, (spoil, reason) in enumerate(cases.items(), 2):
            scratch = make_bundle(tmp_path / "new", "clicks", version, shift=1.0)
            spoil(scratch)
            scratch.rename(tmp_path / "clicks" / str(version))

            def said(version: int = version, reason: str = reason) -> bool:
                refused = httpx.get(f"{address}/v1/models/clicks").json()["refused"]
                return any(entry["version"] == version and reason in entry["reason"] for entry in refused)

            wait_until(said)
            assert score(address)["version"] == 1
        index = httpx.post(f"{address}/v2/repository/index").json()
        assert {(entry["version"], entry["state"]) for entry in index} == {("1", "READY"), *((str(v), "UNAVAILABLE") for v in range(2, 8))}
        assert httpx.post(f"{address}/v2/repository/index", json={"ready": True}).json() == [
            entry for entry in index if entry["version"] == "1"
        ]
        time.sleep(0.2)  # some polls
        counted = f'ctrkit_versions_total{{model="clicks",outcome="refused"}} {len(cases)}.0'
        assert counted in httpx.get(f"{address}/metrics").text, "each is tried once"
        assert capfd.readouterr().err.count("version refused") == len(cases), "and logged once"
        shutil.rmtree(tmp_path / "clicks" / "7")
        scratch = make_bundle(tmp_path / "new", "clicks", 7, shift=1.0)
        scratch.rename(tmp_path / "clicks" / "7")
        wait_until(lambda: score(address)["version"] == 7)


def test_a_model_that_cannot_answer_is_listed_with_the_reason_beside_the_others(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    make_bundle(tmp_path, version=2, shift=1.0)
    with service(tmp_path, ServingSettings(poll_s=0.05, pin={"clicks": 1})) as address:

        def listed() -> dict[str, dict]:
            answer = httpx.get(f"{address}/v1/models")
            assert answer.status_code == 200, answer.text
            return {model["name"]: model for model in answer.json()["models"]}

        spoilt = make_bundle(tmp_path / "new", "likes")
        (spoilt / MODEL_FILE).write_bytes(b"")
        spoilt.parent.rename(tmp_path / "likes")
        wait_until(lambda: "likes" in listed())
        likes = listed()["likes"]
        assert (likes["kind"], likes["version"], likes["versions"]) == (None, None, [])
        assert [entry["version"] for entry in likes["refused"]] == [1] and "corrupted" in likes["refused"][0]["reason"]
        assert "has no version to answer with: the bundle's file" in score(address, "likes")["detail"]
        assert listed()["clicks"]["version"] == 1

        (tmp_path / "clicks" / "1").rename(tmp_path / "gone")
        wait_until(lambda: listed()["clicks"]["version"] is None)
        clicks = listed()["clicks"]
        reason = "the repository has no version 1, which the model is pinned to"
        assert clicks["versions"] == [2] and clicks["refused"] == [{"version": 1, "reason": reason}]
        assert score(address)["detail"] == f"the model 'clicks' has no version to answer with: {reason}."
        assert score(address, "clicks/versions/2")["version"] == 2
        (tmp_path / "gone").rename(tmp_path / "clicks" / "1")
        wait_until(lambda: listed()["clicks"]["version"] == 1)
        assert listed()["clicks"]["refused"] == []


def test_a_version_that_would_fail_todays_requests_is_refused(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    make_bundle(tmp_path)
    repository = loaded(tmp_path, pool)
    folder = make_bundle(tmp_path, "clicks", 2)
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    integer = manifest.features[0].model_copy(update={"dtype": "int"})
    rewrite(folder, features=(integer, *manifest.features[1:]))
    repository.refresh()
    (state,) = [state for state in repository.states("clicks")["clicks"] if state.version == 2]
    assert state.state == "UNAVAILABLE" and "another type of the feature 'user' that version 1 answers to" in state.reason
    assert repository.served("clicks").version == 1


def test_a_version_rewritten_in_place_is_taken_or_the_old_one_stays(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    folder = make_bundle(tmp_path)
    repository = loaded(tmp_path, pool)
    first = repository.served("clicks")
    repository.refresh()
    assert repository.served("clicks") is first, "nothing changed, nothing is loaded"
    (folder / MODEL_FILE).write_bytes(b"")
    for _ in range(2):
        repository.refresh()
        assert repository.served("clicks") is first
    assert "corrupted" in repository.states("clicks")["clicks"][0].reason
    shutil.rmtree(folder)
    make_bundle(tmp_path, shift=1.0)
    repository.refresh()
    assert repository.served("clicks") is not first and repository.states("clicks")["clicks"][0].reason == ""


def test_models_come_and_go_with_their_folders(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    make_bundle(tmp_path, "clicks")
    repository = loaded(tmp_path, pool)
    make_bundle(tmp_path, "likes")
    (tmp_path / "half" / "1").mkdir(parents=True)
    repository.refresh()
    assert repository.names() == ["clicks", "likes"]
    shutil.rmtree(tmp_path / "likes")
    repository.refresh()
    assert repository.names() == ["clicks"]
    shutil.rmtree(tmp_path / "clicks")
    with pytest.raises(CtrkitError, match="holds no model"):
        repository.refresh()
    assert repository.names() == ["clicks"], "a repository that has gone is no reason to stop"


def test_batch_sizes_are_what_warm_up_measured() -> None:
    seconds = {1: 1e-4, 2: 1.1e-4, 4: 1.3e-4, 8: 2e-4, 16: 4e-4, 32: 9e-4}
    assert best_batch(seconds) == 8, "16 rows cost the same for each, 32 more"
    assert best_batch({1: 1.0, 2: 2.0, 4: 4.0}) == 1, "nothing is won by joining"
    assert within(seconds, 3e-4) == 8 and within(seconds, 1e-5) == 0


def test_a_service_that_ends_finishes_what_it_has_begun(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    program = """
import sys, time
from ctrkit.bundle import Bundle
from pipelines.serve import serve_repository as serve
from serving.settings import ServingSettings
predict = Bundle.predict
def slow(self, feed):
    if len(feed["user"]) == 3:
        print("begun", flush=True)
        time.sleep(1)
    return predict(self, feed)
Bundle.predict = slow
serve(sys.argv[1], port=int(sys.argv[2]), settings=ServingSettings(inline_ms=0))
"""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(tmp_path), str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            wait_until(lambda: ready(address), 60)
            answers = []
            body = {"rows": [{"user": "u1"}] * 3}
            thread = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/v1/models/clicks:score", json=body, timeout=30)))
            thread.start()
            assert process.stdout and process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            thread.join()
            assert answers[0].status_code == 200 and len(answers[0].json()["probabilities"]) == 3
            process.wait(30)
        finally:
            process.kill()
    assert not ready(address)


def ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False
