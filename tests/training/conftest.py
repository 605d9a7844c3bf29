"""A small click log that can be learned: clicks follow user, item and price."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare

ROWS = 3000


def write_log(path: Path, rows: int = ROWS) -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, rows), rng.integers(0, 60, rows)
    price = rng.normal(size=rows)
    taste = rng.normal(size=40)[user] + rng.normal(size=60)[item]
    clicked = rng.random(rows) < 1 / (1 + np.exp(1 - 1.5 * taste - price))
    tags = ["|".join(f"t{(i + k) % 9}" for k in range(i % 3)) for i in item]
    columns = {
        "user": [f"u{u}" for u in user],
        "item": item,
        "tags": tags,
        "price": np.where(rng.random(rows) < 0.1, np.nan, price),
        "click": clicked.astype(np.int64),
    }
    pl.DataFrame(columns).write_parquet(path)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    write_log(path)
    return path


def make_experiment(log: Path, output: Path, *, model: dict | None = None, embedding: dict | None = None, **training) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "data": {"path": str(log)},
            "label": "click",
            "group": "user",
            "split": {"valid": 0.2, "test": 0.2},
            "features": [
                {"name": "user", "kind": "categorical"},
                {"name": "item", "kind": "categorical", "dtype": "int"},
                {"name": "tags", "kind": "multi_valued"},
                {"name": "price", "kind": "numeric"},
            ],
            "model": model or {"name": "dnn", "hidden": [16], "dropout": 0.2},
            "embedding": {"dim": 4, "learning_rate": 0.1, **(embedding or {})},
            "training": {"batch_size": 128, "epochs": 3, "learning_rate": 0.01, "threads": 1, **training},
            "output": str(output),
        }
    )


@pytest.fixture(scope="session")
def experiment_below(log: Path) -> Callable[..., Experiment]:
    """``experiment_below(output, ...)``: as ``experiment``, with the output folder given."""
    return partial(make_experiment, log)


@pytest.fixture
def experiment(log: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """``experiment(epochs=3, model={...}, embedding={...})``: training settings by keyword, sections by name."""
    return partial(make_experiment, log, tmp_path / "out")


@pytest.fixture(scope="session")
def dataset(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The log of ``experiment``, prepared once."""
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(make_experiment(log, folder), folder / "dataset")
