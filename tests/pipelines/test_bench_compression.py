"""Methods x budgets x seeds on a tiny log, trained and exported for real: resumed, refusals recorded, a report of the Parquet's figures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.config_file import load_config
from ctrkit.embeddings.compression.registry import methods
from pipelines.bench.compression_report import averages, write_report
from pipelines.bench.process import Ended

CONFIG = """
name: tiny
data: {path: LOG}
label: click
split: {valid: 100, test: 100}
features: [{name: [user, item], kind: categorical}]
model: {name: dnn, hidden: [4]}
embedding: {dim: 4}
training: {epochs: 1, batch_size: 128, threads: 1}
output: OUT
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = range(500)
    columns = {"user": [f"u{i % 40}" for i in rows], "item": [f"i{i % 7}" for i in rows], "click": [int(i % 3 == 0) for i in rows]}
    pl.DataFrame(columns).write_csv(tmp_path / "log.csv")
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("LOG", str(tmp_path / "log.csv")).replace("OUT", str(tmp_path / "out")))
    return path


@pytest.fixture
def trained(ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """What was trained: in this process, by the command that a trial is."""
    ran: list[Experiment] = []

    def run(arguments: list[str], threads: int | None) -> Ended:
        ran.append(load_config(arguments[1], [arguments[i + 1] for i, part in enumerate(arguments) if part == "--set"]))
        said = ctrkit(*(part for part in arguments if part != "--json"))
        return Ended(said.status, said.stdout, said.stderr)

    monkeypatch.setattr("pipelines.bench.trials.run_command", run)
    return ran


def test_it_trains_resumes_refuses_and_reports(config: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Experiment]) -> None:
    out = tmp_path / "bench"

    def bench(seeds: int, *more: object) -> Any:
        return ctrkit(
            *("bench", "compression", config, "--method", "hash", "--budget", 0.5, "--budget", 0.001),
            *("--seeds", seeds, "--out", out, *more),
        )

    said = bench(1)
    assert said.status == 0, said.stderr
    chosen = [e.embedding.compression and (e.embedding.compression.method, e.embedding.compression.budget) for e in trained]
    assert chosen == [None, ("hash", 0.5), ("hash", 0.001)]

    frame = pl.read_parquet(out / "results.parquet")
    assert frame.select("method", "budget", "seed", "reached").rows() == [
        ("none", 1.0, 1, True),
        ("hash", 0.5, 1, True),
        ("hash", 0.001, 1, False),
    ]
    none, half, refused = frame.to_dicts()
    assert (none["share"], none["embedding_bytes"]) == (1.0, (42 + 9) * 4 * 4), "a row a value, padding and unknown, of four floats"
    assert (half["share"], half["embedding_bytes"]) == (pytest.approx(25 / 51), 25 * 4 * 4)
    assert "compression method 'hash' needs 16 bytes at the least" in refused["message"]
    assert refused["test_auc"] is None
    for row in (none, half):
        assert all(row[name] > 0 for name in ("bundle_bytes", "latency_ms_1", "latency_ratio_1024", "lookup_ratio", "seconds"))
    assert 0.2 < none["latency_ratio_1"] < 5, "a bundle next to itself"

    report = (out / "report.md").read_text()
    assert f"| hash | {half['kind']} | 1 | {half['test_auc']:.4f} | {half['test_auc'] - none['test_auc']:+.4f} |" in report
    assert f"Not reached by hash: {refused['message']}" in report
    assert [(row["method"], row["test_auc"]) for row in said.json] == [("none", none["test_auc"]), ("hash", half["test_auc"])]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and f"<td>{half['test_auc']:.4f}</td>" in page

    trained.clear()
    assert bench(2).status == 0
    assert [e.training.seed for e in trained] == [2, 2, 2]
    again = pl.read_parquet(out / "results.parquet").filter(seed=1)
    assert again.equals(frame), "what was measured is not measured anew"

    reference = tmp_path / "out" / "runs" / "tiny-dnn-1"
    shutil.rmtree(reference.parent)  # folders are numbered anew
    reference.mkdir(parents=True)
    trained.clear()
    said = bench(2, "--method", "double_hash")
    assert said.status == 0 and len(trained) == 4
    assert f"double_hash at 0.5: no size or speed without the run '{reference}'" in said.stderr, "the reference is gone, not the run"
    later = pl.read_parquet(out / "results.parquet").filter(seed=1)
    assert later.filter(pl.col("method") != "double_hash").equals(frame)
    assert later.filter(method="double_hash")["bundle_bytes"].to_list() == [None, None], "what it is compared with is no longer there"

    trained.clear()
    other = bench(2, "--set", "training.batch_size=64")
    assert other.status == 2 and "holds a benchmark of other settings" in other.stderr
    assert trained == []


def test_an_unknown_method_is_refused_before_anything_runs(config: Path, ctrkit: Callable[..., Any], trained: list[Experiment]) -> None:
    said = ctrkit("bench", "compression", config, "--method", "hahs")
    assert said.status == 2 and "unknown compression method 'hahs'" in said.stderr
    assert trained == []


def row(method: str, budget: float, seed: int, valid: float, test: float, **more: Any) -> dict[str, Any]:
    measured = {"share": budget, "embedding_bytes": int(1000 * budget), "bundle_bytes": 2000, "seconds": 10.0, "lookup_ratio": 1.0}
    latency = {"latency_ratio_1": 1.0, "latency_ratio_1024": 1.0}
    metrics = {"valid_auc": valid, "test_auc": test, "test_logloss": 0.5}
    named = {"data": "log", "method": method, "kind": "a kind", "budget": budget, "seed": seed, "reached": True, "message": None}
    return {**named, **measured, **latency, **metrics, **more}


def test_advice_is_by_validation_for_each_use(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        [
            row("none", 1.0, 1, 0.8, 0.8),
            row("best", 0.1, 1, 0.79, 0.70, latency_ratio_1024=1.3),
            row("best", 0.1, 2, 0.79, 0.72, latency_ratio_1024=1.3),
            row("quick", 0.1, 1, 0.7895, 0.75, latency_ratio_1=1.2, seconds=1.0),
            row("served", 0.1, 1, 0.78, 0.74),
            row("lucky", 0.1, 1, 0.77, 0.79, seconds=0.5),
        ]
    )
    write_report(frame, "Title", tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| 0.1 | best (0.7100) | served (0.7400) | quick (0.7500) |" in report
    assert "| best | a kind | 2 | 0.7100 ± 0.0100 | -0.0900 |" in report
    assert next(r for r in averages(frame) if r["method"] == "best")["test_auc_std"] == pytest.approx(0.01)


def test_the_methods_are_listed_with_their_settings(ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    said = ctrkit("compressions")
    assert [entry["name"] for entry in said.json] == [info.name for info in methods()]
    assert all(entry["paper"] and entry["kind"] and entry["sharded"] for entry in said.json)
    shown = ctrkit("compressions", as_json=False).stdout
    assert "magnitude" in shown and "what is sharded" in shown
