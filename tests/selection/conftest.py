"""Small logs, coded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.selection.coded import CodedLog, code_log

Code = Callable[..., CodedLog]


def experiment_of(frame: pl.DataFrame, folder: Path, features: list[dict[str, Any]] | None = None, **changes: Any) -> Experiment:
    """One whose training rows are all rows of the frame; by default all its columns but ``label`` are categorical features."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / "train.parquet")
    for name in ("valid", "test"):
        frame.head(2).write_parquet(folder / f"{name}.parquet")
    named = features or [{"name": name, "kind": "categorical"} for name in frame.columns if name != "label"]
    data = {name: str(folder / f"{name}.parquet") for name in ("train", "valid", "test")}
    return Experiment.model_validate({"name": "small", "data": data, "label": "label", "features": named, "output": str(folder), **changes})


@pytest.fixture
def code(tmp_path: Path) -> Code:
    """``code({"a": values, .., "label": labels})``: a coded log of these columns."""
    made = iter(range(100))

    def make(columns: Mapping[str, Any] | pl.DataFrame, features: list[dict[str, Any]] | None = None, **settings: Any) -> CodedLog:
        folder = tmp_path / f"log-{next(made)}"
        frame = columns if isinstance(columns, pl.DataFrame) else pl.DataFrame({k: _series(v) for k, v in columns.items()})
        return code_log(experiment_of(frame, folder, features), folder / "codes", **settings)

    return make


def _series(values: Any) -> Any:
    return pl.Series(values) if isinstance(values, np.ndarray) else values


def labels(random: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    return (random.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
