"""A planted log, where three features make the click and two are noise."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare

ROWS = 6000


@pytest.fixture(scope="session")
def planted_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    city, tag, price = rng.integers(0, 8, ROWS), rng.integers(0, 6, ROWS), rng.normal(size=ROWS)
    logit = 1.2 * rng.normal(size=8)[city] + 1.5 * np.where(tag > 2, 1, -1) + 1.2 * price
    columns = {
        "colour": [f"k{k}" for k in rng.integers(0, 8, ROWS)],
        "city": [f"c{c}" for c in city],
        "tags": [f"t{t}|t{(t + 1) % 3 + 3 * (t > 2)}" for t in tag],
        "weight": rng.normal(size=ROWS),
        "price": np.where(rng.random(ROWS) < 0.1, np.nan, price),
        "click": (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int),
    }
    path = tmp_path_factory.mktemp("planted") / "log.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


def _experiment(log: Path, model: str, **training: object) -> Experiment:
    kinds = {"colour": "categorical", "city": "categorical", "tags": "multi_valued", "weight": "numeric", "price": "numeric"}
    return Experiment.model_validate(
        {
            "name": "planted",
            "data": {"path": str(log)},
            "label": "click",
            "split": {"valid": 0.1, "test": 0.3},
            "features": [{"name": name, "kind": kind} for name, kind in kinds.items()],
            "model": {"name": model},
            "embedding": {"dim": 4, "learning_rate": 0.05},
            "training": {"batch_size": 256, "epochs": 4, "learning_rate": 0.005, "threads": 1, **training},
            "output": str(log.parent),
        }
    )


@pytest.fixture(scope="session")
def planted(planted_log: Path) -> Dataset:
    return prepare(_experiment(planted_log, "lr"), planted_log.parent / "dataset")


@pytest.fixture(scope="session")
def planted_experiment(planted_log: Path) -> Callable[..., Experiment]:
    """``planted_experiment("fm", epochs=4)``"""
    return partial(_experiment, planted_log)
