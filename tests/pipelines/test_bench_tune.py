"""Two searches a seed on a tiny log, for real, and the time that each took to the same AUC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctrkit.config_file import load_config
from pipelines.bench.tune import Curve, Spent, compared, curve

CONFIG = """
name: tiny
data: {path: LOG}
label: click
split: {valid: 200, test: 200}
features: [{name: [noise, user, item], kind: categorical}]
model: {name: dnn, hidden: [4]}
embedding: {dim: 4, learning_rate: 0.1, init_std: 0.01}
training: {epochs: 1, batch_size: 128, threads: 1, learning_rate: 0.01}
output: OUT
"""


def test_it_searches_twice_a_seed_and_goes_on(tmp_path: Path, ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("learning_curve", "calibration_plot"):
        monkeypatch.setattr(f"ctrkit.training.loop.{name}", lambda *_: None)
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 10, 1200), rng.integers(0, 10, 1200)
    taste = 2 * rng.normal(size=10)[user] + 2 * rng.normal(size=10)[item]
    clicks = (rng.random(1200) < 1 / (1 + np.exp(-taste))).astype(int)
    noise = rng.integers(0, 200, 1200)
    pl.DataFrame({"noise": noise, "user": user, "item": item, "click": clicks}).write_csv(tmp_path / "log.csv")
    config, space, out = tmp_path / "tiny.yaml", tmp_path / "space.yaml", tmp_path / "bench"
    config.write_text(CONFIG.replace("LOG", str(tmp_path / "log.csv")).replace("OUT", str(tmp_path / "out")))
    space.write_text("settings: {embedding.dim: [2, 4]}\ntop: [2, 3]")
    call = ("bench", "tune", config, "--space", space, "--trials", 3, "--out", out)
    said = ctrkit(*call, "--seeds", 1)
    assert said.status == 0, said.stderr
    (row,) = said.json
    studies = {arm: pl.read_parquet(out / f"{arm}-1/trials.parquet") for arm in ("subsets", "ranked")}
    for arm, frame in studies.items():
        assert frame.height == 3 and row[f"{arm}_auc"] == frame["valid_auc"].max()
    assert set(studies["ranked"]["top"]) <= {2, 3}, "'top' is of the search with the ranking"
    assert "feature.noise" in studies["subsets"].columns and "top" in studies["ranked"].columns
    ranked = load_config(out / "ranked-1/best.yaml")
    assert ranked.training.seed == 1
    assert ctrkit("train", out / "ranked-1/best.yaml").json["test"]["auc"] == row["ranked_test_auc"]
    assert f"| 1 | {row['subsets_auc']:.4f} | {row['ranked_auc']:.4f} |" in (out / "report.md").read_text()
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    assert ctrkit(*call, "--seeds", 1).json == said.json, "what was searched is not searched again"


def test_time_to_the_same_auc() -> None:
    subsets = Curve((10, 20, 30, 40), (5, 10, 15, 20), (0.7, 0.7, 0.7995, 0.8), 0.78)
    ranked = Curve((7, 12, 17), (2, 3, 4), (0.75, 0.7991, 0.81), 0.79)
    row = compared(subsets, ranked)
    assert (row["subsets_trials"], row["ranked_trials"], row["subsets_seconds"], row["ranked_seconds"]) == (3, 2, 30, 12)
    assert (row["share"], row["cpu_share"]) == (0.4, 0.2)
    assert (row["subsets_auc"], row["ranked_auc"], row["ranked_test_auc"], row["subsets_whole"]) == (0.8, 0.81, 0.79, 40)
    assert row["subsets_to_ranked"] is None
    never = compared(ranked, subsets)
    assert never["subsets_to_ranked"] == 12
    assert (never["subsets_seconds"], never["ranked_trials"], never["ranked_seconds"], never["share"]) == (17, None, None, None)


def test_a_curve_counts_the_trials_seconds_and_no_stops() -> None:
    frame = pl.DataFrame(
        {
            "trial": [1, 0, 2, 3],
            "began": [5.0, 0.0, 100.0, 108.0],
            "ended": [8.0, 4.0, 107.0, 110.0],
            "cpu_seconds": [1.0, 2.0, None, 3.0],
            "valid_auc": [None, 0.6, 0.5, 0.7],
        }
    )
    found = curve(frame, 0.65, Spent(seconds=2.0, cpu=0.5))
    assert found == Curve((6.0, 9.0, 16.0, 18.0), (2.5, 3.5, 3.5, 6.5), (0.6, 0.6, 0.6, 0.7), 0.65)
