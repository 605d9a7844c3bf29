"""Histories made by prepare: strictly earlier rows of the same user, the last so many, and nothing of the future."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError

LENGTH = 3
ITEMS: dict[str, dict[str, Any]] = {
    "text": {"name": "item", "kind": "categorical", "transform": {"min_count": 2}},
    "hashed text": {"name": "item", "kind": "categorical", "transform": {"kind": "hash", "buckets": 1000}},
    "int": {"name": "item", "kind": "categorical", "dtype": "int"},
}


def write_log(path: Path, rows: int = 400, ints: bool = False) -> pl.DataFrame:
    """In no order of time, with rows of the same time, without a user, without an item."""
    rng = np.random.default_rng(0)
    items = rng.integers(0, 12, rows)
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" if u else None for u in rng.integers(0, 9, rows)],
            "item": [None if i == 0 else int(i) if ints else f"i{i}" for i in items],
            "time": rng.integers(0, 90, rows),
            "click": rng.integers(0, 2, rows),
        }
    )
    frame.write_csv(path)
    return frame


def experiment(path: Path, item: dict[str, Any] = ITEMS["text"], where: str | None = "click", **overrides: Any) -> Experiment:
    history = {"by": "user", "time": "time", **({"where": where} if where else {})}
    content = {
        "name": "h",
        "data": {"path": str(path)},
        "label": "click",
        "split": {"by": "time", "column": "time", "valid": 0.1, "test": 0.2},
        "features": [{"name": "past", "kind": "sequence", "of": "item", "max_length": LENGTH, "history": history}, item],
        "output": str(path.parent),
    }
    return Experiment.model_validate(content | overrides)


def rows_of(dataset: Dataset) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(part) for split in ("train", "valid", "test") for part in dataset.parts(split)])


def by_hand(log: pl.DataFrame, ids: dict[Any, int], where: str | None) -> list[tuple[int, int, list[int]]]:
    """(time, item id, history) of every row, the plain way: one row after the other."""
    rows = list(log.iter_rows(named=True))
    result = []
    for row in rows:
        counts = [r for r in rows if r["user"] and r["user"] == row["user"] and r["item"] is not None]
        earlier = [r for r in counts if r["time"] < row["time"] and (where is None or (r["click"] if where == "click" else not r["click"]))]
        earlier.sort(key=lambda r: r["time"])  # stable: rows of one time stay as the log has them
        result.append((row["time"], ids[row["item"]], [ids[r["item"]] for r in earlier[-LENGTH:]]))
    return result


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.parametrize("where", ["click", None, "click = 0"])
def test_a_history_is_the_last_strictly_earlier_rows_of_its_user(tmp_path: Path, kind: str, where: str | None) -> None:
    log = write_log(tmp_path / "log.csv", ints=kind == "int")
    dataset = prepare(experiment(tmp_path / "log.csv", ITEMS[kind], where), tmp_path / "out")
    transform = dataset.transforms()["item"]
    raw = pl.Series("item", log["item"].unique().to_list())
    ids = dict(zip(raw, raw.to_frame().select(transform.to_polars()).to_series(), strict=True))
    expected = by_hand(log, ids, where)
    assert sum(len(history) == LENGTH for _, _, history in expected) > 100
    written = rows_of(dataset)
    assert sorted(zip(written["item"], written["past"].to_list(), strict=True)) == sorted((i, h) for _, i, h in expected)
    assert set(written.columns) == {"past", "item", "@label"}
    assert dataset.golden().columns == ["past", "item"], "as the features stand: export lays other rows below them"


def test_what_comes_later_changes_no_earlier_history(tmp_path: Path) -> None:
    row = {"name": "row", "kind": "categorical", "dtype": "int", "transform": {"kind": "hash", "buckets": 10**9}}
    features = [*experiment(tmp_path / "log.csv", ITEMS["hashed text"]).model_dump()["features"], row]
    log = write_log(tmp_path / "log.csv").with_row_index("row")
    later = pl.col("time") >= 60
    changed = log.with_columns(user=pl.when(later).then(pl.lit("u1")).otherwise("user"), click=pl.when(later).then(1).otherwise("click"))
    histories = []
    for content in (log, changed):
        content.write_csv(tmp_path / "log.csv")
        dataset = prepare(experiment(tmp_path / "log.csv", features=features), tmp_path / "out")
        encoded = log.select(pl.col("row").cast(pl.Int64)).select(dataset.transforms()["row"].to_polars()).to_series()
        by_row = dict(rows_of(dataset).select("row", "past").iter_rows())
        histories.append([by_row[i] for i in encoded])
    differ = np.array([first != second for first, second in zip(*histories, strict=True)])
    times = log["time"].to_numpy()
    assert not differ[times < 60].any() and differ[times > 60].any()


def write_parts(folder: Path, **parts: list[tuple[str, str, int]]) -> dict[str, str]:
    """``data`` of files of (user, item, time)."""
    for name, rows in parts.items():
        frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
        frame.with_columns(click=pl.Series([1, 0] * (len(rows) // 2))).write_csv(folder / f"{name}.csv")
    return {name: str(folder / f"{name}.csv") for name in parts}


TRAIN = [("u1", "b", 2), ("u1", "a", 1), ("u2", "a", 1), ("u2", "b", 3)]


def test_histories_cross_files_and_follow_time_not_the_order_of_rows(tmp_path: Path) -> None:
    data = write_parts(tmp_path, train=TRAIN, valid=[("u1", "a", 4), ("u2", "b", 3)], test=[("u1", "b", 6), ("u2", "a", 5)])
    dataset = prepare(experiment(tmp_path, ITEMS["hashed text"], None, data=data, split={}), tmp_path / "out")
    a, b = pl.DataFrame({"item": ["a", "b"]}).select(dataset.transforms()["item"].to_polars()).to_series()
    past = {name: pl.read_parquet(dataset.parts(name))["past"].to_list() for name in data}
    assert past == {"train": [[a], [], [], [a]], "valid": [[a, b], [a]], "test": [[a, b, a], [a, b, b]]}


@pytest.mark.parametrize(
    ("valid", "test", "problem"),
    [
        ((2, 4), (5, 6), "rows of data.train of clicks in data.valid"),
        ((3, 4), (2, 6), "rows of data.train of clicks in data.test"),
        (
            (3, 7),
            (6, 8),
            "rows of data.valid of clicks in data.test: data.valid has rows later than the first of data.test. Give files that",
        ),
    ],
)
def test_files_that_do_not_follow_one_another_in_time_are_refused(
    tmp_path: Path, valid: tuple[int, int], test: tuple[int, int], problem: str
) -> None:
    data = write_parts(
        tmp_path, train=TRAIN, **{name: [("u1", "a", t) for t in times] for name, times in (("valid", valid), ("test", test))}
    )
    with pytest.raises(CtrkitError, match=problem):
        prepare(experiment(tmp_path, ITEMS["hashed text"], None, data=data, split={}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_valid_files_the_latest_training_rows_are_held_out(tmp_path: Path) -> None:
    split = {"by": "time", "column": "time", "valid": 1}
    data = write_parts(tmp_path, train=TRAIN, test=[("u1", "b", 6), ("u2", "a", 5)])
    dataset = prepare(experiment(tmp_path, ITEMS["hashed text"], None, data=data, split=split), tmp_path / "out")
    assert dataset.rows == {"train": 3, "valid": 1, "test": 2}
    a, b = pl.DataFrame({"item": ["a", "b"]}).select(dataset.transforms()["item"].to_polars()).to_series()
    past = {name: pl.read_parquet(dataset.parts(name))["past"].to_list() for name in ("train", "valid", "test")}
    assert past == {"train": [[a], [], []], "valid": [[a]], "test": [[a, b], [a, b]]}

    data = write_parts(tmp_path, train=TRAIN, test=[("u1", "b", 6), ("u2", "a", 2)])
    with pytest.raises(CtrkitError, match="data.train has rows later than the first of data.test"):
        prepare(experiment(tmp_path, ITEMS["hashed text"], None, data=data, split=split), tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"split": {"by": "random"}}, "needs split.by: time"),
        ({"split": {"by": "order"}}, "needs split.by: time"),
        ({"data": {"train": "a.csv", "test": "b.csv"}, "split": {}}, "needs data.valid, or split.by: time"),
        ({"split": {"by": "time", "column": "day"}}, "features.past.history.time is 'time' and split.column is 'day'"),
        ({"data": {"train": "a.csv", "test": "b.csv"}, "split": {"by": "time", "column": "day"}}, "split.column is 'day'"),
    ],
)
def test_a_split_that_lets_training_rows_see_the_test_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path / "log.csv", **overrides)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"by": "usr", "time": "time"}, "no column 'usr'"),
        ({"by": "user", "time": "tim"}, "no column 'tim'"),
        ({"by": "user", "time": "item"}, r"features.past.history.time: 'item' is .* in row 1 of"),
        ({"by": "user", "time": "time", "where": "clik"}, "no column 'clik'"),
        ({"by": "user", "time": "time", "where": "time"}, r"features.past.history.where: 'time' is .* in row"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, history: dict[str, str], message: str) -> None:
    data = {part: str(tmp_path / f"{part}.csv") for part in ("train", "valid", "test")}
    for file in data.values():
        write_log(Path(file))
    past = {"name": "past", "kind": "sequence", "of": "item", "history": history}
    with pytest.raises(CtrkitError, match=message):
        prepare(experiment(tmp_path, data=data, split={}, features=[past, ITEMS["text"]]), tmp_path / "out")


def test_a_history_that_the_log_has_is_not_made_anew(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv").with_columns(past=pl.lit("i1")).write_csv(tmp_path / "log.csv")
    with pytest.raises(CtrkitError, match="the log has a column of that name"):
        prepare(experiment(tmp_path / "log.csv"), tmp_path / "out")
