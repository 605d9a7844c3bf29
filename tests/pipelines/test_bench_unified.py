"""The benchmark spends every budget to the row, trains what it says, goes on where it was stopped and writes its report."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.config import Experiment, UnifiedEmbedding, load_config
from ctrkit.errors import CtrkitError
from ctrkit.schema import Hash
from pipelines.bench.unified import LEAST_ROWS, bench_unified, schemes, split_rows

CARDINALITIES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10**6), min_size=1, max_size=8)


@given(CARDINALITIES, st.integers(0, 10**6))
def test_rows_are_split_in_proportion_and_add_up(cardinalities: dict[str, int], more: int) -> None:
    rows = LEAST_ROWS * len(cardinalities) + more
    split = split_rows(cardinalities, rows)
    assert list(split) == list(cardinalities)
    assert sum(split.values()) == rows
    assert min(split.values()) >= LEAST_ROWS
    larger = {name: n for name, n in split.items() if n > LEAST_ROWS + 1}
    if larger:
        ratio = sum(larger.values()) / sum(cardinalities[name] for name in larger)
        assert all(abs(n - ratio * cardinalities[name]) <= 2 + len(split) for name, n in larger.items())


def test_a_split_by_hand() -> None:
    assert split_rows({"user": 600, "item": 300, "gender": 2}, 94) == {"user": 60, "item": 30, "gender": 4}
    with pytest.raises(CtrkitError, match="a budget of 11 rows is too small for 3 tables"):
        split_rows({"a": 1, "b": 1, "c": 1}, 11)


CONFIG = """
name: log
data: {path: LOG}
label: click
split: {valid: 100, test: 100}
features:
  - {name: [user, item], kind: categorical, transform: {min_count: 2}}
  - {name: price, kind: numeric}
model: {name: dnn, hidden: [8]}
embedding: {dim: 8, learning_rate: 0.1}
output: OUT
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = range(400)
    columns = {"user": [f"u{i % 40}" for i in rows], "item": [f"i{i % 7}" for i in rows], "price": [i / 400 for i in rows]}
    pl.DataFrame({**columns, "click": [i % 3 == 0 for i in rows]}).cast({"click": pl.Int64}).write_csv(tmp_path / "log.csv")
    path = tmp_path / "log.yaml"
    path.write_text(CONFIG.replace("LOG", str(tmp_path / "log.csv")).replace("OUT", str(tmp_path / "out")))
    return path


def test_every_scheme_has_the_budgets_parameters_and_the_same_width(config: Path) -> None:
    experiment = load_config(config)
    found = schemes(experiment, {"user": 40, "item": 7}, [24, 48], [1, 2])
    assert [(s.name, s.budget) for s in found] == [
        ("vocabulary", 0),
        *((name, budget) for budget in (24, 48) for name in ("hash tables", "unified", "unified x 2")),
    ]
    for scheme in found[1:]:
        embedding = scheme.experiment.embedding
        hashes = [f.transform for f in scheme.experiment.features if isinstance(f.transform, Hash)]
        rows = embedding.rows if isinstance(embedding, UnifiedEmbedding) else sum(h.buckets + 1 for h in hashes)
        assert len(hashes) == 2
        assert rows * embedding.dim == scheme.budget * 8
        assert (embedding.width, embedding.learning_rate) == (8, 0.1)
        assert Experiment.model_validate(scheme.experiment.model_dump()) == scheme.experiment
    with pytest.raises(CtrkitError, match="embedding.dim is 8, which 3 look-ups do not divide"):
        schemes(experiment, {"user": 40, "item": 7}, [24], [3])


def fake_training(ran: list[Experiment]) -> Callable[..., subprocess.CompletedProcess]:
    """In place of ``ctrkit train``: a better valid AUC for a higher learning rate, a test AUC by the seed."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        verb = command.index("train")
        settings = [command[i + 1] for i, part in enumerate(command) if part == "--set"]
        experiment = load_config(command[verb + 1], settings)
        ran.append(experiment)
        valid = {"auc": 0.6 + experiment.embedding.learning_rate, "logloss": 0.5}
        test = {"auc": 0.7 + experiment.training.seed / 100, "logloss": 0.4}
        said = {"valid": valid, "test": test, "params": 100, "samples_per_s": 5.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(said), "")

    return run


def test_a_benchmark_is_resumed_and_reported(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Experiment] = []
    monkeypatch.setattr(subprocess, "run", fake_training(ran))
    out = tmp_path / "bench"

    def bench(seeds: int, *overrides: str) -> list[dict]:
        grid = ["embedding.learning_rate=0.01,0.02"]
        return bench_unified(config, overrides, [24], [1, 2], seeds, grid, out, say=lambda text: None)

    rows = bench(2)
    assert len(ran) == 4 * (2 + 1), "four schemes: two settings with seed 1, the better one with seed 2"
    assert [row["scheme"] for row in rows] == ["vocabulary", "hash tables", "unified", "unified x 2"]
    assert all(row["settings"] == "embedding.learning_rate=0.02" and row["seeds"] == 2 for row in rows)
    assert all(row["auc"] == pytest.approx(0.715) and row["auc_std"] == pytest.approx(0.005) for row in rows)
    shared = [e.embedding for e in ran if isinstance(e.embedding, UnifiedEmbedding)]
    assert {(e.rows, e.dim, e.lookups) for e in shared} == {(24, 8, 1), (48, 4, 2)}
    assert pl.read_parquet(out / "table.parquet").height == 4
    table = (out / "table.md").read_text().splitlines()
    assert len(table) == 6 and "| 24 | unified x 2 | 100 | 0.7150 ± 0.0050 |" in table[-1]
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")

    ran.clear()
    bench(3)
    assert [e.training.seed for e in ran] == [3] * 4
    with pytest.raises(CtrkitError, match="holds a benchmark of other settings"):
        bench(3, "training.batch_size=7")
