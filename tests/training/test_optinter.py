"""OptInter as a user sees it: a log whose clicks hang on one pair of fields, by a table that nothing but memory can hold."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctrkit.bundle import open_bundle
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.training import loop
from ctrkit.training.run import RunResult
from ctrkit.training.trainer import train
from pipelines.export import export_run

ROWS, VALUES = 8000, 12
FEATURES = ("left", "right", "other", "tags", "number")


def planted() -> np.ndarray:
    """The logit of each pair of values."""
    return np.random.default_rng(1).choice([-3.0, 3.0], (VALUES, VALUES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(2)
    table = planted()
    ids = {name: rng.integers(0, VALUES, ROWS) for name in FEATURES[:3]}
    click = rng.random(ROWS) < 1 / (1 + np.exp(-table[ids["left"], ids["right"]]))
    columns = {name: [f"{name} {i}" for i in column] for name, column in ids.items()}
    tags = ["|".join(f"t{t}" for t in rng.integers(0, 5, rng.integers(0, 3))) for _ in range(ROWS)]
    pl.DataFrame({**columns, "tags": tags, "number": rng.normal(size=ROWS), "click": click.astype(int)}).write_parquet(
        folder / "log.parquet"
    )
    return folder


def experiment(folder: Path, output: Path, **model: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "pairs",
            "data": {"path": str(folder / "log.parquet")},
            "label": "click",
            "split": {"valid": 0.15, "test": 0.15},
            "features": [
                {"name": list(FEATURES[:3]), "kind": "categorical"},
                {"name": "tags", "kind": "multi_valued"},
                {"name": "number", "kind": "numeric"},
            ],
            "model": {
                "name": "optinter",
                "hidden": [8],
                "pair_dim": 2,
                "min_count": 5,
                "tail_buckets": 4,
                "search_epochs": 3,
                **model,
            },
            "embedding": {"dim": 2, "learning_rate": 0.1},
            "training": {"batch_size": 256, "epochs": 4, "learning_rate": 0.01, "threads": 1, "precision": "fp32"},
            "output": str(output),
        }
    )


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return prepare(experiment(folder, folder), folder / "dataset")


def run(settings: Experiment, dataset: Dataset, **options: Any) -> tuple[RunResult, str]:
    text = io.StringIO()
    return train(settings, dataset, console=Console(file=text, width=200), **options), text.getvalue()


@pytest.fixture(scope="module")
def searched(folder: Path, dataset: Dataset) -> tuple[RunResult, str]:
    return run(experiment(folder, folder / "out"), dataset)


def test_the_pair_that_matters_is_memorised(folder: Path, dataset: Dataset, searched: tuple[RunResult, str]) -> None:
    result, text = searched
    assert result.decision is not None
    ways = {tuple(pair["fields"]): pair["method"] for pair in result.decision["pairs"]}
    assert ways["left", "right"] == "memorised"
    assert {pair for pair, way in ways.items() if way == "memorised"} <= {("left", "right"), ("left", "other"), ("right", "other")}
    assert json.loads((result.run / "decision.json").read_text()) == result.decision
    assert (result.run / "decision.png").read_bytes().startswith(b"\x89PNG")
    assert f"Search: {result.decision['summary']}" in text

    naive, _ = run(experiment(folder, folder / "out", method="naive"), dataset)
    memorised, text = run(experiment(folder, folder / "out", method="memorised"), dataset)
    assert result.test["auc"] > naive.test["auc"] + 0.1
    assert result.test["auc"] > memorised.test["auc"] - 0.01
    assert memorised.decision is not None and result.decision["rows"] < memorised.decision["rows"]
    assert memorised.decision["counts"] == {"naive": 7, "factorised": 0, "memorised": 3}
    assert "epochs" not in text.partition("Search:")[0], "one way for all takes no search"


def test_the_exported_graph_crosses_raw_values_as_training_did(folder: Path, searched: tuple[RunResult, str], tmp_path: Path) -> None:
    done = export_run(searched[0].run, tmp_path)
    assert done["max_abs_diff"] < 1e-5
    bundle = open_bundle(Path(done["bundle"]))
    rows = [{"left": f"left {i}", "right": f"right {j}", "other": "other 1"} for i in range(VALUES) for j in range(VALUES)]
    table = planted()
    scores = bundle.score(rows)
    assert ((scores.reshape(VALUES, VALUES) > 0.5) == (table > 0)).mean() > 0.95


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test catches it."""


@pytest.mark.parametrize("call", [20, pytest.param(60, marks=pytest.mark.slow)], ids=["in the search", "after it"])
def test_resumed_after_a_kill_it_is_the_same_run(call: int, folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = experiment(folder, tmp_path, search_epochs=2)
    whole, _ = run(settings, dataset, run_dir=tmp_path / "whole")
    clip, calls = loop.clip_grad_norm_, iter(range(1, 10_000))

    def killed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return clip(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "clip_grad_norm_", killed)
        run(settings, dataset, run_dir=tmp_path / "killed")
    resumed, _ = run(settings, dataset, run_dir=tmp_path / "killed", resume=True)
    assert resumed.decision == whole.decision
    assert resumed.test == whole.test and resumed.best_epoch == whole.best_epoch
