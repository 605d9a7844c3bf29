import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ctrkit.bundle import KNOWN_FILE, MANIFEST_FILE, RUN_ROWS, Manifest, describe_files
from ctrkit.known import KnownValues
from serving.metrics import Distribution
from serving.model import SIZES
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service

SCORE = "/v1/models/clicks:score"
STAGES = ("read", "parse", "queue", "run", "answer")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    folder = make_bundle(tmp_path)
    KnownValues.of({"user": ["u1", "u2"], "tags": ["a"], "age": [40]}).save(folder / KNOWN_FILE)
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    (folder / MANIFEST_FILE).write_text(manifest.model_copy(update={"files": describe_files(folder)}).model_dump_json())
    with service(tmp_path, ServingSettings(poll_s=0)) as address:
        yield address


def samples(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{address}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_asked_and_answered_is_counted(address: str) -> None:
    rows = [{"user": "u1", "age": 40, "tags": ["a", "b"]}, {"user": "stranger", "price": 3}, {"age": 41, "tags": []}]
    assert httpx.post(f"{address}{SCORE}", json={"rows": rows}).status_code == 200
    assert httpx.post(f"{address}{SCORE}", json={"rows": rows[:1]}).status_code == 200
    assert httpx.post(f"{address}{SCORE}", json={"row": rows}).status_code == 422
    assert httpx.get(f"{address}/made/up/{'x' * 100}").status_code == 404
    found = samples(address)

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    model = {"model": "clicks", "version": "1"}
    for stage in (*STAGES, "total"):
        assert value("ctrkit_stage_seconds_count", stage=stage, **model) == 2
    spent = [value("ctrkit_stage_seconds_sum", stage=stage, **model) for stage in (*STAGES, "total")]
    assert sum(spent[:-1]) == pytest.approx(spent[-1]) and min(spent) > 0
    assert value("ctrkit_request_rows_sum", **model) == value("ctrkit_batch_rows_sum", **model) == 4
    assert value("ctrkit_score_count", task="probability", **model) == 4
    expected = sum(probability(row) for row in [*rows, rows[0]])
    assert value("ctrkit_score_sum", task="probability", **model) == pytest.approx(expected, rel=1e-5)
    for feature, missing, unknown in (("user", 1, 1), ("age", 1, 1), ("price", 3, None), ("tags", 2, 2)):
        assert value("ctrkit_sampled_rows_total", feature=feature, **model) == 4
        assert value("ctrkit_missing_total", feature=feature, **model) == missing
        key = ("ctrkit_out_of_vocabulary_total", frozenset({"feature": feature, **model}.items()))
        assert found.get(key) == unknown
    assert value("ctrkit_request_seconds_count", route="score", status="200") == 2
    assert value("ctrkit_request_seconds_count", route="score", status="422") == 1
    assert value("ctrkit_request_seconds_count", route="other", status="404") == 1
    assert value("ctrkit_refused_total", reason="InvalidBody") == 1
    assert value("ctrkit_model_version", model="clicks") == 1
    assert value("ctrkit_versions_total", model="clicks", outcome="loaded") == 1
    assert value("ctrkit_in_flight") == 1, "the one that asks for it"
    assert not re.search("stranger|u1", httpx.get(f"{address}/metrics").text)


def test_the_sample_is_bounded_by_its_size_in_memory_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.metrics.SAMPLE_BYTES", 20_000)

    def sampled() -> float:
        return samples(address)["ctrkit_sampled_rows_total", frozenset({"feature": "user", "model": "clicks", "version": "1"}.items())]

    long, tags, short = {"user": "x" * 15_000}, {"tags": ["a"] * 300}, {"user": "u1"}
    for row in (long, long, tags, short):
        assert httpx.post(f"{address}{SCORE}", json={"rows": [row]}).status_code == 200
    assert sampled() == 2, "one long row, and the short one that found room"
    for row in (tags, long):
        assert httpx.post(f"{address}{SCORE}", json={"rows": [row]}).status_code == 200
    assert sampled() == 3, "who reads the metrics makes room"


@pytest.mark.parametrize("inline_ms", [0, 1000])
def test_a_long_request_runs_in_pieces_and_gets_all_its_answers_in_order(tmp_path: Path, inline_ms: float) -> None:
    make_bundle(tmp_path)
    rows = [{"user": f"u{i % 3}", "age": i, "tags": ["a"] * (i % 5)} for i in range(3 * RUN_ROWS + 17)]
    with service(tmp_path, ServingSettings(poll_s=0, inline_ms=inline_ms, runs=2)) as address:
        answer = httpx.post(f"{address}{SCORE}", json={"rows": rows})
        found = samples(address)
    assert answer.json()["probabilities"] == pytest.approx([probability(row) for row in rows], rel=1e-5)
    model = {"model": "clicks", "version": "1"}
    assert found["ctrkit_batch_rows_sum", frozenset(model.items())] <= max(RUN_ROWS, SIZES[-1])
    spent = {stage: found["ctrkit_stage_seconds_sum", frozenset({"stage": stage, **model}.items())] for stage in (*STAGES, "total")}
    assert sum(spent[stage] for stage in STAGES) == pytest.approx(spent["total"]) and min(spent.values()) > 0


@given(st.lists(st.floats(0, 2), max_size=50), st.booleans())
def test_a_distribution_is_prometheus_histogram(numbers: list[float], together: bool) -> None:
    ends = (0.1, 0.5, 1.0)
    distribution = Distribution(ends)
    if together:
        distribution.add_many(np.array([numbers]))
    else:
        for number in numbers:
            distribution.add((number,))
    for _ in range(2):  # reading changes nothing
        ((buckets, total),) = distribution.read()
        assert [count for _, count in buckets] == [sum(number <= end for number in numbers) for end in (*ends, np.inf)]
        assert [end for end, _ in buckets] == ["0.1", "0.5", "1", "+Inf"]
        assert total == pytest.approx(sum(numbers))
