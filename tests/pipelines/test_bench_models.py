"""``ctrkit bench models``: every combination of a grid once, the best on validation for every seed, and on again after a stop."""

import json
from pathlib import Path

import pytest

from ctrkit.errors import CtrkitError
from pipelines.bench import trials
from pipelines.bench.models import bench_models
from pipelines.bench.process import Ended


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "name: tiny\ndata: {path: log.csv}\nlabel: click\nfeatures: [{name: user, kind: categorical}]\n"
        "model: {name: deepfm, hidden: [8]}\ntraining: {monitor: auc}\n"
    )
    return str(path)


def test_the_best_on_validation_is_reported_and_nothing_runs_twice(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def done(valid: float, test: float) -> Ended:
        metrics = {"valid": {"auc": valid, "logloss": 0.5}, "test": {"auc": test, "logloss": 0.4}}
        return Ended(0, "Sharding plan\n" + json.dumps({**metrics, "run": "out/runs/1", "params": 10, "samples_per_s": 5.0}), "")

    def run(arguments: list[str], threads: int | None) -> Ended:
        overrides = tuple(part for part in arguments if "=" in part)
        ran.append(overrides)
        seed = next(int(part.partition("=")[2]) for part in overrides if part.startswith("training.seed"))
        small = "embedding.dim=4" in overrides
        return done(0.7 if small else 0.8, 0.9 if small else 0.6 + seed / 10)

    monkeypatch.setattr(trials, "run_command", run)
    said: list[str] = []
    (row,) = bench_models([config], ["deepfm"], 2, ["embedding.dim=4,8"], tmp_path / "out", said.append)
    assert row["settings"] == "embedding.dim=8", "the other one is better on test, which chooses nothing"
    assert (row["auc"], row["auc_std"], row["seeds"]) == (pytest.approx(0.75), pytest.approx(0.05), 2)
    assert len(ran) == 3
    assert bench_models([config], ["deepfm"], 2, ["embedding.dim=4,8"], tmp_path / "out", said.append) == [row]
    assert len(ran) == 3
    assert "| tiny | deepfm | 0.7500 ± 0.0500 | 0.4000 ± 0.0000 | 2 | 10 | 5 | embedding.dim=8 |" in (tmp_path / "out/table.md").read_text()
    with pytest.raises(CtrkitError, match="no model named 'deepfn'"):
        bench_models([config], ["deepfn"], 1, [], tmp_path / "out", said.append)


def test_a_config_that_was_changed_and_trainings_that_all_fail(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"auc": 0.7, "logloss": 0.5}
    result = {"valid": metrics, "test": metrics, "run": "out/runs/1", "params": 10, "samples_per_s": 5.0}
    ended = [Ended(2, "", "error: no"), Ended(0, json.dumps(result), "")]
    monkeypatch.setattr(trials, "run_command", lambda arguments, threads: ended.pop(0))
    said: list[str] = []
    with pytest.raises(CtrkitError, match="no training ended well"):
        bench_models([config], ["deepfm"], 1, [], tmp_path / "out", said.append)
    assert "failed: error: no" in said[0]
    assert len(bench_models([config], ["deepfm"], 1, [], tmp_path / "out", said.append)) == 1
    Path(config).write_text(Path(config).read_text().replace("label: click", "label: buy"))
    with pytest.raises(CtrkitError, match="holds a benchmark of other settings"):
        bench_models([config], ["deepfm"], 1, [], tmp_path / "out", said.append)
