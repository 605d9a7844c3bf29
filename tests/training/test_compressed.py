"""Compressed embeddings from a log to a bundle: bags, histories, several labels, two processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.embeddings.compression.registry import methods
from ctrkit.errors import CtrkitError
from ctrkit.training.evaluate import predict_split
from ctrkit.training.run import load_run, read_result, write_config
from ctrkit.training.tracking import read_records
from ctrkit.training.trainer import train
from pipelines.export import export_run
from pipelines.score import score

BUDGET = 0.5
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
METHODS = [info.name for info in methods()]
EXPORTED = ("dpq", "pep")
"""Codes and a mask. Exporting takes seconds: the others are slow tests, and each method's stored form
alone is exported by the contract of all methods."""
SCRIPT = Path(__file__).with_name("train_process.py")


def compressed(method: str, **settings: Any) -> dict[str, Any]:
    """Wide enough for a row's step or mask to be a small part of it."""
    return {"dim": 16, "compression": {"method": method, "budget": BUDGET, **settings}}


@pytest.mark.parametrize("method", [m if m in EXPORTED else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_what_was_measured_is_what_is_evaluated_and_exported(
    method: str, experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path
) -> None:
    """With a bag, a number, and first-order weights that are hashed."""
    settings = experiment(epochs=2, model={"name": "deepfm", "hidden": [8]}, embedding=compressed(method))
    result = train(settings, dataset, console=Console(quiet=True))
    rows = sum(field.rows for field in dataset.inputs.id_fields)
    assert 0 < result.embedding_bytes <= BUDGET * rows * (16 + 1) * 4
    assert predict_split(result.run, "test").metrics() == pytest.approx(result.test, abs=1e-6)
    assert export_run(result.run, tmp_path / "models")["max_abs_diff"] < 1e-5


def test_the_same_seed_gives_the_same_vectors(experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path) -> None:
    settings = experiment(epochs=1, embedding=compressed("alpt"))
    first, second = (train(settings, dataset, run_dir=tmp_path / name, console=Console(quiet=True)) for name in "ab")
    assert first.test == second.test


@pytest.mark.parametrize(
    "method",
    [
        "dedup",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("dhe", "alpt", "deeplight", "optembed", "pep", "mgqe", "autodim")),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("autosrh", "compositional", "double_hash", "pq", "svd")),
    ],
)
def test_two_processes_learn_what_one_learns(method: str, experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path) -> None:
    settings = experiment(epochs=2, model={"name": "dnn", "hidden": [16]}, embedding=compressed(method), precision="fp32")
    folder = Path(settings.output)
    folder.mkdir(exist_ok=True)
    write_config(folder, settings)
    command = [sys.executable, *TWO, SCRIPT, folder / "config.yaml", dataset.path]
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = read_result(folder / "runs" / "tiny-dnn-1"), train(settings, dataset, run_dir=tmp_path / "one", console=Console(quiet=True))
    assert two is not None
    tolerance = 2e-3 if method == "alpt" else 1e-5  # alpt: a last bit of another sum rounds a number the other way
    for metric in ("auc", "logloss"):
        assert two.valid[metric] == pytest.approx(one.valid[metric], abs=tolerance)
    assert two.embedding_bytes == one.embedding_bytes


def test_a_history_by_place_is_looked_up_in_compressed_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    item = rng.integers(0, 40, 1200)
    past = [rng.integers(0, 40, size) for size in rng.integers(0, 5, 1200)]
    clicked = np.array([i in p for i, p in zip(item, past, strict=True)])
    frame = pl.DataFrame(
        {
            "item": item,
            "past": ["|".join(map(str, p)) for p in past],
            "hour": rng.integers(0, 24, 1200),
            "click": (rng.random(1200) < np.where(clicked, 0.9, 0.2)).astype(int),
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    settings = Experiment.model_validate(
        {
            "name": "shop",
            "data": {"path": str(tmp_path / "log.csv")},
            "label": "click",
            "split": {"by": "order", "valid": 200, "test": 200},
            "features": [
                {"name": "past", "kind": "sequence", "of": "item", "max_length": 3},
                {"name": "hour", "kind": "categorical", "dtype": "int"},
                {"name": "item", "kind": "categorical", "dtype": "int"},
            ],
            "model": {"name": "din", "hidden": [8]},
            "embedding": compressed("robe"),
            "training": {"batch_size": 100, "epochs": 1, "threads": 1},
            "output": str(tmp_path),
        }
    )
    dataset = prepare(settings, tmp_path / "dataset")
    result = train(settings, dataset, console=Console(quiet=True))
    bundle = Path(export_run(result.run, tmp_path / "models")["bundle"])
    frame.tail(200).drop("click").write_csv(tmp_path / "rows.csv")
    score(bundle, tmp_path / "rows.csv", tmp_path / "scores.parquet")
    scores = pl.read_parquet(tmp_path / "scores.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(scores, predict_split(result.run, "test").probabilities, atol=1e-6)


def test_a_search_leaves_its_decision_with_the_weights(experiment: Callable[..., Experiment], dataset: Dataset) -> None:
    settings = experiment(epochs=1, embedding=compressed("pep", search_epochs=2))
    found = load_run(train(settings, dataset, console=Console(quiet=True)).run)[2]["decision"]
    assert found["@counts"].sum() > 0 and found["embedding/mask"].any() and not found["embedding/mask"].all()


def test_a_budget_that_cannot_be_reached_leaves_no_run(experiment: Callable[..., Experiment], dataset: Dataset) -> None:
    settings = experiment(embedding={"dim": 16, "compression": {"method": "quantised", "budget": 0.05}})
    with pytest.raises(CtrkitError, match="method 'quantised' needs .* bytes at the least"):
        train(settings, dataset)
    assert not (Path(settings.output) / "runs").exists()


def test_a_result_tells_the_bytes(experiment: Callable[..., Experiment], dataset: Dataset) -> None:
    result = train(experiment(epochs=1, embedding={"dim": 4}), dataset, console=Console(quiet=True))
    rows = sum(field.rows for field in dataset.inputs.id_fields)
    assert json.loads((result.run / "result.json").read_text())["embedding_bytes"] == rows * 4 * 4


def test_a_model_that_starts_from_trained_weights_is_measured_before_it_is_trained_on(
    experiment: Callable[..., Experiment], dataset: Dataset
) -> None:
    """All blocks are kept, so that nothing is lost by sharing: it starts where the search ended."""
    settings = experiment(epochs=1, embedding={"dim": 16, "compression": {"method": "dedup", "budget": 1.0, "search_epochs": 1}})
    folder = train(settings, dataset, console=Console(quiet=True)).run
    ended = [record for record in read_records(folder / "search") if record["event"] == "valid"][-1]
    started = next(record for record in read_records(folder) if record["event"] == "valid")
    assert started["step"] == 0
    assert started["auc"] == pytest.approx(ended["auc"], abs=0.02)
