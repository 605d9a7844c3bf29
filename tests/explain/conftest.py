"""Planted logs and what is trained on them, each once: one of fields, where three features make the click and two are noise, and one of
histories."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.training import loop, trainer

ROWS, HISTORIES, LENGTH, CATEGORIES = 6000, 8000, 6, 20
KINDS = {"colour": "categorical", "city": "categorical", "tags": "multi_valued", "weight": "numeric", "price": "numeric"}
FIELDS = [{"name": name, "kind": kind} for name, kind in KINDS.items()]
BOTH = {"click": "click", "buy": "buy"}
OF_HISTORIES = [
    {"name": "past", "kind": "sequence", "of": "category", "max_length": LENGTH},
    {"name": "hour", "kind": "categorical", "dtype": "int"},
    {"name": "category", "kind": "categorical"},
]


@pytest.fixture(scope="module", autouse=True)
def without_pictures_of_training() -> Iterator[None]:
    """They take as long to draw as these runs to train."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("learning_curve", "calibration_plot"):
            patch.setattr(loop, name, lambda *_: None)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="session")
def fields_log(folder: Path) -> Path:
    """City, tags and price make the click; price alone makes the purchase, which is worth nothing without a click."""
    rng = np.random.default_rng(0)
    city, tag, price = rng.integers(0, 8, ROWS), rng.integers(0, 6, ROWS), rng.normal(size=ROWS)
    logit = 1.5 * rng.normal(size=8)[city] + 1.5 * np.where(tag > 2, 1, -1) + 1.2 * price
    columns = {
        "colour": [f"k{k}" for k in rng.integers(0, 8, ROWS)],
        "city": [f"c{c}" for c in city],
        "tags": [f"t{t}|t{(t + 1) % 3 + 3 * (t > 2)}" for t in tag],
        "weight": rng.normal(size=ROWS),
        "price": np.where(rng.random(ROWS) < 0.1, np.nan, price),
        "click": (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int),
        "buy": (rng.random(ROWS) < 1 / (1 + np.exp(-2.5 * price))).astype(int),
    }
    path = folder / "fields.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


@pytest.fixture(scope="session")
def histories_log(folder: Path) -> Path:
    """A click where the category is among the last ``LENGTH`` of the history; some histories are longer, some empty, some with gaps."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, CATEGORIES, HISTORIES)
    past = [rng.integers(0, CATEGORIES, size) for size in rng.integers(0, LENGTH + 3, HISTORIES)]
    for row in range(0, HISTORIES, 2):
        if len(past[row]):
            past[row][rng.integers(0, len(past[row]))] = target[row]
    interested = np.array([c in p[-LENGTH:] for p, c in zip(past, target, strict=True)])
    columns = {
        "category": [f"c{c}" for c in target],
        "past": ["|".join([*[""] * (k % 3), *(f"c{c}" for c in row)]) for k, row in enumerate(past)],
        "hour": rng.integers(0, 24, HISTORIES),
        "click": (rng.random(HISTORIES) < np.where(interested, 0.95, 0.05)).astype(int),
    }
    path = folder / "histories.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


@pytest.fixture(scope="session")
def logs(fields_log: Path, histories_log: Path) -> dict[str, dict[str, Any]]:
    """Of each data set, what its experiments share."""
    of_fields = {"data": {"path": str(fields_log)}, "features": FIELDS, "embedding": {"dim": 4, "learning_rate": 0.05}}
    return {
        "fields": {**of_fields, "label": "click"},
        "labels": {**of_fields, "label": BOTH},
        "histories": {
            "data": {"path": str(histories_log)},
            "features": OF_HISTORIES,
            "label": "click",
            "embedding": {"dim": 8, "learning_rate": 0.1, "init_std": 0.3},
        },
    }


@pytest.fixture(scope="session")
def datasets(folder: Path, logs: dict[str, dict[str, Any]]) -> dict[str, Dataset]:
    models = {"fields": "lr", "labels": "mmoe", "histories": "dnn"}
    return {name: prepare(_experiment(folder, log, {"name": models[name]}), folder / name) for name, log in logs.items()}


@pytest.fixture(scope="session")
def train(folder: Path, logs: dict[str, dict[str, Any]], datasets: dict[str, Dataset]) -> Callable[..., Path]:
    """``train("fm", "fields", epochs=4)``, a model's name or settings on ``fields``, ``labels`` (two of them) or ``histories`` -> run folder."""

    def trained(model: str | dict[str, Any], data: str = "fields", **training: Any) -> Path:
        settings = {"name": model} if isinstance(model, str) else model
        return trainer.train(_experiment(folder, logs[data], settings, **training), datasets[data], console=Console(quiet=True)).run

    return trained


def _experiment(folder: Path, log: dict[str, Any], model: dict[str, Any], **training: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "planted",
            "split": {"valid": 0.1, "test": 0.3},
            "model": model,
            "training": {"batch_size": 256, "epochs": 4, "learning_rate": 0.005, "threads": 1, "precision": "fp32", **training},
            "output": str(folder),
            **log,
        }
    )
