"""A share of the callers gets another version; another version scores in the shadow."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.errors import CtrkitError
from pipelines.serve import serving_settings
from serving.repository import Repository
from serving.rollout import place
from serving.settings import ServingSettings
from serving.shadow import Shadow
from tests.handmade import make_bundle, probability
from tests.serving.live import service, wait_until

SCORE = "/v1/models/clicks:score"
ROW = {"user": "u1"}


def metric(address: str, name: str) -> dict[str, float]:
    """A metric's samples by the outcome or the bucket's end."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels.get("outcome") or sample.labels.get("le", ""): sample.value for sample in samples}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    for version in (1, 2, 3):
        make_bundle(tmp_path, "clicks", version, shift=float(version))
    return tmp_path


def test_one_key_gets_one_version_and_shares_are_what_was_asked_for(repo: Path) -> None:
    settings = ServingSettings(live_versions=1, pin={"clicks": 2}, split={"clicks": {1: 0.2, 3: 0.3}}, poll_s=0)
    with service(repo, settings) as address, httpx.Client(base_url=address) as client:

        def ask(path: str = "clicks", **headers: str) -> dict:
            return client.post(f"/v1/models/{path}:score", json={"rows": [ROW]}, headers=headers).json()

        by_key = {f"user-{number}": ask(**{"X-Split-Key": f"user-{number}"}) for number in range(400)}
        counts = Counter(answer["version"] for answer in by_key.values())
        assert counts[1] == pytest.approx(80, abs=32) and counts[3] == pytest.approx(120, abs=36), "four standard deviations"
        for key, answer in list(by_key.items())[:50]:
            assert ask(**{"X-Split-Key": key, "X-Request-Id": "r-1"}) == answer
            assert ask(**{"X-Request-Id": key}) == answer, "without a key the request's id decides"
            expected = probability(ROW, float(answer["version"]))
            assert answer["probabilities"] == [pytest.approx(expected, rel=1e-5)]
        assert {ask()["version"] for _ in range(100)} == {1, 2, 3}, "each request has an id of its own"
        assert {ask("clicks/versions/2", **{"X-Split-Key": key})["version"] for key in list(by_key)[:30]} == {2}
        tensors = (("user", "BYTES", ["u1"]), ("age", "INT64", [1]), ("price", "FP64", [1.0]), ("tags.lengths", "INT64", [0]))
        inputs = [{"name": name, "shape": [1], "datatype": kind, "data": data} for name, kind, data in tensors]
        infer = {"inputs": [*inputs, {"name": "tags.values", "shape": [0], "datatype": "BYTES", "data": []}]}
        for key, answer in list(by_key.items())[:10]:
            told = client.post("/v2/models/clicks/infer", json=infer, headers={"X-Split-Key": key}).json()
            assert told["model_version"] == str(answer["version"])
        (about,) = client.get("/v1/models").json()["models"]
        assert about["version"] == 2 and about["split"] == {"1": 0.2, "3": 0.3} and about["versions"] == [1, 2, 3]


@given(st.binary(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_a_share_that_grows_keeps_its_keys(key: bytes, share: float, more: float) -> None:
    low, high = sorted((share, more))
    at = place("clicks", key)
    assert 0 <= at < 1 and (at >= low or at < high)


def test_keys_are_spread_evenly_and_for_each_model_anew() -> None:
    keys = [str(number).encode() for number in range(10_000)]
    places = np.array([[place(name, key) for key in keys] for name in ("clicks", "likes")])
    assert np.histogram(places[0], 10, (0, 1))[0] == pytest.approx([1000] * 10, abs=130)
    assert abs(np.corrcoef(places)[0, 1]) < 0.05


def test_a_split_version_that_goes_away_leaves_its_share_to_the_default(repo: Path) -> None:
    settings = ServingSettings(pin={"clicks": 2}, split={"clicks": {3: 1.0}}, poll_s=0.05)
    with service(repo, settings) as address:
        assert httpx.post(f"{address}{SCORE}", json={"rows": [ROW]}).json()["version"] == 3
        (repo / "clicks" / "3").rename(repo / "gone")
        wait_until(lambda: httpx.post(f"{address}{SCORE}", json={"rows": [ROW]}).json()["version"] == 2)


def test_the_shadow_scores_the_same_rows_unseen(repo: Path) -> None:
    rows = [ROW, {"user": "u2", "age": 30, "tags": ["a"]}, {}]
    with service(repo, ServingSettings(pin={"clicks": 2}, shadow={"clicks": 1}, live_versions=1, poll_s=0)) as address:
        answer = httpx.post(f"{address}{SCORE}", json={"rows": rows}).json()
        assert answer["version"] == 2
        assert answer["probabilities"] == pytest.approx([probability(row, 2.0) for row in rows], rel=1e-5)
        wait_until(lambda: metric(address, "ctrkit_shadow_total").get("scored") == 1)
        differences = [abs(probability(row, 2.0) - probability(row, 1.0)) for row in rows]
        (total,) = metric(address, "ctrkit_shadow_difference_sum").values()
        assert total == pytest.approx(sum(differences), rel=1e-4)
        for end, count in metric(address, "ctrkit_shadow_difference_bucket").items():
            assert count == sum(difference <= float(end) for difference in differences)
        httpx.post(f"{address}/v1/models/clicks/versions/1:score", json={"rows": rows})
        httpx.post(f"{address}{SCORE}", json={"rows": []})
        assert metric(address, "ctrkit_shadow_total") == {"scored": 1, "dropped": 0, "failed": 0}, "no version is its own shadow"


def test_a_shadow_that_fails_or_hangs_costs_the_answer_nothing(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def compare(*_: object) -> None:
        assert go.wait(30)
        raise ValueError("a row that must not be logged")

    monkeypatch.setattr(Shadow, "_compare", compare)
    with service(repo, ServingSettings(pin={"clicks": 2}, shadow={"clicks": 3}, shadow_rows=10, poll_s=0)) as address:
        began = time.monotonic()
        with httpx.Client(base_url=address) as client:
            statuses = {client.post(SCORE, json={"rows": [ROW] * 4}).status_code for _ in range(6)}
        assert statuses == {200} and time.monotonic() - began < 10
        assert metric(address, "ctrkit_shadow_total")["dropped"] == 4, "two of four rows wait, ten are allowed"
        go.set()
        wait_until(lambda: metric(address, "ctrkit_shadow_total")["failed"] == 2)
        assert httpx.post(f"{address}{SCORE}", json={"rows": [ROW]}).status_code == 200


def test_options_become_settings_and_wrong_ones_are_named(repo: Path) -> None:
    settings = serving_settings(None, [], False, [], [], ["clicks=3:0.1", "clicks=1:0.2", "likes=2:1"], ["clicks=2"])
    assert settings.split == {"clicks": {3: 0.1, 1: 0.2}, "likes": {2: 1.0}} and settings.shadow == {"clicks": 2}
    for wrong in ("clicks=3", "clicks=3:1.5", "clicks=3:0", "clicks=three:0.1", "clicks"):
        with pytest.raises(CtrkitError, match="split|clicks"):
            serving_settings(None, [], False, [], [], [wrong])
    for settings, message in (
        (ServingSettings(split={"clicks": {9: 0.1}}), "has no version 9 to take a share"),
        (ServingSettings(shadow={"clicks": 9}), "has no version 9 to score in the shadow"),
        (ServingSettings(shadow={"click": 1}), "no model 'click' to shadow. Did you mean 'clicks'"),
    ):
        with ThreadPoolExecutor(1) as pool, pytest.raises(CtrkitError, match=message):
            Repository(repo, pool, settings).load()
