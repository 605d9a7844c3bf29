"""Settings of files and splits that contradict one another are refused; those of explicitly given files are honoured."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.config_file import load_config
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import check_columns, prepare
from ctrkit.errors import CtrkitError

FEATURES = [{"name": "row", "kind": "categorical", "dtype": "int", "transform": {"kind": "hash", "buckets": 10**9}}]


def experiment(data: dict[str, Any], **settings: Any) -> Experiment:
    return Experiment.model_validate({"name": "s", "data": data, "label": "click", "features": FEATURES, **settings})


def write(path: Path, rows: int, first: int = 0) -> str:
    """Rows in the reverse order of their time, which is their number too."""
    numbers = range(first + rows - 1, first - 1, -1)
    pl.DataFrame({"row": numbers, "click": [0, 1] * (rows // 2), "time": numbers}).write_csv(path)
    return str(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data={path: a.csv, test: b.csv}", "'test' stands beside 'path'"),
        (
            "data={path: a.csv, valid: b.csv, test: c.csv}",
            "'valid' stands beside 'path', one log that 'split' divides: give 'path' as 'train'",
        ),
        ("split={column: at}", "'column' is of by: time, and the split is by: random: set by to time, or column to null"),
        ("split={by: order, column: at}", "'column' is of by: time, and the split is by: order"),
        ("data={path: a.csv, columns: [x, y]}", "set header: false, or leave columns out"),
        ("data={path: a.csv, joins: [{path: b.csv, on: x, columns: [x, y]}]}", "set header: false, or leave columns out"),
        ("split.seed=-1", "split.seed: Input should be greater than or equal to 0"),
        ("split.seed=18446744073709551616", "split.seed: Input should be less than 18446744073709551616"),
        ("training.seed=-1", "training.seed: Input should be greater than or equal to 0"),
        ("training.seed=9223372036854775808", "training.seed: Input should be less than"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, override: str, message: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: c\ndata: {path: a.csv}\nlabel: click\nfeatures: [{name: row, kind: categorical}]\n")
    with pytest.raises(CtrkitError) as caught:
        load_config(config, [override])
    assert message in str(caught.value)


def test_a_split_by_time_has_nothing_to_do_beside_files_of_all_parts() -> None:
    with pytest.raises(ValueError, match="data.valid leaves nothing to split"):
        experiment({"train": "a.csv", "valid": "b.csv", "test": "c.csv"}, split={"by": "time", "column": "time"})


@pytest.mark.parametrize(
    ("split", "held_out"),
    [({"by": "time", "column": "time"}, set(range(90, 100))), ({"by": "order", "valid": 20}, set(range(20)))],
    ids=lambda value: str(value.get("by")) if isinstance(value, dict) else "",
)
def test_training_rows_are_held_out_as_the_split_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: dict[str, Any], held_out: set[int]
) -> None:
    monkeypatch.setattr("ctrkit.data.scratch.FILE_ROWS", 30)
    data = {"train": write(tmp_path / "train.csv", 100), "test": write(tmp_path / "test.csv", 50, first=100)}
    dataset = prepare(experiment(data, split=split), tmp_path / "out")
    ids = pl.DataFrame({"row": range(150)}, schema={"row": pl.Int64}).select(dataset.transforms()["row"].to_polars()).to_series()
    assert _ids(dataset, "valid") == {ids[row] for row in held_out}
    assert _ids(dataset, "train") == {ids[row] for row in set(range(100)) - held_out}
    assert _ids(dataset, "test") == {ids[row] for row in range(100, 150)}


def _ids(dataset: Dataset, split: str) -> set[int]:
    return {number for part in dataset.parts(split) for number in pl.read_parquet(part)["row"]}


def test_the_time_column_of_a_hold_out_must_be_there(tmp_path: Path) -> None:
    data = {"train": write(tmp_path / "train.csv", 100), "test": write(tmp_path / "test.csv", 50)}
    with pytest.raises(CtrkitError, match="no column 'tme' in .*train.csv'. Did you mean 'time'"):
        check_columns(experiment(data, split={"by": "time", "column": "tme"}))


def test_a_file_belongs_to_one_part_once(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.csv", 20), write(tmp_path / "b.csv", 20)
    link = tmp_path / "link.csv"
    link.symlink_to(b)
    for data, message in (
        ({"train": [a, b], "test": b}, "the file '.*b.csv' is in data.train and in data.test. Each part needs rows of its own"),
        ({"train": a, "valid": b, "test": str(link)}, "the file '.*link.csv' is in data.valid and in data.test"),
        ({"path": [str(tmp_path / "?.csv"), a]}, "data.path names the file '.*a.csv' twice. Its rows would count twice"),
        ({"path": [b, str(link)]}, "data.path names the file '.*link.csv' twice"),
    ):
        with pytest.raises(CtrkitError, match=message):
            check_columns(experiment(data))
