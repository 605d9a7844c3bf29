"""From a CSV to HTTP: what the trainer predicts, the file, the scorer and the service predict too."""

import json
import re
from pathlib import Path

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
from ctrkit.drift import bins_of_numbers, score_bins
from ctrkit.export.graph import refuse_loops
from ctrkit.training.evaluate import predict_split
from ctrkit.training.trainer import train
from pipelines.export import export_run
from pipelines.score import score
from serving.app import create_app
from serving.settings import ServingSettings

ITEMS = [2**24, 2**24 + 1, 2**24 + 2, 2**31 - 1, 2**31, 2**31 + 1, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]
"""Neighbours that float32, int32 or float64 would merge."""

TEST_ROWS = 200
MODELS: dict[str, dict] = {
    **{name: {} for name in ("lr", "fm", "dnn", "dlrm", "deepfm", "autoint")},
    "optfs": {"base": "fm", "search_epochs": 3, "gate_learning_rate": 0.05, "l1": 1e-3},
    "optinter": {"min_count": 3, "tail_buckets": 5, "search_epochs": 2, "pair_dim": 3, "hidden": (16,)},
}
STEPS = ("deepfm", "optfs", "optinter")
"""The others take the same steps with less, ``autoint`` in the README's test: slow tests."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    rows = 1200
    item, user = rng.integers(0, len(ITEMS), rows), rng.integers(0, 30, rows)
    chance = np.linspace(0.05, 0.95, len(ITEMS))[item]
    frame = pl.DataFrame(
        {
            "item": np.array(ITEMS)[item],
            "user": [None if u == 0 else f"ü{u}" for u in user],
            "tags": ["|".join(f"t{(i + k) % 7}" for k in range(i % 4)) for i in item],
            "price": [None if rng.random() < 0.1 else round(rng.normal(), 3) for _ in range(rows)],
            "hour": rng.integers(0, 24, rows),
            "click": (rng.random(rows) < chance).astype(int),
        }
    )
    path = tmp_path_factory.mktemp("log") / "log.csv"
    frame.with_columns(also=pl.col("item")).write_csv(path)
    return path


def experiment(log: Path, model: str = "lr") -> Experiment:
    features = [
        {"name": "item", "kind": "categorical", "dtype": "int"},
        {"name": "also", "kind": "categorical", "dtype": "int", "transform": {"kind": "hash", "buckets": 1000}},
        {"name": "user", "kind": "categorical", "transform": {"kind": "vocabulary", "min_count": 30, "oov_buckets": 3}},
        {"name": "tags", "kind": "multi_valued", "max_length": 2},
        {"name": "price", "kind": "numeric"},
        {"name": "hour", "kind": "numeric", "transform": {"kind": "buckets", "count": 4}},
    ]
    return Experiment.model_validate(
        {
            "name": "shop",
            "data": {"path": str(log)},
            "label": "click",
            "split": {"by": "order", "valid": 200, "test": TEST_ROWS},
            "features": features,
            "model": {"name": model, **MODELS[model]},
            "embedding": {"dim": 4, "learning_rate": 0.1},
            "training": {"batch_size": 100, "steps": 24, "learning_rate": 0.01, "threads": 1},
            "output": str(log.parent),
        }
    )


@pytest.fixture(scope="module")
def dataset(log: Path) -> Dataset:
    return prepare(experiment(log), log.parent / "dataset")


@pytest.mark.parametrize("model", [pytest.param(m, marks=[] if m in STEPS else pytest.mark.slow) for m in MODELS])
def test_every_step_predicts_the_same(model: str, log: Path, dataset: Dataset, tmp_path: Path) -> None:
    run = train(experiment(log, model), dataset, run_dir=tmp_path / "run", console=Console(quiet=True)).run
    trained = predict_split(run, "test").probabilities

    exported = export_run(run, tmp_path / "repo")
    assert exported["max_abs_diff"] <= 1e-5
    bundle = open_bundle(exported["bundle"])
    refuse_loops(onnx.load(bundle.path / MODEL_FILE).graph)
    assert bundle.manifest.model == model and bundle.manifest.features == dataset.features
    assert bundle.manifest.metrics["test"]["auc"] == json.loads((run / "result.json").read_text())["test"]["auc"]

    score(exported["bundle"], log, tmp_path / "scored.parquet")
    scored = pl.read_parquet(tmp_path / "scored.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(scored[-TEST_ROWS:], trained, atol=1e-5)

    names = [feature.name for feature in dataset.features]
    rows = pl.read_csv(log).select(names).tail(TEST_ROWS).to_dicts()
    with TestClient(create_app(tmp_path / "repo")) as client:
        while client.get("/readyz").status_code == 503:
            pass
        answer = client.post("/v1/models/shop:score", json={"rows": rows}).json()
        candidates = [{"item": item, "also": item} for item in ITEMS]
        ranked = client.post("/v1/models/shop:rank", json={"context": {"user": "ü1"}, "candidates": candidates}).json()["candidates"]
    served = np.array(answer["probabilities"], np.float32)
    np.testing.assert_allclose(served, scored[-TEST_ROWS:], atol=1e-6)

    by_item = [entry["score"] for entry in sorted(ranked, key=lambda entry: entry["index"])]
    assert len(set(by_item)) == len(ITEMS), "neighbouring ids are told apart"
    assert np.std(by_item) > 0.01, "by what was learned, not by chance"


def test_the_training_rows_do_not_drift(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The profile's bins and those of the service are the same, whatever the feature's kind."""
    run = train(experiment(log, "lr"), dataset, run_dir=tmp_path / "run", console=Console(quiet=True)).run
    bundle = open_bundle(export_run(run, tmp_path / "repo")["bundle"])
    scores = score_bins(bundle.manifest.profile, "probability")
    assert scores is not None and scores == bins_of_numbers(predict_split(run, "valid").probabilities)
    names = [feature.name for feature in dataset.features]
    rows = pl.read_csv(log).select(names).head(dataset.rows["train"]).to_dicts()
    with TestClient(create_app(tmp_path / "repo", ServingSettings(drift_min_rows=10, poll_s=0))) as client:
        while client.get("/readyz").status_code == 503:
            pass
        for start in range(0, len(rows), 1000):
            assert client.post("/v1/models/shop:score", json={"rows": rows[start : start + 1000]}).status_code == 200
            text = client.get("/metrics").text
    drift = {name: float(value) for name, value in re.findall(r'^ctrkit_feature_drift{feature="(\w+)".*} (\S+)$', text, re.MULTILINE)}
    assert set(drift) == set(names) and max(drift.values()) < 1e-3, drift


@pytest.mark.parametrize("model", ["autoint", *(pytest.param(model, marks=pytest.mark.slow) for model in ("lr", "deepfm"))])
def test_numbers_alone_make_the_way_too(model: str, log: Path, tmp_path: Path) -> None:
    """No id field, so no table."""
    settings = experiment(log, model)
    numbers = [feature for feature in settings.features if feature.name == "price"]
    hour = numbers[0].model_copy(update={"name": "hour"})
    settings = settings.model_copy(update={"features": (*numbers, hour), "output": str(tmp_path)})
    run = train(settings, prepare(settings), console=Console(quiet=True)).run
    exported = export_run(run, tmp_path / "repo")
    assert exported["max_abs_diff"] <= 1e-5
    score(exported["bundle"], log, tmp_path / "scored.parquet")
    scored = pl.read_parquet(tmp_path / "scored.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(scored[-TEST_ROWS:], predict_split(run, "test").probabilities, atol=1e-5)


def test_neighbouring_ids_keep_a_table_row_each(log: Path, dataset: Dataset) -> None:
    shards = pl.concat([pl.read_parquet(part) for split in ("train", "valid", "test") for part in dataset.parts(split)])
    raw = pl.read_csv(log)
    assert raw["item"].n_unique() == len(ITEMS)
    for name in ("item", "also"):
        assert shards[name].n_unique() == len(ITEMS), name
        pairs = pl.DataFrame({"raw": raw[name], "id": shards[name]}).unique()
        assert pairs.height == len(ITEMS), f"{name}: one id a value, in the log's order"
