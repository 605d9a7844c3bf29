"""``ctrkit rank`` from a config to files, and ``ctrkit train --select`` from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctrkit.config import Experiment
from ctrkit.config_file import load_config
from ctrkit.selection.select import select_features

ROWS = 4000


@pytest.fixture
def frame() -> pl.DataFrame:
    random = np.random.default_rng(0)
    item, site, price = random.integers(0, 300, ROWS), random.integers(0, 5, ROWS), random.lognormal(1, 1, ROWS)
    logits = random.normal(0, 1.2, 300)[item] + random.normal(0, 0.6, 5)[site] - np.log(price) / 2
    return pl.DataFrame(
        {
            "item": [f"i{value}" for value in item],
            "shop": [f"s{value // 10}" for value in item],
            "site": site,
            "price": price.round(2),
            "noise": random.integers(0, 2000, ROWS),
            "click": (random.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(int),
        }
    )


CONFIG = """
name: shop
data: {train: FOLDER/train.csv, valid: FOLDER/valid.csv, test: FOLDER/test.csv}
label: click
features:
  - {name: [item, shop, site, noise], kind: categorical}
  - {name: price, kind: numeric, transform: {kind: buckets, count: 8}}
model: {name: lr}
embedding: {dim: 4}
training: {epochs: 1, threads: 1}
output: FOLDER/out
"""


@pytest.fixture
def config(tmp_path: Path, frame: pl.DataFrame) -> Path:
    frame.write_csv(tmp_path / "train.csv")
    for name in ("valid", "test"):
        frame.head(400).write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "shop.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return tmp_path / "shop.yaml"


def test_from_config_to_files_to_a_training(config: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("rank", config, "--order", 3)
    assert said.status == 0, said.stderr
    folder = config.parent / "out/rankings/shop"
    assert Path(said.json["ranking"]) == folder / "ranking.parquet"
    table = pl.read_parquet(folder / "ranking.parquet")
    assert table["feature"].to_list()[0] == "item" and table["feature"].to_list()[-1] == "noise"
    assert table["score"].is_sorted(descending=True)
    assert pl.read_csv(folder / "ranking.csv")["feature"].equals(table["feature"])
    assert [row["feature"] for row in json.loads((folder / "ranking.json").read_text())] == table["feature"].to_list()
    assert said.json["recommended"] == ["item", "price", "shop", "site"]
    assert dict(table.filter(pl.col("told_by").is_not_null()).select("feature", "told_by").iter_rows()) == {"shop": "item"}
    assert not any(row["redundant_with"] for row in said.json["features"])
    pairs = pl.read_parquet(folder / "pairs.parquet")
    assert pairs.height == said.json["pairs"] == 10 and {"first", "second", "similarity", "synergy"} <= set(pairs.columns)
    assert pl.read_parquet(folder / "crosses.parquet").height == 10
    assert set(pl.read_parquet(folder / "transformations.parquet")["feature"]) == {"price"}
    for picture in ("ranking", "chance", "similarity", "dendrogram"):
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.md").read_text()
    assert "noise" in report and "Numbers as values" in report and "| item | shop | 100.0% |" in report
    assert (folder / "report.html").read_text().count("data:image/png") == 4
    assert sorted(path.name for path in folder.parent.iterdir()) == ["shop"]

    trained = ctrkit("train", config, "--select", folder, "--top", 2)
    assert trained.status == 0, trained.stderr
    kept = load_config(Path(trained.json["run"]) / "config.yaml").features
    assert {feature.name for feature in kept} == set(table["feature"].to_list()[:2])


def test_the_features_block_is_one(config: Path, ctrkit: Callable[..., Any]) -> None:
    ctrkit("rank", config, "--no-pairs")
    block = (config.parent / "out/rankings/shop/features.yaml").read_text()
    original = config.read_text()
    head, tail = original.split("features:\n")[0], original[original.index("model:") :]
    config.write_text(head + block + tail)
    features = load_config(config).features
    assert [feature.name for feature in features] == ["item", "price", "shop", "site"]
    assert features[1].transform.model_dump() == {"kind": "buckets", "count": 8}


def ranked(ctrkit: Callable[..., Any], config: Path, *options: object) -> bytes:
    said = ctrkit("rank", config, *options)
    assert said.status == 0, said.stderr
    return Path(said.json["ranking"]).with_suffix(".csv").read_bytes()


def test_rows_in_another_order_and_values_by_other_names_give_the_same_file(
    config: Path, frame: pl.DataFrame, ctrkit: Callable[..., Any]
) -> None:
    batchwise = ("drift", "fresh", "faults")

    def files() -> list[pl.DataFrame]:
        folder = config.parent / "out/rankings/shop"
        pairs, crosses = (pl.read_parquet(folder / f"{name}.parquet") for name in ("pairs", "crosses"))
        return [pl.read_parquet(folder / "ranking.parquet").drop(batchwise), pairs, crosses]

    ranked(ctrkit, config, "--order", 3)
    first = files()
    renamed = frame.with_columns(pl.col("item").str.reverse(), pl.col("noise") * -7, shop="x" + pl.col("shop"))
    renamed.sample(fraction=1, shuffle=True, seed=1).write_csv(config.parent / "train.csv")
    ranked(ctrkit, config, "--order", 3)
    for before, after in zip(first, files(), strict=True):
        assert before.equals(after)


def test_a_sample_comes_near_to_all_rows(config: Path, frame: pl.DataFrame, ctrkit: Callable[..., Any]) -> None:
    pl.concat([frame] * 2).write_csv(config.parent / "train.csv")
    ctrkit("rank", config, "--by", "mi", "--no-pairs")
    table = pl.read_parquet(config.parent / "out/rankings/shop/ranking.parquet").sort("feature")
    said = ctrkit("rank", config, "--rows", 5000, "--no-pairs", "--out", config.parent / "sampled")
    assert (said.json["rows"], said.json["of_rows"]) == (5000, 8000)
    sampled = pl.read_parquet(config.parent / "sampled/ranking.parquet").sort("feature")
    cheap = table.filter(pl.col("values") < 40)["feature"].to_list()
    assert cheap == ["price", "shop", "site"]
    for name in cheap:
        near, whole = (t.filter(pl.col("feature") == name)["information"].item() for t in (sampled, table))
        assert near == pytest.approx(whole, rel=0.35), name


def test_a_leak_is_named(config: Path, frame: pl.DataFrame, ctrkit: Callable[..., Any]) -> None:
    frame.with_columns(noise=pl.when(pl.col("click") == 1).then(pl.lit("bought")).otherwise(pl.lit("left"))).write_csv(
        config.parent / "train.csv"
    )
    said = ctrkit("rank", config)
    (leak,) = [anomaly for anomaly in said.json["anomalies"] if anomaly["fault"] == "leakage"]
    assert leak["feature"] == "noise"
    assert said.json["features"][0]["feature"] == "noise" and "noise" not in said.json["recommended"]
    assert "leakage" in (config.parent / "out/rankings/shop/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "informaton"], "no measure 'informaton'. Did you mean 'information'?"),
        (["--by", "3mr", "--no-pairs"], "3mr goes by pairs"),
        (["--set", "label=clck"], "no column 'clck'"),
        (["--set", "label=clck >= 1"], "no column 'clck'"),
        (["--set", "features.item.name=itm"], "no column 'itm' in"),
        (["--task", "buy"], "has no label 'buy'. There is one label"),
        (["--set", "data.train=EMPTY"], "is empty"),
        (["--set", "data.train=HEADER"], "holds no rows"),
        (["--set", "data.train=nowhere.csv"], "no file at 'nowhere.csv'"),
        (["--out", "FILE/below"], "cannot be made: Not a directory"),
        (["--no-pairs", "--order", "3"], "crosses grow out of pairs"),
    ],
)
def test_what_cannot_be_ranked_is_refused(config: Path, ctrkit: Callable[..., Any], options: list[str], message: str) -> None:
    folder = config.parent
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("item,shop,site,price,noise,click\n")
    (folder / "file").write_text("")
    places = {"EMPTY": folder / "empty.csv", "HEADER": folder / "header.csv", "FILE": folder / "file"}
    for word, path in places.items():
        options = [option.replace(word, str(path)) for option in options]
    said = ctrkit("rank", config, *options)
    assert said.status == 2
    assert message in said.json["error"]
    assert not list(folder.rglob("*partial*"))
    assert not (folder / "out").exists()


def test_a_ranking_may_go_where_the_command_is_run(
    config: Path, tmp_path: Path, ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/mine").touch()
    monkeypatch.chdir(tmp_path / "here")
    left = tmp_path / "here.partial-of-a-killed-one"
    left.mkdir()
    (left / ".lock").touch()
    said = ctrkit("rank", config, "--no-pairs", "--out", ".")
    assert said.status == 0, said.stderr
    assert {"mine", "ranking.parquet", "report.html"} <= {path.name for path in (tmp_path / "here").iterdir()}
    assert not list(tmp_path.glob("*partial*"))


def test_top_without_a_ranking_is_refused(config: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("train", config, "--top", 1)
    assert said.status == 2 and "no ranking is named. Name one with --select" in said.json["error"]


def test_a_ranking_of_another_config_is_refused(config: Path, ctrkit: Callable[..., Any]) -> None:
    ranking = config.parent / "ranking.csv"
    ranking.write_text("feature,score\nitem,1\nshoop,0.5\n")
    said = ctrkit("train", config, "--select", ranking)
    assert said.status == 2 and "names 'shoop', which is no feature of 'shop'. Did you mean 'shop'?" in said.json["error"]


def test_every_kind_of_feature_is_ranked_and_selected(journey: Any, tmp_path: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("rank", journey.config, "--out", tmp_path / "ranking")
    assert said.status == 0, said.stderr
    experiment: Experiment = load_config(journey.config)
    assert {row["feature"] for row in said.json["features"]} == {feature.name for feature in experiment.features}
    assert len(select_features(experiment, tmp_path / "ranking", 3).features) == 3
