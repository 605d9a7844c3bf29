"""Several labels from a log to HTTP: one column, metric, output and score for each, whichever model predicts them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.bundle import MODEL_FILE, open_bundle
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset, open_dataset
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError
from ctrkit.models.registry import models
from ctrkit.training.evaluate import predict_split
from ctrkit.training.metrics import auc, evaluate_metrics
from ctrkit.training.run import RunResult, load_run, read_result
from ctrkit.training.trainer import train
from pipelines.export import export_run
from pipelines.prepare import print_profile
from pipelines.score import score
from pipelines.terminal import Terminal
from pipelines.train import print_metrics
from pipelines.validate import validate_experiment
from serving.app import create_app
from tests.training.test_processes import TWO, start

ROWS, TEST_ROWS = 4000, 800
LABEL = {"click": "shown_click", "buy": "paid > 0"}
MODELS = [model.name for model in models() if model.kind == "multi-task"]
METRICS = ("auc", "logloss", "ne", "calibration", "ece", "gauc")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks follow taste; purchases follow taste and price, and come after clicks, but for a few that came without."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, ROWS), rng.integers(0, 50, ROWS)
    taste = 1.5 * (rng.normal(size=40)[user] + rng.normal(size=50)[item])
    price = rng.normal(size=ROWS)
    click = rng.random(ROWS) < 1 / (1 + np.exp(-taste))
    bought = rng.random(ROWS) < 1 / (1 + np.exp(1 - taste + 1.5 * price))
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": item,
            "price": price.round(4),
            "shown_click": click.astype(int),
            "paid": np.where(bought & (click | (rng.random(ROWS) < 0.1)), 9.5, 0.0),
        }
    )
    path = tmp_path_factory.mktemp("log") / "log.csv"
    frame.write_csv(path)
    return path


def make_experiment(
    log: Path, output: Path, model: str = "mmoe", label: Any = LABEL, settings: dict[str, Any] | None = None, **training: Any
) -> Experiment:
    small = {"mmoe": {"experts": 3}, "ple": {"shared_experts": 1, "task_experts": 1}, "esmm": {"hidden": [32]}}.get(model, {"hidden": [32]})
    return Experiment.model_validate(
        {
            "name": "shop",
            "data": {"path": str(log)},
            "label": label,
            "group": "user",
            "split": {"by": "order", "valid": 800, "test": TEST_ROWS},
            "features": [
                {"name": "user", "kind": "categorical"},
                {"name": "item", "kind": "categorical", "dtype": "int"},
                {"name": "price", "kind": "numeric"},
            ],
            "model": {"name": model, **small, **(settings or {})},
            "embedding": {"dim": 4, "learning_rate": 0.1},
            "training": {"batch_size": 256, "epochs": 3, "learning_rate": 5e-3, "threads": 1, **training},
            "output": str(output),
        }
    )


@pytest.fixture(scope="module")
def dataset(log: Path) -> Dataset:
    return prepare(make_experiment(log, log.parent))


def run(experiment: Experiment, dataset: Dataset, **options: Any) -> RunResult:
    return train(experiment, dataset, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def trained(log: Path, dataset: Dataset) -> Callable[[str], RunResult]:
    """``trained("mmoe")``: trained once."""
    done: dict[str, RunResult] = {}

    def get(model: str) -> RunResult:
        if model not in done:
            done[model] = run(make_experiment(log, log.parent, model), dataset)
        return done[model]

    return get


# --- the dataset


def test_a_column_a_label(log: Path, dataset: Dataset) -> None:
    assert dataset.label == LABEL and dataset.inputs.tasks == ("click", "buy")
    shards = pl.concat([pl.read_parquet(part) for split in ("train", "valid", "test") for part in dataset.parts(split)])
    raw = pl.read_csv(log)
    assert shards["@label:click"].to_list() == raw["shown_click"].to_list()
    assert shards["@label:buy"].to_list() == (raw["paid"] > 0).cast(pl.Float32).to_list()
    assert "@label" not in shards.columns
    test = dataset.profile["splits"]["test"]
    means = raw.tail(TEST_ROWS).select(pl.col("shown_click").mean(), (pl.col("paid") > 0).mean()).row(0)
    assert test["rates"] == pytest.approx({"click": means[0], "buy": means[1]}) and test["ctr"] == pytest.approx(means[0])


def test_the_order_of_the_labels_is_part_of_the_dataset(log: Path, dataset: Dataset) -> None:
    assert open_dataset(make_experiment(log, log.parent)) is not None
    assert open_dataset(make_experiment(log, log.parent, label=dict(reversed(LABEL.items())))) is None


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ({"click": "shown_click", "buy": "payed"}, "no column 'payed' .* Did you mean 'paid'"),
        ({"click": "shown_click", "buy": "paid"}, "label.buy: 'paid' is '9.5' in row .* It must be 0 or 1"),
        ({"click": "shown_click", "dear": "price > 1"}, "the label 'price > 1' is made of the feature 'price'"),
    ],
)
def test_a_label_that_is_none_is_named(log: Path, tmp_path: Path, label: dict[str, str], problem: str) -> None:
    with pytest.raises(CtrkitError, match=problem):
        prepare(make_experiment(log, tmp_path, label=label))


# --- training


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_both(model: str, trained: Callable[[str], RunResult]) -> None:
    result = trained(model)
    assert result.test["click/auc"] > 0.8 and result.test["buy/auc"] > 0.8
    assert result.test["click/ne"] < 0.9 and result.test["buy/ne"] < 0.9


def test_metrics_are_those_of_each_label(log: Path, dataset: Dataset, trained: Callable[[str], RunResult]) -> None:
    result = trained("ple")
    assert set(result.test) == {*METRICS, *(f"{task}/{name}" for task in LABEL for name in METRICS)}
    assert all(result.test[name] == result.test[f"click/{name}"] for name in METRICS), "without a name: the main label"
    predictions = predict_split(result.run, "test")
    raw = pl.read_csv(log).tail(TEST_ROWS)
    np.testing.assert_array_equal(predictions.labels, raw.select("shown_click", pl.col("paid") > 0).to_numpy())
    for number, task in enumerate(LABEL):
        alone = evaluate_metrics(predictions.labels[:, number], predictions.probabilities[:, number], predictions.groups)
        assert {name: result.test[f"{task}/{name}"] for name in METRICS} == pytest.approx(alone, abs=1e-5)
    assert read_result(result.run) == result
    valid = [r for r in map(json.loads, (result.run / "metrics.jsonl").read_text().splitlines()) if r["event"] == "valid"]
    assert all({"auc", "click/auc", "buy/auc", "buy/logloss"} <= record.keys() for record in valid)
    best = max(valid, key=lambda r: r["click/auc"] - r["click/logloss"])
    assert best["epoch"] == result.best_epoch, "the main label decides what is best"
    for picture in ("learning_curve.png", "calibration.png"):
        assert (result.run / picture).read_bytes().startswith(b"\x89PNG")


def test_people_see_a_row_a_label(trained: Callable[[str], RunResult], capsys: pytest.CaptureFixture) -> None:
    print_metrics({"test": trained("mmoe").test}, Terminal(as_json=False))
    shown = capsys.readouterr().out
    assert "test click" in shown and "test buy" in shown and f"{trained('mmoe').test['buy/auc']:.5f}" in shown


def test_conversions_without_a_click_count_as_none_for_esmm(log: Path, trained: Callable[[str], RunResult]) -> None:
    raw = pl.read_csv(log).tail(TEST_ROWS)
    assert raw.filter((pl.col("paid") > 0) & (pl.col("shown_click") == 0)).height > 5, "the log has such rows"
    predictions = predict_split(trained("esmm").run, "test")
    both = ((raw["paid"] > 0) & (raw["shown_click"] == 1)).to_numpy()
    np.testing.assert_array_equal(predictions.labels[:, 1], both)
    assert trained("esmm").test["buy/auc"] == pytest.approx(auc(both, predictions.probabilities[:, 1]), abs=1e-5)
    assert (predictions.probabilities[:, 1] < predictions.probabilities[:, 0]).all()


def test_a_label_of_weight_zero_is_not_learned(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    """PLE without shared experts: the labels share the tables alone."""
    weighted = partial(make_experiment, log, tmp_path, "ple", settings={"shared_experts": 0})
    whole, click = (run(weighted(task_weights=weights), dataset) for weights in ({}, {"buy": 0.0}))
    assert click.test["click/auc"] > 0.8 and abs(click.test["buy/ne"] - 1) > 0.02
    assert whole.test["buy/ne"] < click.test["buy/ne"] - 0.1
    untrained = load_run(click.run)[2]["dense_arch"]
    biases = {name: tensor for name, tensor in untrained.items() if name.startswith("towers.") and name.endswith("bias")}
    assert all((tensor == 0).all() == name.startswith("towers.1.") for name, tensor in biases.items()), "the second tower is as it was made"


def test_equal_weights_are_no_weights(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    runs = [run(make_experiment(log, tmp_path, task_weights=w, epochs=1), dataset) for w in ({}, {"buy": 1.0, "click": 1.0})]
    ours, theirs = (load_run(r.run)[2] for r in runs)
    assert all(torch.equal(ours["dense_arch"][name], theirs["dense_arch"][name]) for name in ours["dense_arch"])


def test_two_processes_learn_what_one_learns(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = make_experiment(log, tmp_path / "two", task_weights={"buy": 2.0}, epochs=1)
    finished = start(settings, dataset, launcher=TWO)
    assert finished.returncode == 0, finished.stderr
    two, one = read_result(tmp_path / "two" / "runs" / "shop-mmoe-1"), run(settings, dataset, run_dir=tmp_path / "one")
    assert two is not None
    for name in ("click/auc", "click/logloss", "buy/auc", "buy/logloss"):
        assert two.test[name] == pytest.approx(one.test[name], abs=2e-3), name


@pytest.mark.parametrize(
    ("model", "label", "problem"),
    [
        ("dnn", LABEL, r"model 'dnn' predicts one label, and there are 2: click, buy. .* use a model for several: esmm, mmoe, ple"),
        ("mmoe", "shown_click", r"model 'mmoe' predicts several labels, and there is one. Name them: label: \{click: .*the main one first"),
        ("esmm", {**LABEL, "dear": "paid > 9"}, r"model 'esmm' predicts a click and a conversion after it, and there are 3 labels"),
    ],
)
def test_model_and_labels_must_fit(log: Path, tmp_path: Path, model: str, label: Any, problem: str) -> None:
    experiment = make_experiment(log, tmp_path, model, label)
    with pytest.raises(CtrkitError, match=problem):
        run(experiment, prepare(experiment))
    assert not (tmp_path / "runs").exists()


# --- export, score, serve


@pytest.mark.parametrize("model", [m if m == "ple" else pytest.param(m, marks=pytest.mark.slow) for m in MODELS])
def test_every_step_predicts_the_same(model: str, log: Path, trained: Callable[[str], RunResult], tmp_path: Path) -> None:
    result = trained(model)
    expected = predict_split(result.run, "test").probabilities

    exported = export_run(result.run, tmp_path / "repo")
    assert exported["max_abs_diff"] <= 1e-5
    bundle = open_bundle(exported["bundle"])
    graph = onnx.load(bundle.path / MODEL_FILE).graph
    assert [output.name for output in graph.output] == list(bundle.tasks) == ["click", "buy"]
    assert bundle.manifest.label == LABEL and bundle.manifest.metrics["test"]["buy/auc"] == result.test["buy/auc"]
    config = (bundle.path.parent / "config.pbtxt").read_text()
    assert all(f'{{ name: "{task}", data_type: TYPE_FP32, dims: [ -1 ] }}' in config for task in LABEL) and "probability" not in config
    golden = bundle.golden()
    scores = bundle.score(golden.rows)
    assert scores.shape == (len(golden.rows), 2)
    assert golden.probabilities == {"click": scores[:, 0].tolist(), "buy": scores[:, 1].tolist()}

    score(bundle.path, log, tmp_path / "scored.parquet", keep=["paid"])
    scored = pl.read_parquet(tmp_path / "scored.parquet")
    assert scored.columns == ["paid", "click", "buy"]
    np.testing.assert_allclose(scored.select("click", "buy").to_numpy()[-TEST_ROWS:], expected, atol=1e-5)
    with pytest.raises(CtrkitError, match="'buy' cannot be kept"):
        score(bundle.path, log, tmp_path / "again.parquet", keep=["buy"])

    rows = pl.read_csv(log).select("user", "item", "price").tail(20).to_dicts()
    with TestClient(create_app(tmp_path / "repo")) as client:
        while client.get("/readyz").status_code == 503:
            pass
        served = client.post("/v1/models/shop:score", json={"rows": rows}).json()["probabilities"]
        ranked = {
            task: client.post("/v1/models/shop:rank", json={"candidates": rows, "task": task}).json()["candidates"]
            for task in (None, "click", "buy")
        }
        wrong = client.post("/v1/models/shop:rank", json={"candidates": rows, "task": "by"})
        about = client.get("/v1/models/shop").json()
    assert list(served) == ["click", "buy"] and about["label"] == LABEL
    np.testing.assert_allclose(np.stack([served["click"], served["buy"]], axis=1), expected[-20:], atol=1e-5)
    assert ranked[None] == ranked["click"] != ranked["buy"]
    for number, task in enumerate(LABEL):
        order = [entry["index"] for entry in ranked[task]]
        assert order == np.argsort(-np.array(served[task]), kind="stable").tolist()
        np.testing.assert_allclose([entry["score"] for entry in ranked[task]], expected[-20:][order, number], atol=1e-5)
    assert wrong.status_code == 422 and wrong.json()["detail"][0]["loc"] == ["body", "task"]
    assert "unknown task 'by'. Did you mean 'buy'?" in wrong.json()["detail"][0]["msg"]


# --- what people are told before and after


def test_validate_says_what_the_model_cannot_predict(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    screen = Terminal(as_json=False)
    assert validate_experiment(make_experiment(log, tmp_path), screen)["unused"] == []
    assert "labels click, buy, model mmoe" in capsys.readouterr().out
    with pytest.raises(CtrkitError, match="no column 'paid_'.*'dnn' predicts one label"):
        validate_experiment(make_experiment(log, tmp_path, "dnn", {**LABEL, "dear": "paid_ > 9"}), screen)


def test_the_profile_shows_a_rate_a_label(dataset: Dataset, capsys: pytest.CaptureFixture) -> None:
    print_profile(dataset, Terminal(as_json=False))
    shown, rates = capsys.readouterr().out, dataset.profile["splits"]["valid"]["rates"]
    for task in LABEL:
        assert f"{task} rate: train" in shown and f"valid {rates[task]:.2%}" in shown


@pytest.mark.parametrize(("method", "model"), [("robe", "mmoe"), pytest.param("pep", "esmm", marks=pytest.mark.slow)])
def test_compressed_embeddings_of_several_labels(method: str, model: str, log: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Shared tables are compressed once; a search ends by all labels' loss, and each has its output."""
    plain = make_experiment(log, tmp_path, model)
    choice = {"dim": 8, "learning_rate": 0.1, "compression": {"method": method, "budget": 0.5}}
    experiment = Experiment.model_validate({**plain.model_dump(), "embedding": choice})
    result = run(experiment, dataset)
    assert 0 < result.embedding_bytes <= 0.5 * 8 * 4 * sum(field.rows for field in dataset.inputs.id_fields)
    assert predict_split(result.run, "test").metrics() == pytest.approx(result.test, abs=1e-6)
    bundle = open_bundle(Path(export_run(result.run, tmp_path / "models")["bundle"]))
    scores = bundle.predict(bundle.feed({"user": ["u1"], "item": [3], "price": [0.5]}))
    assert bundle.tasks == ("click", "buy") and scores.shape == (1, 2)
