"""From a log to codes: which rows, and what each value becomes."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError
from ctrkit.selection.coded import CodedLog, code_log
from tests.selection.conftest import Code, experiment_of


def partition(codes: np.ndarray) -> list[int]:
    """The same for columns that tell the same rows apart."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(code, len(numbers)) for code in codes.tolist()]


def of(log: CodedLog, name: str) -> np.ndarray:
    return next(column.codes for column in log.columns if column.name == name)


FEATURES = [
    {"name": "text", "kind": "categorical"},
    {"name": "hashed", "kind": "categorical", "transform": {"kind": "hash", "buckets": 10}},
    {"name": "int", "kind": "categorical", "dtype": "int"},
    {"name": "bag", "kind": "multi_valued"},
    {"name": "ints", "kind": "multi_valued", "dtype": "int"},
    {"name": "past", "kind": "sequence", "of": "text"},
    {"name": "price", "kind": "numeric", "transform": {"kind": "buckets", "count": 3}},
]

ROWS = {
    "text": ["b", None, "a", "b", ""],
    "hashed": ["x", "y", None, "x", "z"],
    "int": [7, None, 7, -1, 0],
    "bag": ["s|t", "t|s|s", "", "t", None],
    "ints": [[1, 2], [2, 1], [], [3], None],
    "past": ["a|b", "c|b", None, "b|a", ""],
    "price": [1.0, None, 2.0, 9.0, 2.0],
    "label": [0, 1, 1, 0, 1],
}


def test_values_are_told_apart_and_missing_ones_are_0(code: Code) -> None:
    log = code(pl.DataFrame(ROWS), FEATURES)
    expected = {
        "text": "b0ab0",
        "hashed": "xy0xz",
        "int": "70718",
        "bag": "ss0t0",
        "ints": "ss0t0",
        "past": "bb0a0",
        "price": "10222",
    }
    for name, values in expected.items():
        codes = of(log, name)
        assert partition(codes) == partition(np.array([ord(value) for value in values])), name
        assert [code == 0 for code in codes] == [value == "0" for value in values], name
    assert log.label.tolist() == ROWS["label"]
    assert all(column.codes.max() < column.size for column in log.columns)


def test_a_column_without_values(code: Code) -> None:
    empty = pl.DataFrame(
        {"text": [None] * 4, "price": [None] * 4, "label": [0, 1, 0, 1]}, schema_overrides={"text": pl.String, "price": pl.Float64}
    )
    log = code(empty, [{"name": "text", "kind": "categorical"}, {"name": "price", "kind": "numeric"}])
    assert not of(log, "text").any() and not of(log, "price").any()


def test_buckets_are_those_of_prepare(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pl.DataFrame({"x": random.lognormal(0, 2, 3000), "label": random.integers(0, 2, 3000)})
    experiment = experiment_of(frame, tmp_path, [{"name": "x", "kind": "numeric", "transform": {"kind": "buckets", "count": 12}}])
    log = code_log(experiment, tmp_path / "codes")
    encoded = pl.read_parquet(sorted((prepare(experiment).path / "train").glob("*.parquet")))
    assert (of(log, "x") + 1 == encoded["x"].to_numpy()).all()


def test_a_number_that_is_nearly_always_the_same_is_told_apart(code: Code) -> None:
    wage = [0.0] * 990 + [5.0, 5.0, 5.0, 7.0, 7.0, 7.0, -1.0, -1.0, 9.0, 9.0]
    frame = pl.DataFrame({"wage": wage, "label": [0, 1] * 500})
    assert partition(of(code(frame, [{"name": "wage", "kind": "numeric"}]), "wage")) == partition(np.array(wage))
    bucketised = code(frame, [{"name": "wage", "kind": "numeric", "transform": {"kind": "buckets", "count": 4}}])
    assert set(of(bucketised, "wage").tolist()) == {1, 2}  # below 0 and not


def test_only_training_rows_are_read(tmp_path: Path) -> None:
    """Those that prepare trains on."""
    frame = pl.DataFrame({"x": [str(i) for i in range(1000)], "label": [0, 1] * 500})
    frame.write_parquet(tmp_path / "log.parquet")
    experiment = Experiment.model_validate(
        {
            "name": "split",
            "data": {"path": str(tmp_path / "log.parquet")},
            "label": "label",
            "split": {"valid": 0.2, "test": 0.3, "seed": 5},
            "features": [{"name": "x", "kind": "categorical"}],
            "output": str(tmp_path),
        }
    )
    log = code_log(experiment, tmp_path / "codes")
    assert log.rows == log.of_rows == 500
    train = pl.read_parquet(sorted((prepare(experiment).path / "train").glob("*.parquet")))
    assert log.label.tolist() == train["@label"].to_list()


def test_a_sample_is_of_so_many_rows_and_the_same_of_all_columns(code: Code) -> None:
    rows = 5000
    label = np.arange(rows) % 2
    log = code({"x": np.arange(rows).astype(str), "y": label.astype(str), "label": label}, most_rows=700, seed=3)
    assert (log.rows, log.of_rows) == (700, rows)
    assert partition(of(log, "y")) == partition(log.label)
    assert 0.4 < log.label.mean() < 0.6
    assert len(set(of(log, "x").tolist())) == 700
    other = code({"x": np.arange(rows).astype(str), "y": label.astype(str), "label": label}, most_rows=700, seed=4)
    assert other.label.tolist() != log.label.tolist()


def test_batches_go_by_the_time_of_the_config(tmp_path: Path) -> None:
    times = np.random.default_rng(0).permutation(200)
    pl.DataFrame({"x": [str(t) for t in times], "t": times, "label": [0, 1] * 100}).write_parquet(tmp_path / "log.parquet")
    experiment = Experiment.model_validate(
        {
            "name": "timed",
            "data": {"path": str(tmp_path / "log.parquet")},
            "label": "label",
            "split": {"by": "time", "column": "t", "valid": 50, "test": 50},
            "features": [{"name": "x", "kind": "categorical"}],
        }
    )
    log = code_log(experiment, tmp_path / "codes")
    assert log.batch.tolist() == [t // 10 for t in times.tolist() if t < 100]


def test_one_of_several_labels(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": ["a", "b"] * 4, "click": [0, 1] * 4, "buy": [0, 0, 0, 1] * 2, "label": [0] * 8})
    experiment = experiment_of(frame, tmp_path, [{"name": "x", "kind": "categorical"}]).model_copy(
        update={"label": {"c": "click", "b": "buy"}}
    )
    assert code_log(experiment, tmp_path / "first").label.tolist() == [0, 1] * 4
    assert code_log(experiment, tmp_path / "second", task="b").label.tolist() == [0, 0, 0, 1] * 2
    with pytest.raises(CtrkitError, match="no label 'bb'. Did you mean 'b'?"):
        code_log(experiment, tmp_path / "third", task="bb")
    with pytest.raises(CtrkitError, match="There is one label"):
        code_log(experiment.model_copy(update={"label": "click"}), tmp_path / "fourth", task="b")


def test_a_label_that_is_always_the_same_ranks_nothing(code: Code) -> None:
    with pytest.raises(CtrkitError, match="the label is 0 in all 4 training rows"):
        code({"x": ["a", "b", "a", "b"], "label": [0, 0, 0, 0]})
