"""Histories from a log to HTTP, on a log whose clicks depend on them: the target's category is in the user's history, or is not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from fastapi.testclient import TestClient
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.bundle import MODEL_FILE, open_bundle
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.export.graph import refuse_loops
from ctrkit.models.registry import models
from ctrkit.training.evaluate import predict_split
from ctrkit.training.trainer import train
from pipelines.export import export_run
from pipelines.score import score
from serving.app import create_app

ROWS, TEST_ROWS = 8000, 1500
CATEGORIES, LENGTH = 40, 6


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Categories ``c0 .. c39``; histories of up to eight, of which the last six count. In every other row they hold the target."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, CATEGORIES, ROWS)
    past = [rng.integers(0, CATEGORIES, size) for size in rng.integers(0, LENGTH + 3, ROWS)]
    for row in range(0, ROWS, 2):
        if len(past[row]):
            past[row][rng.integers(0, len(past[row]))] = target[row]
    interested = np.array([c in p[-LENGTH:] for p, c in zip(past, target, strict=True)])
    frame = pl.DataFrame(
        {
            "category": [f"c{c}" for c in target],
            "past": ["|".join(f"c{c}" for c in row) for row in past],
            "hour": rng.integers(0, 24, ROWS),
            "click": (rng.random(ROWS) < np.where(interested, 0.9, 0.1)).astype(int),
        }
    )
    path = tmp_path_factory.mktemp("log") / "log.csv"
    frame.write_csv(path)
    return path


def experiment(log: Path, model: dict[str, Any] | None = None, embedding: dict[str, Any] | None = None) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "shop",
            "data": {"path": str(log)},
            "label": "click",
            "split": {"by": "order", "valid": 500, "test": TEST_ROWS},
            "features": [
                {"name": "past", "kind": "sequence", "of": "category", "max_length": LENGTH},
                {"name": "hour", "kind": "categorical", "dtype": "int"},
                {"name": "category", "kind": "categorical"},
            ],
            "model": model or {"name": "dnn", "hidden": [32]},
            "embedding": {"dim": 8, "learning_rate": 0.1, "init_std": 0.3, **(embedding or {})},
            "training": {"batch_size": 100, "epochs": 5, "patience": 5, "learning_rate": 5e-3, "threads": 1},
            "output": str(log.parent),
        }
    )


ATTENDING = [m.name for m in models() if m.kind == "sequence"]
MODELS: dict[str, dict[str, Any]] = {name: {"name": name, "hidden": [32]} for name in ("dnn", *ATTENDING)}
UNIFIED: dict[str, Any] = {"kind": "unified", "rows": 3000, "dim": 4, "lookups": 2, "feature_lookups": {"hour": 1}}
"""Of ``din unified`` and so on: every place is looked up in the table that all features share."""
RUNS = [*MODELS, *(f"{name} unified" for name in ATTENDING)]


@pytest.fixture(scope="module")
def dataset(log: Path) -> Dataset:
    return prepare(experiment(log), log.parent / "dataset")


@pytest.fixture(scope="module")
def runs(log: Path, dataset: Dataset) -> dict[str, Path]:
    quiet = Console(quiet=True)
    done = {name: train(experiment(log, model), dataset, run_dir=log.parent / name, console=quiet).run for name, model in MODELS.items()}
    for name in ATTENDING:
        shared = experiment(log, MODELS[name], UNIFIED)
        done[f"{name} unified"] = train(shared, prepare(shared), run_dir=log.parent / f"{name} unified", console=quiet).run
    return done


def test_attention_finds_what_a_mean_blurs(runs: dict[str, Path]) -> None:
    auc = {name: predict_split(run, "test").metrics()["auc"] for name, run in runs.items()}
    assert all(auc[name] > auc["dnn"] + 0.02 for name in RUNS if name != "dnn"), auc


@pytest.mark.parametrize("name", [name if name in ("din", "bst unified") else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])
def test_every_step_predicts_the_same(name: str, runs: dict[str, Path], log: Path, tmp_path: Path) -> None:
    trained = predict_split(runs[name], "test").probabilities
    exported = export_run(runs[name], tmp_path / "repo")
    assert exported["max_abs_diff"] <= 1e-5
    bundle = open_bundle(exported["bundle"])
    refuse_loops(onnx.load(bundle.path / MODEL_FILE).graph)

    raw = pl.read_csv(log)
    raw.with_columns(pl.col("past").fill_null("").str.split("|")).write_parquet(tmp_path / "log.parquet")
    for file in (log, tmp_path / "log.parquet"):
        score(exported["bundle"], file, tmp_path / "scored.parquet")
        scored = pl.read_parquet(tmp_path / "scored.parquet")["probability"].to_numpy()
        np.testing.assert_allclose(scored[-TEST_ROWS:], trained, atol=1e-5)

    rows = raw.select("past", "hour", "category").tail(50).to_dicts()
    as_lists = [row | {"past": (row["past"] or "").split("|")} for row in rows]
    longer = [row | {"past": ["c1", "", "never seen", *row["past"]]} for row in as_lists if len(row["past"]) >= LENGTH]
    with TestClient(create_app(tmp_path / "repo")) as client:
        while client.get("/readyz").status_code == 503:
            pass

        def served(rows: list[dict[str, Any]]) -> list[float]:
            return client.post("/v1/models/shop:score", json={"rows": rows}).json()["probabilities"]

        np.testing.assert_allclose(served(rows), scored[-50:], atol=1e-6)
        np.testing.assert_allclose(served(as_lists), served(rows), atol=1e-6)
        full = [row for row in as_lists if len(row["past"]) >= LENGTH]
        np.testing.assert_allclose(served(longer), served(full), atol=1e-6, err_msg="only the last values count")
        nothing = [{"category": "c3", "hour": 4} | past for past in ({}, {"past": None}, {"past": []}, {"past": ""}, {"past": ["", None]})]
        without = served(nothing)
        np.testing.assert_allclose(without, without[:1] * len(nothing), atol=1e-7)
        interested, other = served([{"category": "c3", "hour": 4, "past": past} for past in (["c7", "c3"], ["c7", "c4"])])
        if name != "dnn":
            assert interested > other + 0.3


def test_a_history_is_encoded_with_the_ids_of_its_target(dataset: Dataset, log: Path) -> None:
    shards = pl.concat([pl.read_parquet(part) for part in dataset.parts("train")])
    raw = pl.read_csv(log).head(shards.height)
    of_target = dict(zip(raw["category"], shards["category"], strict=True))
    for cell, ids in zip(raw["past"].head(500), shards["past"].head(500), strict=True):
        assert [of_target[value] for value in (cell or "").split("|")[-LENGTH:] if value] == ids.to_list()
    assert {f.name: (f.rows, f.table) for f in dataset.inputs.id_fields}["past"] == (CATEGORIES + 2, "category")
    profile = dataset.profile["features"]["past"]
    assert profile["out_of_vocabulary"] == {"train": 0, "valid": 0, "test": 0} and 0 < profile["missing"]["train"] < 0.2
