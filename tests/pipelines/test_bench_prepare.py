"""The benchmark of prepare compares like with like."""

import pytest

from pipelines.bench.prepare import bench_prepare


def test_both_sides_write_the_same_ids(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CTRKIT_DATA", raising=False)
    result = bench_prepare(5_000)
    assert result["identical"] and result["source"] == "a synthetic log"
    for side in ("ctrkit", "pandas"):
        assert result[side]["rows_per_s"] == pytest.approx(5_000 / result[side]["seconds"])
        assert result[side]["peak_mb"] > 10
    assert result["ratio"] == pytest.approx(result["ctrkit"]["rows_per_s"] / result["pandas"]["rows_per_s"])
    assert "times as fast; the ids are the same" in capsys.readouterr().out
