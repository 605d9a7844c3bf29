"""Rows that differ from those of the training show in /metrics; those that do not, do not."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.bundle import KNOWN_FILE, MANIFEST_FILE, Manifest, describe_files, open_bundle
from ctrkit.drift import bins_of_codes, bins_of_numbers
from ctrkit.known import KnownValues, codes_of
from serving.drift import Drift
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service

Rows = list[dict[str, Any]]


def drawn(count: int, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    users, prices = random.choice(["u1", "u2", "u3", ""], count, p=[0.5, 0.3, 0.1, 0.1]), random.normal(5, 2, count)
    ages, tags = random.integers(20, 60, count), random.integers(0, 3, count)
    return [
        {"user": str(user), "price": float(price), "age": int(age), "tags": ["a", "b"][:number]}
        for user, price, age, number in zip(users, prices, ages, tags, strict=True)
    ]


def write_profile(folder: Path, rows: Rows) -> None:
    """Gives a bundle the profile of rows that it might have been trained on; u3 was too rare for the vocabulary."""
    users = [row["user"] for row in rows if row["user"]]
    tags = [tag for row in rows for tag in row["tags"]]
    bins = {
        "user": bins_of_codes(codes_of(users).astype(np.int64), len(rows) - len(users), np.unique(codes_of(["u1", "u2"]))),
        "price": bins_of_numbers(np.array([row["price"] for row in rows])),
        "age": bins_of_codes(np.array([row["age"] for row in rows]), 0, None),
        "tags": bins_of_codes(codes_of(tags).astype(np.int64), sum(not row["tags"] for row in rows), None),
    }
    profile = {
        "features": {name: {"bins": one.model_dump(mode="json", exclude_defaults=True)} for name, one in bins.items()},
        "scores": {"probability": bins_of_numbers(np.array([probability(row) for row in rows])).model_dump(mode="json")},
    }
    KnownValues.of({"user": ["u1", "u2"]}).save(folder / KNOWN_FILE)
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    manifest = manifest.model_copy(update={"profile": profile, "files": describe_files(folder)})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write_profile(make_bundle(tmp_path), drawn(5000, 0))
    make_bundle(tmp_path, "bare")
    return tmp_path


@pytest.fixture
def address(repo: Path) -> Iterator[str]:
    with service(repo, ServingSettings(poll_s=0, drift_rows=2_000, drift_min_rows=500)) as address:
        yield address


def ask(address: str, rows: Rows, model: str = "clicks") -> None:
    for start in range(0, len(rows), 500):
        assert httpx.post(f"{address}/v1/models/{model}:score", json={"rows": rows[start : start + 500]}).status_code == 200


def drift(address: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    names = ("ctrkit_feature_drift", "ctrkit_score_drift", "ctrkit_drift_rows")
    found = [sample for family in families for sample in family.samples if sample.name in names and sample.labels["model"] == "clicks"]
    return {sample.labels.get("feature") or sample.labels.get("task") or "rows": sample.value for sample in found}


def test_rows_like_the_trainings_do_not_drift_and_others_do(address: str) -> None:
    ask(address, drawn(400, 1))
    assert drift(address) == {"rows": 400}, "too few rows say nothing"
    ask(address, drawn(1600, 2))
    found = drift(address)
    assert found.pop("rows") == 2000
    assert set(found) == {"user", "price", "age", "tags", "probability"} and max(found.values()) < 0.05
    moved = [{**row, "price": row["price"] + 4, "user": "stranger" if row["user"] == "u1" else row["user"]} for row in drawn(2000, 3)]
    ask(address, moved)
    found = drift(address)
    assert found["rows"] == 2000, "the window has moved on"
    assert found["price"] > 0.25 and found["user"] > 0.25 and found["probability"] > 0.1
    assert found["age"] < 0.05 and found["tags"] < 0.05
    ask(address, drawn(2000, 4))
    assert drift(address)["price"] < 0.05, "and says so when it is over"


def test_a_bundle_without_a_profile_has_no_drift_and_empty_requests_count_nothing(address: str) -> None:
    ask(address, drawn(1000, 1), "bare")
    assert httpx.post(f"{address}/v1/models/bare:score", json={"rows": []}).status_code == 200
    text = httpx.get(f"{address}/metrics").text
    assert 'ctrkit_drift_rows{model="bare",version="1"} 1000' in text
    assert "ctrkit_feature_drift{" not in text and "ctrkit_score_drift{" not in text


def test_rows_that_come_one_by_one_are_kept_together(repo: Path) -> None:
    bundle = open_bundle(repo / "clicks" / "1")
    window, whole = Drift(bundle, 5_000, 50), Drift(bundle, 5_000, 50)
    zeros = {name: np.zeros(len(one.shares), np.int64) for name, one in window.features.items()}
    prices = np.random.default_rng(0).normal(9, 2, 10_000)
    tracemalloc.start()
    for price in prices:
        window.add(1, {**zeros, "price": window.features["price"].count_numbers(np.array([price]))}, {})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000, "each by itself takes 5 MB"
    assert 5_000 <= window.rows < 5_100
    last = prices[-window.rows :]
    whole.add(len(last), {**zeros, "price": whole.features["price"].count_numbers(last)}, {})
    window.scores = whole.scores = {}
    assert window.of_features() == whole.of_features() and window.of_features()["price"] > 0.25


def test_the_window_slides_by_blocks(repo: Path) -> None:
    bundle = open_bundle(repo / "clicks" / "1")
    window = Drift(bundle, 100, 50)
    bins = window.features["price"]
    low, high = (bins.count_numbers(np.full(40, value)) for value in (-1e3, 1e3))
    others = {name: np.zeros(len(one.shares), np.int64) for name, one in window.features.items()}
    for price in (low, low, high, high, high):
        window.add(40, {**others, "price": price}, {"probability": window.scores["probability"].count_numbers(np.full(40, 0.5))})
    assert window.rows == 120
    only_high = Drift(bundle, 100, 50)
    only_high.add(120, {**others, "price": 3 * high}, {"probability": window.scores["probability"].count_numbers(np.full(120, 0.5))})
    assert window.of_features() == only_high.of_features() and set(window.of_features()) == {"price"}
