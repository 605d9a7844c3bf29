"""What cannot be maximised on a valid split is refused before the first epoch, and no run folder is left."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError
from ctrkit.training.run import create_run

LOGS = {
    "one class": {"user": ["a", "b"] * 10, "click": [0, 1] * 8 + [0] * 4},
    "groups of one class": {"user": ["a", "b"] * 10, "click": [0, 1] * 10},
    "a group of both": {"user": ["a", "a", "b", "b"] * 5, "click": [0, 1] * 10},
}


@pytest.mark.parametrize(
    ("log", "monitor", "problem"),
    [
        ("one class", "auc-logloss", "'auc-logloss' is undefined on the valid split: its labels are all of one class"),
        ("one class", "auc", "its labels are all of one class"),
        ("one class", "gauc", "its labels are all of one class"),
        ("one class", "logloss", None),
        ("groups of one class", "gauc", "'gauc' is undefined on the valid split: no 'user' has rows of both classes there"),
        ("groups of one class", "auc", None),
        ("a group of both", "gauc", None),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_what_is_undefined(tmp_path: Path, log: str, monitor: str, problem: str | None, several: bool) -> None:
    frame = pl.DataFrame(LOGS[log]).with_columns(item=pl.lit("i"), other=1 - pl.col("click"))
    frame.write_parquet(tmp_path / "log.parquet")
    settings: dict[str, Any] = {
        "name": "m",
        "data": {"path": str(tmp_path / "log.parquet")},
        "label": {"main": "click", "second": "other"} if several else "click",
        "group": "user",
        "split": {"by": "order", "valid": 4, "test": 0},
        "features": [{"name": "item", "kind": "categorical"}],
        "training": {"monitor": monitor},
        "output": str(tmp_path),
    }
    experiment = Experiment.model_validate(settings)
    dataset = prepare(experiment)
    if problem is None:
        assert create_run(experiment, dataset).is_dir()
    else:
        with pytest.raises(CtrkitError, match=problem):
            create_run(experiment, dataset)
        assert not (tmp_path / "runs").exists()
