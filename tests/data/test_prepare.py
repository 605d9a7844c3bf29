"""From a raw log to shards: the same ids as the transforms give, on the right rows, in bounded memory, whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from ctrkit.config import Experiment
from ctrkit.data import scratch, shards
from ctrkit.data.dataset import Dataset, dataset_dir, open_dataset
from ctrkit.data.prepare import check_columns, prepare
from ctrkit.data.shards import ShardWriters
from ctrkit.errors import CtrkitError
from ctrkit.transforms import canonicalise

FEATURES: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "transform": {"kind": "vocabulary", "min_count": 2}},
    {"name": "item", "kind": "categorical", "dtype": "int", "transform": {"kind": "vocabulary", "max_size": 50}},
    {"name": "site", "kind": "categorical", "transform": {"kind": "vocabulary", "oov_buckets": 4, "max_size": 5}},
    {"name": "ip", "kind": "categorical", "transform": {"kind": "hash", "buckets": 1000, "salt": 7}},
    {"name": "tags", "kind": "multi_valued", "max_length": 3},
    {"name": "age", "kind": "numeric", "transform": {"kind": "buckets", "count": 8}},
    {"name": "price", "kind": "numeric", "transform": {"kind": "log1p"}},
    {"name": "score", "kind": "numeric"},
]


def log(rows: int, seed: int = 0) -> pl.DataFrame:
    """A log with a column for each kind of feature and missing values in all of them."""
    random = np.random.default_rng(seed)

    def holes(values: list[Any], share: float = 0.1) -> list[Any]:
        return [None if hole else value for hole, value in zip(random.random(rows) < share, values, strict=True)]

    return pl.DataFrame(
        {
            "click": random.integers(0, 2, rows),
            "user": holes([f"u{i}" for i in random.zipf(1.5, rows) % 200]),
            "item": holes((random.zipf(1.4, rows) % 300).tolist()),
            "site": holes([f"s{i}" for i in random.integers(0, 30, rows)]),
            "ip": holes([f"10.0.{i}" for i in random.integers(0, 5000, rows)]),
            "tags": holes(["|".join(f"t{i}" for i in random.integers(0, 20, random.integers(0, 6))) for _ in range(rows)]),
            "age": holes(random.integers(10, 90, rows).tolist()),
            "price": holes(np.round(random.lognormal(2, 2, rows), 2).tolist()),
            "score": holes(np.round(random.normal(size=rows), 3).tolist()),
            "time": random.permutation(rows),
        }
    )


def experiment(path: str | Path, **settings: Any) -> Experiment:
    base = {"name": "test", "data": {"path": str(path)}, "label": "click", "features": FEATURES, "split": {"by": "order"}}
    return Experiment.model_validate(base | settings)


def csv_log(folder: Path, rows: int, seed: int = 0) -> Path:
    path = folder / f"log-{rows}-{seed}.csv"
    log(rows, seed).write_csv(path)
    return path


def rows_of(dataset: Dataset, split: str) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(part) for part in dataset.parts(split))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in pieces of a few hundred rows, so that a small log crosses all their borders."""
    monkeypatch.setattr("ctrkit.data.files.BLOCK_BYTES", 10_000)
    monkeypatch.setattr(scratch, "FILE_ROWS", 300)
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 128)
    monkeypatch.setattr(shards, "SHARD_ROWS", 512)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("by", ["order", "random", "time"])
def test_shards_hold_what_the_transforms_give_for_every_row(tmp_path: Path, by: str) -> None:
    frame = log(3000)
    path = csv_log(tmp_path, 3000)
    settings = experiment(path, split={"by": by, "column": "time" if by == "time" else None, "valid": 0.1, "test": 300}, group="user")
    dataset = prepare(settings, tmp_path / "out")
    assert dataset.rows == {"train": 2400, "valid": 300, "test": 300}

    numbered = canonicalise(frame, settings.features).with_columns(pl.col("click").cast(pl.Float32).alias("@label"))
    expected = dataset.transforms().encode(numbered.select([f["name"] for f in FEATURES] + ["@label"]))
    found = pl.concat(rows_of(dataset, split) for split in ("train", "valid", "test"))
    place = {"order": pl.int_range(3000, eager=True), "time": frame["time"], "random": _random_places(3000)}[by]
    split = pl.select(pl.when(place < 2400).then(0).when(place < 2700).then(1).otherwise(2)).to_series()
    order = pl.DataFrame({"split": split}).with_row_index().sort("split", maintain_order=True)["index"]  # rows keep their order in a split
    assert found.drop("@group").equals(expected[order])
    groups = pl.DataFrame({"user": frame["user"][order], "group": found["@group"]}).unique()
    assert groups["user"].n_unique() == groups["group"].n_unique() == groups.height


def _random_places(rows: int) -> pl.Series:
    """Rank of each row's random key."""
    from ctrkit.data.splits import random_keys

    return pl.Series(random_keys(0, rows, 0)).rank("ordinal").cast(pl.Int64) - 1


@pytest.mark.usefixtures("small_pieces")
def test_shards_are_cut_into_row_groups_and_parts_without_loss(tmp_path: Path) -> None:
    dataset = prepare(experiment(csv_log(tmp_path, 3000)), tmp_path / "out")
    files = [pq.ParquetFile(part) for part in dataset.parts("train")]
    assert [file.metadata.num_rows for file in files] == [512] * 4 + [352]
    groups = [file.metadata.row_group(i).num_rows for file in files for i in range(file.num_row_groups)]
    assert groups == [128] * 18 + [96]
    types = {name: str(pl.read_parquet_schema(dataset.parts("test")[0])[name]) for name in ("user", "tags", "age", "price", "@label")}
    assert types == {"user": "Int64", "tags": "List(Int64)", "age": "Int64", "price": "Float32", "@label": "Float32"}


def test_known_answer(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("y,u,x\n1,a,1\n0,b,3\n1,a,\n0,,3\n1,b,7\n0,a,9\n1,new,1\n0,b,\n")
    settings = experiment(
        path,
        label="y",
        split={"by": "order", "valid": 2, "test": 2},
        features=[{"name": "u", "kind": "categorical"}, {"name": "x", "kind": "numeric"}],
    )
    dataset = prepare(settings, tmp_path / "out")
    assert rows_of(dataset, "train").rows() == [
        (2, pytest.approx(-(2**0.5)), 1.0),
        (4, pytest.approx(0.5**0.5), 0.0),
        (2, pytest.approx(np.nan, nan_ok=True), 1.0),
        (3, pytest.approx(0.5**0.5), 0.0),
    ]
    assert rows_of(dataset, "valid")["u"].to_list() == [4, 2] and rows_of(dataset, "test")["u"].to_list() == [1, 4]
    assert dataset.inputs.model_dump() == {
        "id_fields": ({"name": "u", "rows": 5, "multi_valued": False, "pooling": "mean", "of": None, "length": 0},),
        "numeric_fields": ("x",),
        "tasks": (),
    }
    profile = dataset.profile
    assert profile["splits"]["train"] == {"rows": 4, "ctr": 0.5}
    u, x = profile["features"]["u"], profile["features"]["x"]
    assert u["cardinality"] == 3 and u["table_rows"] == 5
    assert u["missing"] == {"train": 0.25, "valid": 0.0, "test": 0.0}
    assert u["out_of_vocabulary"] == {"train": 0.0, "valid": 0.0, "test": 0.5}
    assert x["missing"] == {"train": 0.25, "valid": 0.0, "test": 0.5}
    assert (x["mean"], x["std"], x["min"], x["max"]) == (pytest.approx(7 / 3), pytest.approx((8 / 9) ** 0.5), 1.0, 3.0)
    assert x["quantiles"]["0.5"] == 3.0


def test_the_profile_counts_what_is_there(tmp_path: Path) -> None:
    frame = log(2000)
    dataset = prepare(experiment(csv_log(tmp_path, 2000)), tmp_path / "out")
    features = dataset.profile["features"]
    train, test = frame[:1600], frame[1800:]
    for name in ("user", "item", "ip", "age", "price"):
        assert features[name]["missing"]["train"] == pytest.approx(train[name].null_count() / 1600)
    known = train["user"].fill_null("").value_counts().filter(pl.col("count") >= 2)["user"]
    assert features["user"]["cardinality"] == len(known)
    assert features["user"]["out_of_vocabulary"]["test"] == pytest.approx(1 - test["user"].fill_null("").is_in(known.implode()).mean())
    bags = train["tags"].fill_null("").str.split("|").list.filter(pl.element() != "")
    assert features["tags"]["missing"]["train"] == pytest.approx((bags.list.len() == 0).mean())
    assert features["price"]["mean"] == pytest.approx(train["price"].mean())
    assert features["price"]["std"] == pytest.approx(train["price"].std(ddof=0))
    assert features["price"]["quantiles"]["0.75"] == pytest.approx(np.quantile(train["price"].drop_nulls(), 0.75))
    assert dataset.profile["splits"]["test"] == {"rows": 200, "ctr": pytest.approx(test["click"].mean())}


def test_golden_rows_are_canonical_and_encode_to_the_first_test_rows(tmp_path: Path) -> None:
    settings = experiment(csv_log(tmp_path, 1000), export={"golden_rows": 20}, group="user")
    dataset = prepare(settings, tmp_path / "out")
    golden = dataset.golden()
    assert golden.columns == [feature["name"] for feature in FEATURES] and golden.height == 20
    assert golden.equals(canonicalise(golden, settings.features))
    assert dataset.transforms().encode(golden).equals(rows_of(dataset, "test").head(20).select(golden.columns))


def test_csv_and_parquet_of_the_same_rows_give_the_same_dataset(tmp_path: Path) -> None:
    path = csv_log(tmp_path, 1000)
    log(1000).write_parquet(tmp_path / "log.parquet", row_group_size=100)
    random = {"by": "random", "seed": 5}
    first = prepare(experiment(path, split=random), tmp_path / "csv")
    second = prepare(experiment(tmp_path / "log.parquet", split=random), tmp_path / "parquet")
    for split in ("train", "valid", "test"):
        assert rows_of(first, split).equals(rows_of(second, split))


def test_explicit_files_and_a_held_out_validation_split(tmp_path: Path) -> None:
    train, test, valid = csv_log(tmp_path, 500), csv_log(tmp_path, 200, 1), csv_log(tmp_path, 100, 2)
    three = experiment("", data={"train": str(train), "valid": str(valid), "test": str(test)})
    assert prepare(three, tmp_path / "three").rows == {"train": 500, "valid": 100, "test": 200}
    two = experiment("", data={"train": str(train), "test": str(test)}, split={"valid": 0.2, "seed": 3})
    dataset = prepare(two, tmp_path / "two")
    assert dataset.rows == {"train": 400, "valid": 100, "test": 200}
    assert rows_of(dataset, "test")["@label"].to_list() == log(200, 1)["click"].to_list()
    other = prepare(two.model_copy(update={"split": two.split.model_copy(update={"seed": 4})}), tmp_path / "other")
    assert not rows_of(other, "valid").equals(rows_of(dataset, "valid"))


def test_large_ids_stay_distinct_from_their_neighbours(tmp_path: Path) -> None:
    values = [2**24, 2**24 + 1, 2**24 + 2, 2**31, 2**31 + 1, 2**53 + 1, 2**53 + 2, 2**62 + 1] * 5
    pl.DataFrame({"click": [0, 1] * 20, "id": values}).write_csv(tmp_path / "log.csv")
    for dtype in ("int", "string"):
        features = [{"name": "id", "kind": "categorical", "dtype": dtype}]
        dataset = prepare(
            experiment(tmp_path / "log.csv", features=features, split={"by": "order", "valid": 8, "test": 8}), tmp_path / dtype
        )
        assert rows_of(dataset, "train")["id"].n_unique() == 8
        assert rows_of(dataset, "test")["id"].to_list() == rows_of(dataset, "train")["id"].head(8).to_list()


def test_a_group_that_is_a_feature_too_is_the_same_in_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell such as "6 " makes a numeric column's block text."""
    monkeypatch.setattr("ctrkit.data.files.BLOCK_BYTES", 1000)
    path = tmp_path / "log.csv"
    cells = ["6 " if row == 900 else str(row % 5) for row in range(1000)]
    path.write_text("click,age\n" + "".join(f"{row % 2},{age}\n" for row, age in enumerate(cells)))
    settings = experiment(path, features=[{"name": "age", "kind": "numeric"}], group="age", split={"by": "order"})
    dataset = prepare(settings, tmp_path / "out")
    groups = [group for split in ("train", "valid", "test") for group in rows_of(dataset, split)["@group"]]
    assert len(set(groups)) == 6


# --- the dataset's place ---


def test_a_dataset_is_found_again_until_settings_or_files_change(tmp_path: Path) -> None:
    path = csv_log(tmp_path, 300)
    settings = experiment(path, output=str(tmp_path))
    assert open_dataset(settings) is None
    dataset = prepare(settings)
    assert dataset.path == dataset_dir(settings) and dataset.path.parent == tmp_path / "datasets"
    again = open_dataset(settings)
    assert again is not None and again.rows == dataset.rows and again.inputs == dataset.inputs
    assert again.summary.keys() >= {"dataset", "rows", "rows_per_s", "peak_mb", "seconds"}
    assert open_dataset(settings.model_copy(update={"label": "1 - click"})) is None
    trained_otherwise = settings.training.model_copy(update={"epochs": 1})
    assert open_dataset(settings.model_copy(update={"training": trained_otherwise})) is not None
    os.utime(path, ns=(1, 1))
    assert open_dataset(settings) is None


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="is not a prepared dataset.*Run ctrkit prepare"):
        Dataset.open(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(CtrkitError, match="is not a prepared dataset"):
        Dataset.open(tmp_path)


def test_preparing_again_replaces_the_dataset(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(experiment(csv_log(tmp_path, 300)), out)
    assert prepare(experiment(csv_log(tmp_path, 500)), out).rows["train"] == 400
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["out"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ValueError("anything")])
def test_interrupted_it_leaves_the_old_dataset_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    old = prepare(experiment(csv_log(tmp_path, 300)), tmp_path / "old")

    def stop(self: ShardWriters, split: str, frame: pl.DataFrame) -> None:
        raise problem

    monkeypatch.setattr(ShardWriters, "write", stop)
    for out in ("old", "new"):
        with pytest.raises(type(problem)):
            prepare(experiment(csv_log(tmp_path, 500)), tmp_path / out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["old"]
    assert Dataset.open(tmp_path / "old").rows == old.rows


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["read", "encode"])
def test_killed_it_leaves_no_dataset_and_the_next_run_cleans_up(tmp_path: Path, how: signal.Signals, stage: str) -> None:
    settings = experiment(csv_log(tmp_path, 500))
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    program = f"""
import os
from pathlib import Path
from ctrkit.config import Experiment
from ctrkit.data.prepare import prepare
settings = Experiment.model_validate_json(Path("settings.json").read_text())
prepare(settings, Path("out"), progress=lambda stage, done, total: stage == {stage!r} and os.kill(os.getpid(), {int(how)}))
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, capture_output=True)
    assert killed.returncode == -how
    assert not (tmp_path / "out").exists() and list(tmp_path.glob("out.partial-*"))
    assert prepare(settings, tmp_path / "out").rows["train"] == 400
    assert not list(tmp_path.glob("out.partial-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("rows", [1700, 20_000])
def test_a_full_disk(tmp_path: Path, small_disk: Path, rows: int) -> None:
    with pytest.raises(CtrkitError, match="the disk of '.*disk' is full. Free some space"):
        prepare(experiment(csv_log(tmp_path, rows)), small_disk / "out")
    assert not list(small_disk.iterdir())


def test_a_full_disk_while_writing_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ShardWriters, split: str, frame: pl.DataFrame) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriters, "write", full)
    with pytest.raises(CtrkitError, match="is full"):
        prepare(experiment(csv_log(tmp_path, 300)), tmp_path / "out")


# --- what is wrong with a log ---


@pytest.mark.parametrize(
    ("change", "settings", "problem"),
    [
        ({}, {"label": "clik"}, "no column 'clik' in .* Did you mean 'click'"),
        ({}, {"features": [{"name": "usr", "kind": "categorical"}]}, "no column 'usr' in .* Did you mean 'user'"),
        ({}, {"group": "usr"}, "no column 'usr'"),
        ({}, {"split": {"by": "time", "column": "when"}}, "no column 'when'"),
        ({}, {"label": "score > 0"}, "is made of the feature 'score'. Remove it from features"),
        ({}, {"data": {"path": "{path}", "separator": ";"}}, "reads as one column, 'click,user,.* looks like ','"),
        ({}, {"split": {"by": "order", "valid": 0.001, "test": 0.1}}, "no split may be empty"),
        ({"click": pl.lit(2)}, {}, "'click' is '2' in row 1 of"),
        ({"user": pl.lit(None, pl.String)}, {}, "feature 'user' has no value in the training split"),
        ({"price": pl.lit(None, pl.String)}, {}, "feature 'price' has no value in the training split"),
        ({"age": pl.lit("old")}, {}, "in '.*bad.csv': column 'age', row 1: 'old' is not a number"),
    ],
)
def test_bad_input_names_what_and_what_to_do(tmp_path: Path, change: dict[str, pl.Expr], settings: dict[str, Any], problem: str) -> None:
    path = tmp_path / "bad.csv"
    log(300).with_columns(**change).write_csv(path)
    if "data" in settings:
        settings = settings | {"data": settings["data"] | {"path": str(path)}}
    with pytest.raises(CtrkitError, match=problem):
        prepare(experiment(path, **settings), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


@pytest.mark.usefixtures("small_pieces")
def test_a_bad_cell_far_down_is_named_by_its_row(tmp_path: Path) -> None:
    row = 1234
    good = log(2000).with_row_index()
    for column, value, problem in (("score", "high", "row 1235: 'high' is not a number"), ("click", "7", "'click' is '7' in row 1,235 of")):
        bad = good.with_columns(pl.when(pl.col("index") == row).then(pl.lit(value)).otherwise(pl.col(column).cast(pl.String)).alias(column))
        bad.drop("index").write_csv(tmp_path / "bad.csv")
        with pytest.raises(CtrkitError, match=problem):
            prepare(experiment(tmp_path / "bad.csv"), tmp_path / "out")


def test_columns_are_checked_without_reading_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("click,user,time\nnot,a,label\n")
    features = [{"name": "user", "kind": "categorical"}]
    assert check_columns(experiment(path, features=features, group="time")) == ["click", "user", "time"]
    with pytest.raises(CtrkitError, match="no column 'usr'"):
        check_columns(experiment(path, features=[{"name": "usr", "kind": "categorical"}]))


def test_empty_explicit_files(tmp_path: Path) -> None:
    csv_log(tmp_path, 300)
    (tmp_path / "empty.csv").write_text(",".join(log(1).columns) + "\n")
    data = {"train": str(tmp_path / "log-300-0.csv"), "test": str(tmp_path / "empty.csv")}
    with pytest.raises(CtrkitError, match=r"data.test \('.*empty.csv'\) holds no rows. No split may be empty"):
        prepare(experiment("", data=data), tmp_path / "out")


# --- memory ---

MEASURE = """
import sys
from pathlib import Path
from ctrkit.config import Experiment
from ctrkit.data import files, scratch, shards
from ctrkit.data.prepare import prepare
files.BLOCK_BYTES, scratch.FILE_ROWS, shards.ROW_GROUP_ROWS = 1 << 20, 8192, 8192
print(prepare(Experiment.model_validate_json(sys.stdin.read()), Path(sys.argv[1])).summary["peak_mb"])
"""


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """Ten times the rows, 66 MB more of text: the peak rises by less than half of that."""
    features = [feature for feature in FEATURES if feature["name"] != "tags"]
    frame = log(20_000).drop("tags")
    body = frame.write_csv(include_header=False).encode()
    peaks = []
    for copies in (10, 100):
        path = tmp_path / "log.csv"
        with path.open("wb") as file:
            file.write((",".join(frame.columns) + "\n").encode())
            for _ in range(copies):
                file.write(body)
        settings = experiment(path, features=features, split={"by": "random"}).model_dump_json()
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "out")]
        peaks.append(float(subprocess.run(command, input=settings, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 0.5 * 90 * len(body) / 2**20, peaks
