"""A soak of some seconds, and one that finds a failure."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ctrkit.errors import CtrkitError
from pipelines.bench import soak
from pipelines.bench.soak import bench_soak
from pipelines.terminal import Terminal
from tests.handmade import make_bundle

GOLDEN = [{"user": "u1", "age": 40, "price": 2.5, "tags": ["a"]}, {"user": None, "age": None, "price": None, "tags": []}]


def test_versions_arrive_under_load_and_no_request_fails(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "repo", version=7, golden=GOLDEN)
    before = sorted(path.name for path in folder.parent.iterdir())
    found = bench_soak(tmp_path / "repo", 2, 3, 4.0, 0.8, tmp_path / "out", Terminal(as_json=True))
    assert found["requests"] > 20 and found["failed"] == 0 and set(found["statuses"]) == {"200"}
    assert found["reloads"] >= 2 and found["published"] >= found["reloads"]
    assert all(10 < mb < 4000 for mb in found["memory_mb"]) and abs(found["growth_mb"]) < 200
    assert json.loads((tmp_path / "out" / "soak.json").read_text()) == found
    assert sorted(path.name for path in folder.parent.iterdir()) == before, "the repository itself is not touched"


def test_failed_requests_are_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "repo", golden=GOLDEN)
    draws = soak.draw_requests
    monkeypatch.setattr(soak, "draw_requests", lambda *given: [*draws(*given)[:3], [{"no such feature": 1}]])
    with pytest.raises(CtrkitError, match=r"of .* requests failed: .*'422'"):
        bench_soak(tmp_path / "repo", 1, 1, 1.0, 10, tmp_path / "out", Terminal(as_json=True))
    found = json.loads((tmp_path / "out" / "soak.json").read_text())
    assert 0 < found["failed"] < found["requests"] and found["failed"] == found["statuses"]["422"]


@pytest.mark.parametrize("option", [["--workers", "2"], ["--peer-python", sys.executable], ["--rows", "1", "--rows", "2"]])
def test_options_that_a_soak_has_no_use_for_are_refused(tmp_path: Path, ctrkit: Any, option: list[str]) -> None:
    refused = ctrkit("bench", "serving", str(tmp_path), "--soak", *option)
    assert refused.status == 2 and "--soak is one load on one worker" in refused.stderr
