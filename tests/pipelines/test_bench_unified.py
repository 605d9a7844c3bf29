"""The benchmark spends every budget to the row, trains what it says, goes on where it was stopped and writes its report."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ctrkit.config import Experiment, UnifiedEmbedding
from ctrkit.config_file import load_config
from ctrkit.errors import CtrkitError
from ctrkit.schema import Buckets, Hash, Vocabulary
from pipelines.bench.process import Ended
from pipelines.bench.unified import Scheme, bench_unified, on_front, schemes

CONFIG = """
name: log
data: {path: LOG}
label: click
split: {valid: 100, test: 100}
features:
  - {name: [user, item], kind: categorical, transform: {min_count: 2}}
  - {name: price, kind: numeric}
  - {name: hour, kind: numeric, transform: {kind: buckets, count: 6}}
model: {name: dnn, hidden: [8]}
embedding: {dim: 8, learning_rate: 0.1}
output: OUT
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = range(400)
    columns = {
        "user": [f"u{i % 40}" for i in rows],
        "item": [f"i{i % 7}" for i in rows],
        "price": [i / 400 for i in rows],
        "hour": [i % 3 for i in rows],
    }
    pl.DataFrame({**columns, "click": [i % 3 == 0 for i in rows]}).cast({"click": pl.Int64}).write_csv(tmp_path / "log.csv")
    path = tmp_path / "log.yaml"
    path.write_text(CONFIG.replace("LOG", str(tmp_path / "log.csv")).replace("OUT", str(tmp_path / "out")))
    return path


NEEDED = {"user": 42, "item": 9, "hour": 5}
"""Rows of tables of all values: a row for each, padding, unknown."""


def rows_of(scheme: Scheme) -> dict[str, int]:
    """Rows of each table of a config that was written for the log above."""
    embedding = scheme.experiment.embedding
    if isinstance(embedding, UnifiedEmbedding):
        return {"shared": embedding.rows}
    transforms = {f.name: f.transform for f in scheme.experiment.features if f.is_id}
    return {name: t.buckets + 1 if isinstance(t, Hash) else NEEDED[name] for name, t in transforms.items()}


def test_every_scheme_has_the_budgets_parameters_and_the_same_width(config: Path) -> None:
    experiment = load_config(config)
    found = schemes(experiment, NEEDED, [24, 40], [1, 2])
    assert [(s.name, s.budget) for s in found] == [
        ("vocabulary", 56),
        *((name, budget) for budget in (24, 40) for name in ("tables in proportion", "tables with equal caps", "unified", "unified x 2")),
    ]
    for scheme in found[1:]:
        embedding = scheme.experiment.embedding
        assert sum(rows_of(scheme).values()) * embedding.dim == scheme.budget * 8
        assert (embedding.width, embedding.learning_rate) == (8, 0.1)
        assert Experiment.model_validate(scheme.experiment.model_dump()) == scheme.experiment
        hour = next(f for f in scheme.experiment.features if f.name == "hour")
        assert hour.transform == Buckets(count=6)
    assert [rows_of(s) for s in found[1:3]] == [{"user": 15, "item": 4, "hour": 5}, {"user": 10, "item": 9, "hour": 5}]
    with pytest.raises(CtrkitError, match="embedding.dim is 8, which 3 look-ups do not divide"):
        schemes(experiment, NEEDED, [24], [3])
    for budget in (12, 57):
        with pytest.raises(CtrkitError, match=f"a budget of {budget} rows is not between 13 and 56"):
            schemes(experiment, NEEDED, [budget], [1])


def test_a_feature_under_the_cap_keeps_every_value_and_the_others_are_hashed(config: Path) -> None:
    capped = schemes(load_config(config), NEEDED, [24], [1])[2].experiment
    assert [f.transform for f in capped.features if f.name in ("user", "item")] == [Hash(buckets=9), Vocabulary()]


def test_a_sequence_is_hashed_with_its_target(config: Path) -> None:
    seen = "  - {name: seen, kind: sequence, of: item}\n"
    config.write_text(config.read_text().replace("features:\n", f"features:\n{seen}"))
    for scheme in schemes(load_config(config), NEEDED, [24], [1]):
        transforms = {f.name: f.transform for f in scheme.experiment.features}
        assert transforms["seen"] == transforms["item"]
        assert Experiment.model_validate(scheme.experiment.model_dump()) == scheme.experiment


def test_the_front_is_what_nothing_smaller_or_better_beats() -> None:
    points = [(10, 0.70), (10, 0.71), (20, 0.71), (20, 0.69), (30, 0.73), (40, 0.73), (50, 0.74)]
    rows = [{"budget": budget, "auc": auc} for budget, auc in points]
    assert [on_front(row, rows) for row in rows] == [False, True, False, False, True, False, True]


def fake_training(ran: list[Experiment]) -> Callable[..., Ended]:
    """In place of ``ctrkit train``: a better valid AUC for a higher learning rate, a test AUC by the seed."""

    def run(arguments: list[str], threads: int | None) -> Ended:
        settings = [arguments[i + 1] for i, part in enumerate(arguments) if part == "--set"]
        experiment = load_config(arguments[1], settings)
        ran.append(experiment)
        valid = {"auc": 0.6 + experiment.embedding.learning_rate, "logloss": 0.5}
        test = {"auc": 0.7 + experiment.training.seed / 100, "logloss": 0.4}
        said = {"run": "out/runs/1", "valid": valid, "test": test, "params": 100, "samples_per_s": 5.0}
        return Ended(0, json.dumps(said), "")

    return run


def test_a_benchmark_is_resumed_and_reported(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Experiment] = []
    monkeypatch.setattr("pipelines.bench.trials.run_command", fake_training(ran))
    out = tmp_path / "bench"

    def bench(seeds: int, *overrides: str) -> list[dict]:
        grid = ["embedding.learning_rate=0.01,0.02"]
        return bench_unified(config, overrides, [24], [1, 2], seeds, grid, out, say=lambda text: None)

    rows = bench(2)
    assert len(ran) == 5 * (2 + 1), "five schemes: two settings with seed 1, the better one with seed 2"
    assert [row["scheme"] for row in rows] == ["vocabulary", "tables in proportion", "tables with equal caps", "unified", "unified x 2"]
    assert all(row["settings"] == "embedding.learning_rate=0.02" and row["seeds"] == 2 for row in rows)
    assert all(row["auc"] == pytest.approx(0.715) and row["auc_std"] == pytest.approx(0.005) for row in rows)
    shared = [e.embedding for e in ran if isinstance(e.embedding, UnifiedEmbedding)]
    assert {(e.rows, e.dim, e.lookups) for e in shared} == {(24, 8, 1), (48, 4, 2)}
    assert pl.read_parquet(out / "table.parquet").height == 5
    table = (out / "table.md").read_text().splitlines()
    assert len(table) == 7 and table[-2].startswith("| 24 | unified x 2 | yes | 0.7150 ± 0.0050 | 0.4000 ± 0.0000 | 2 | 100 |")
    assert table[-1].startswith("| 56 | vocabulary |  | 0.7150"), "no better, and larger"
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")

    ran.clear()
    bench(3)
    assert [e.training.seed for e in ran] == [3] * 5
    with pytest.raises(CtrkitError, match="holds a benchmark of other settings"):
        bench(3, "training.batch_size=7")
