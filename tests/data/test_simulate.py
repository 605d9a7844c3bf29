"""The simulated log: as described, repeatable, and its true probabilities are the best there is."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from ctrkit.config_file import load_config
from ctrkit.data import simulate as module
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.data.simulate import latest, simulate
from ctrkit.errors import CtrkitError

ROWS = 150_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(file) for file in simulate(ROWS, 3, tmp_path_factory.mktemp("log")).files)


def test_columns_are_as_described(log: pl.DataFrame) -> None:
    assert log.height == ROWS
    assert log["click"].mean() == pytest.approx(0.2, abs=0.01)
    assert log["timestamp"].is_sorted() and log["timestamp"].n_unique() > 0.99 * ROWS
    assert log["hour"].equals(log["timestamp"] // 3_600_000 % 24)
    assert log.null_count().row(0, named=True) == {name: pytest.approx(0) for name in log.columns if name not in ("age", "price")} | {
        "age": pytest.approx(0.2 * ROWS, rel=0.4),
        "price": pytest.approx(0.1 * ROWS, rel=0.6),
    }
    assert log["tags"].list.len().min() == 0 and log["tags"].list.len().max() == 5
    assert log["tags"].list.n_unique().equals(log["tags"].list.len())
    assert log["visits"].skew() > 3 and log["price"].skew() > 3  # pyright: ignore[reportOptionalOperand]


@pytest.mark.parametrize("column", ["user_id", "item_id", "brand", "site"])
def test_popularity_follows_a_power_law(log: pl.DataFrame, column: str) -> None:
    counts = log[column].value_counts(sort=True)["count"].to_numpy()
    assert counts[: len(counts) // 10].sum() > 0.3 * ROWS
    ranks = np.arange(1, len(counts) + 1)
    middle = slice(2, len(counts) // 2)
    assert -1.6 < np.polyfit(np.log(ranks[middle]), np.log(counts[middle]), 1)[0] < -0.4


def test_some_items_appear_only_late(log: pl.DataFrame) -> None:
    early = set(log["item_id"].head(ROWS // 2))
    late = log.tail(ROWS // 10)["item_id"]
    assert 0.02 < (~late.is_in(list(early))).mean() < 0.3  # pyright: ignore[reportOperatorIssue]


def test_the_true_probability_is_calibrated(log: pl.DataFrame) -> None:
    bins = log.with_columns(pl.col("true_probability").qcut(20).alias("bin")).group_by("bin")
    found = bins.agg(pl.col("click").mean(), pl.col("true_probability").mean(), pl.len().alias("rows"))
    error = (found["click"] - found["true_probability"]) / (found["true_probability"] / found["rows"]).sqrt()
    assert error.abs().max() < 4  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("seed", range(4))
def test_clicks_can_be_told_from_their_probability_at_an_auc_of_about_08(seed: int) -> None:
    block = module.World(100_000, seed).block(0, 1 << 16)
    assert 0.78 < roc_auc_score(block["click"], block["true_probability"]) < 0.87


def test_interactions_matter(log: pl.DataFrame) -> None:
    """One-hot logistic regression falls clearly behind the truth; with the pair interest x category it gets nearer."""
    log = log.with_columns(pl.concat_str("interest", "category").alias("pair"))
    first = ["interest", "country", "category", "brand", "site", "device", "position", "hour"]
    cut = ROWS - ROWS // 10
    aucs = {}
    for name, columns in (("linear", first), ("pair", [*first, "pair"])):
        encoder = OneHotEncoder(handle_unknown="ignore", dtype=np.float32)
        x = encoder.fit_transform(log.select(pl.col(columns).cast(pl.String)).to_numpy())
        model = LogisticRegression(solver="newton-cholesky").fit(x[:cut], log["click"][:cut])
        aucs[name] = roc_auc_score(log["click"][cut:], model.predict_proba(x[cut:])[:, 1])
    best = roc_auc_score(log["click"][cut:], log["true_probability"][cut:])
    assert aucs["linear"] + 0.02 < aucs["pair"] < best - 0.02


def test_the_same_seed_gives_the_same_log_however_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 3 * module._BLOCK_ROWS + 17
    one = simulate(rows, 5, tmp_path / "one")
    monkeypatch.setattr(module, "PART_ROWS", 2 * module._BLOCK_ROWS)
    two = simulate(rows, 5, tmp_path / "two")
    assert (len(one.files), len(two.files)) == (1, 2)
    first, second = (pl.concat(pl.read_parquet(file) for file in s.files) for s in (one, two))
    assert first.equals(second) and first["timestamp"].is_sorted()
    other = simulate(2000, 6, tmp_path / "other")
    assert not pl.read_parquet(other.files[0])["click"].equals(first["click"].head(2000))


def test_csv_holds_the_same_rows(tmp_path: Path) -> None:
    table = pl.read_parquet(simulate(2000, 1, tmp_path / "a").files)
    text = pl.read_csv(simulate(2000, 1, tmp_path / "b", file_format="csv").files[0], schema_overrides={"tags": pl.String})
    assert text["tags"].fill_null("").equals(table["tags"].list.join("|"))
    assert text.drop("tags").equals(table.drop("tags").with_columns(pl.col("click").cast(pl.Int64)))


def test_what_cannot_be_simulated(tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="too few"):
        simulate(10, 0, tmp_path)
    simulate(1000, 0, tmp_path)
    with pytest.raises(CtrkitError, match="already holds a log"):
        simulate(1000, 0, tmp_path)


def test_the_shipped_config_splits_by_time_and_the_latest_rows_are_its_test_split(tmp_path: Path) -> None:
    simulation = simulate(20_000, 0, tmp_path / "log")
    experiment = load_config("configs/simulated.yaml", [f"data.path={tmp_path}/log/part-*.parquet", f"output={tmp_path}"])
    dataset: Dataset = prepare(experiment)
    test = latest(simulation.files, dataset.rows["test"])
    labels = pl.concat(pl.read_parquet(part, columns=["@label"]) for part in dataset.parts("test"))["@label"]
    assert labels.cast(pl.Int8).to_list() == test["click"].to_list()
    assert dataset.rows["test"] == pytest.approx(2000, abs=5)
    assert log_loss(test["click"], test["true_probability"]) < log_loss(test["click"], np.full(test.height, 0.2))
