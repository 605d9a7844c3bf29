"""Rankings of features compared on tiny logs, trained for real; the needles of the synthetic log are found by whoever can find them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2

from ctrkit.config import Experiment
from ctrkit.config_file import load_config
from ctrkit.data.prepare import prepare
from pipelines.bench import selection
from pipelines.bench.needles import NOISE, RELEVANT, write_needles
from pipelines.bench.rankings import Material, rank
from pipelines.bench.selection import best_first, recall

CONFIG = """
name: tiny
data: {path: LOG}
label: click
split: {valid: 300, test: 300}
features:
  - {name: noise, kind: categorical}
  - {name: user, kind: categorical}
  - {name: tags, kind: multi_valued}
  - {name: blank, kind: numeric}
  - {name: price, kind: numeric}
model: {name: dnn, hidden: [4]}
embedding: {dim: 4, learning_rate: 0.1, init_std: 0.01}
training: {epochs: 3, batch_size: 128, threads: 1, learning_rate: 0.01}
output: OUT
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Clicks follow user, tags and price; the other two are noise."""
    rng = np.random.default_rng(0)
    rows = 2000
    user, tag, price = rng.integers(0, 12, rows), rng.integers(0, 6, rows), rng.normal(size=rows)
    taste = rng.normal(size=12)[user] + 2 * rng.normal(size=6)[tag] + price
    columns = {
        "noise": [f"n{n}" for n in rng.integers(0, 40, rows)],
        "user": [f"u{u}" for u in user],
        "tags": [f"t{t}" if t else "" for t in tag],
        "blank": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
        "price": price,
        "click": (rng.random(rows) < 1 / (1 + np.exp(-2 * taste))).astype(int),
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("LOG", str(tmp_path / "log.parquet")).replace("OUT", str(tmp_path / "out")))
    return path


@pytest.mark.parametrize("name", ["outrank", "3mr", "permutation", "lasso", "forest", "boosting"])
def test_a_ranking_tells_what_clicks_follow_from_noise(config: Path, tmp_path: Path, name: str) -> None:
    experiment = load_config(config)
    material = Material(experiment, prepare(experiment), tmp_path / "scratch", seed=1)
    scores = rank(name, material)
    assert set(best_first(scores)[:3]) == {"user", "tags", "price"}
    assert set(scores) == {"noise", "user", "tags", "blank", "price"}
    assert rank(name, material) == scores
    assert not (tmp_path / "scratch").exists()


def test_optfs_gives_the_share_of_values_it_keeps(config: Path, tmp_path: Path) -> None:
    experiment = load_config(config)
    scores = rank("optfs", Material(experiment, prepare(experiment), tmp_path / "scratch", seed=1))
    assert set(scores) == {"noise", "user", "tags", "blank", "price"} and all(0 <= score <= 1 for score in scores.values())


def test_auc_against_features_resumed_and_reported(
    config: Path, tmp_path: Path, ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Experiment] = []
    train = selection.train

    def noting(experiment: Experiment, *arguments: Any, **options: Any) -> Any:
        trained.append(experiment)
        return train(experiment, *arguments, **options)

    monkeypatch.setattr(selection, "train", noting)
    call = ("bench", "selection", config, "--method", "boosting", "--method", "random", "--top", 2, "--top", 9, "--out", tmp_path / "bench")
    said = ctrkit(*call, "--seeds", 1)
    assert said.status == 0, said.stderr
    assert len(trained) == 3, "all features are the same subset, whatever the ranking"
    frame = pl.read_parquet(tmp_path / "bench/results.parquet")
    assert frame.select("method", "top", "features").rows() == [("boosting", 2, 5), ("boosting", 5, 5), ("random", 2, 5), ("random", 5, 5)]
    best, everything, _, again = frame["test_auc"]
    assert everything == again > best > 0.6
    report = (tmp_path / "bench/report.md").read_text()
    assert f"| boosting | {best:.4f} | {everything:.4f} |" in report and "![" in report
    assert (tmp_path / "bench/selection-tiny.png").read_bytes().startswith(b"\x89PNG")

    trained.clear()
    assert ctrkit(*call, "--seeds", 2).status == 0
    assert {experiment.training.seed for experiment in trained} == {2}
    assert pl.read_parquet(tmp_path / "bench/results.parquet").filter(seed=1).equals(frame), "what was measured is not measured anew"

    kept = [experiment for experiment in trained if len(experiment.features) == 2]
    alone = ctrkit(
        "train",
        config,
        "--set",
        f"features={json.dumps([f.model_dump(mode='json') for f in kept[0].features])}",
        "--set",
        "training.seed=2",
    )
    second = pl.read_parquet(tmp_path / "bench/results.parquet").filter(seed=2, method="boosting", top=2)
    assert second["test_auc"].item() == alone.json["test"]["auc"], "it is what ctrkit train measures"


def test_what_cannot_be_compared_is_refused(config: Path, tmp_path: Path, ctrkit: Callable[..., Any]) -> None:
    wrong = ctrkit("bench", "selection", config, "--method", "laso", "--out", tmp_path / "bench")
    assert wrong.status == 2 and "no ranking named 'laso'. Did you mean 'lasso'?" in wrong.stderr
    nothing = ctrkit("bench", "selection", "--out", tmp_path / "bench")
    assert nothing.status == 2 and "Name a config, or give --synthetic ROWS" in nothing.stderr
    said = ctrkit("bench", "selection", config, "--method", "optfs", "--set", "model={name: optfs}", "--out", tmp_path / "bench")
    assert said.json == [] and "tiny optfs: " in said.stderr


def test_the_synthetic_log_has_the_needles_it_says(tmp_path: Path) -> None:
    experiment, relevant = write_needles(20_000, 0, tmp_path / "log", tmp_path / "out")
    frame = pl.read_parquet(experiment.data.path)
    assert len(relevant) == len(RELEVANT) == 10 and len(experiment.features) == len(RELEVANT) + len(NOISE) == frame.width - 1
    assert {f.name for f in experiment.features} == set(frame.columns) - {"click"}
    for name in frame.columns[:-1]:
        groups = frame.group_by(name).agg(pl.col("click").sum(), pl.len().alias("rows"))
        rate = frame["click"].mean()
        chi = ((groups["click"] - groups["rows"] * rate) ** 2 / (groups["rows"] * rate * (1 - rate))).sum()
        chance = chi2.sf(chi, groups.height - 1)
        assert chance < 1e-12 if name in relevant else chance > 1e-3, name
    assert write_needles(20_000, 0, tmp_path / "log", tmp_path / "out")[0] == experiment
    assert recall(["a", "needle"], frozenset({"needle", "other"})) == 0.5


def test_equal_scores_stay_in_their_order() -> None:
    assert best_first({"a": 0.1, "b": 0.3, "c": 0.1}) == ["b", "a", "c"]
