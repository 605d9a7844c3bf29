from pathlib import Path

import numpy as np
import polars as pl

from pipelines.bench.recommend import bench_recommend
from pipelines.bench.synthetic_towers import clustered
from pipelines.terminal import Terminal


def test_index_and_service_are_measured_and_reported(tmp_path: Path) -> None:
    measured = bench_recommend([2000], 16, 20, [2], 0.2, tmp_path, Terminal(as_json=True))
    exact, *others = measured["index"]
    assert exact["breadth"] == 0 and exact["recall@10"] == exact["recall@100"] == 1.0
    recalls = [row["recall@10"] for row in others]
    assert [row["breadth"] for row in others] == [32, 64, 128, 256] and min(recalls) > 0.8 and recalls[-1] > 0.99
    assert all(row["queries_per_s"] > 0 for row in measured["index"])
    assert len(measured["recommend"]) == 5
    assert all(row["per_s"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in measured["recommend"])
    assert pl.read_parquet(tmp_path / "index.parquet").height == 5 and pl.read_parquet(tmp_path / "recommend.parquet").height == 5
    report = (tmp_path / "report.md").read_text()
    assert "| 2,000 | exact | 1.0000 | 1.0000 |" in report and "rare tag" in report
    assert {path.name for path in tmp_path.iterdir()} == {"index.parquet", "recommend.parquet", "report.md", "report.html"}


def test_clusters_are_near_to_one_another_only() -> None:
    vectors = clustered(600, 32, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert 0.2 < (similar > 0.4).mean() < 0.5, "a third of all pairs are of one cluster"
