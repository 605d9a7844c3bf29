"""The verbs on a retrieval experiment, one after the other."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

CONFIG = """
task: retrieval
name: shop
data: {path: FOLDER/log.csv}
items: {path: FOLDER/items.csv, on: item}
user: user
item: item
item_features:
  - {name: item, kind: categorical, dtype: int}
  - {name: colour, kind: categorical}
user_features:
  - {name: user, kind: categorical}
  - {name: recent, kind: sequence, of: item}
model: {name: two_tower, hidden: [8], width: 8, auxiliary: {kind: ssl}}
embedding: {dim: 8, init_std: 0.1}
training: {epochs: 1, batch_size: 32, threads: 1, monitor: mrr}
evaluation: {at: [3]}
output: FOLDER/out
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    rows = [(f"u{u}", (u + 3 * i) % 20) for u in range(30) for i in range(6)]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(folder / "log.csv")
    pl.DataFrame({"item": range(22), "colour": ["red", "blue"] * 11}).write_csv(folder / "items.csv")
    path = folder / "shop.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(folder)))
    return path


def test_every_verb(config: Path, ctrkit: Callable) -> None:
    assert ctrkit("validate", config).json["ok"]
    prepared = ctrkit("prepare", config).json
    assert prepared["rows"] == {"train": 120, "valid": 30, "test": 30} and prepared["items"] == 22
    trained = ctrkit("train", config).json
    assert set(trained["test"]) == {f"{m}@3" for m in ("recall", "ndcg", "hit", "coverage", "novelty", "popularity_bias")} | {"mrr"}
    run, repo = trained["run"], config.parent / "repo"
    evaluated = ctrkit("evaluate", run, "--split", "test").json
    assert evaluated["metrics"] == pytest.approx(trained["test"]) and evaluated["slices"]["warm_items"]["queries"] == 30
    missing = ctrkit("index", run, "--to", repo)
    assert missing.status == 2 and "Write it first: ctrkit export" in missing.json["error"]
    exported = ctrkit("export", run, "--to", repo).json
    assert exported["max_abs_diff"] <= 1e-5 and Path(exported["bundle"], "user_tower.onnx").is_file()
    indexed = ctrkit("index", run, "--to", repo).json
    assert indexed["items"] == 22 and Path(exported["bundle"], "index", "vectors.npy").is_file()


def test_a_method_by_name(config: Path, ctrkit: Callable) -> None:
    said = ctrkit("train", config, "--set", "model={name: popularity}")
    assert said.status == 0 and json.loads((Path(said.json["run"]) / "result.json").read_text())["model"] == "popularity"
    assert ctrkit("evaluate", said.json["run"]).status == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune",), "is of task: retrieval"),
        (("train", "--select", "ranking"), "Leave --select out"),
        (("train", "--set", "task=search"), "Input should be 'retrieval'"),
        (("validate", "--set", "model.name=two_twoer"), "Did you mean 'two_tower'"),
    ],
)
def test_what_does_not_go(config: Path, ctrkit: Callable, arguments: tuple[str, ...], said: str) -> None:
    verb, *rest = arguments
    refused = ctrkit(verb, config, *rest)
    assert refused.status == 2
    assert said in refused.json["error"]


def test_a_metric_that_is_not_defined_is_shown_again(config: Path, ctrkit: Callable) -> None:
    """Of one user with a single taste the target was never trained on: there is no bias towards popular items to tell."""
    pl.DataFrame({"user": ["u0"] * 6, "item": range(6)}).write_csv(config.parent / "one.csv")
    settings = ("--set", f"data.path={config.parent / 'one.csv'}", "--set", "model={name: popularity}", "--set", "name=one")
    first = ctrkit("train", config, *settings)
    assert first.status == 0 and first.json["test"]["popularity_bias@3"] is None
    again = ctrkit("train", config, *settings, "--run", first.json["run"], "--resume")
    assert again.status == 0 and again.json["test"] == first.json["test"]
