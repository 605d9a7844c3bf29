"""FGCNN under other classifiers, from a log to HTTP; and what the order of its features is to it."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs
from ctrkit.training.evaluate import predict_split
from ctrkit.training.trainer import train
from pipelines.export import export_run
from serving.app import create_app

ROWS, TEST_ROWS = 3000, 300
FIELDS = ("a", "b", "c", "d", "e")
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "autoint": {"layers": 1, "attention_dim": 8},
    "deepfm": {"hidden": [8]},
    "dcnv2": {"layers": 1, "hidden": [8]},
}


def experiment(folder: Path, classifier: str = "deepfm", settings: dict[str, Any] | None = None) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "neighbours",
            "data": {"path": str(folder / "log.csv")},
            "label": "click",
            "split": {"by": "order", "valid": 300, "test": TEST_ROWS},
            "features": [*({"name": name, "kind": "categorical"} for name in FIELDS), {"name": "price", "kind": "numeric"}],
            "model": {
                "name": "fgcnn",
                "channels": [3, 2],
                "kernel": 3,
                "new_features": 2,
                "classifier": classifier,
                "classifier_settings": settings or {},
            },
            "embedding": {"dim": 4, "learning_rate": 0.1},
            "training": {"batch_size": 100, "epochs": 6, "learning_rate": 0.01, "threads": 1},
            "output": str(folder),
        }
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks follow a and b together, and neither alone."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 4, ROWS) for name in FIELDS}
    click = rng.random(ROWS) < np.where((values["a"] + values["b"]) % 2, 0.9, 0.1)
    price = rng.normal(size=ROWS).round(3)
    pl.DataFrame({name: [f"{name}{v}" for v in column] for name, column in values.items()}).with_columns(
        price=price, click=click.astype(int)
    ).write_csv(folder / "log.csv")
    return folder


@pytest.fixture(scope="module")
def dataset(log: Path) -> Dataset:
    return prepare(experiment(log), log / "dataset")


@pytest.mark.parametrize("classifier", [pytest.param(name, marks=[] if name == "autoint" else pytest.mark.slow) for name in CLASSIFIERS])
def test_a_classifier_trains_exports_and_is_served(classifier: str, log: Path, dataset: Dataset, tmp_path: Path) -> None:
    chosen = experiment(log, classifier, CLASSIFIERS[classifier])
    result = train(chosen, dataset, run_dir=tmp_path / "run", console=Console(quiet=True))
    assert result.test["auc"] > 0.8
    assert export_run(result.run, tmp_path / "repo")["max_abs_diff"] <= 1e-5
    expected = predict_split(result.run, "test").probabilities
    rows = pl.read_csv(log / "log.csv").tail(TEST_ROWS).drop("click").to_dicts()
    with TestClient(create_app(tmp_path / "repo")) as client:
        while client.get("/readyz").status_code == 503:
            pass
        answer = client.post("/v1/models/neighbours:score", json={"rows": rows})
    assert answer.status_code == 200
    np.testing.assert_allclose(answer.json()["probabilities"], expected, atol=1e-5)


def mixed_difference(features: str, pair: str) -> float:
    """How far the new features' pre-activations over two fields are from a sum of one part a field; the same weights for every order."""
    torch.manual_seed(0)
    inputs = Inputs(id_fields=tuple(IdField(name=name, rows=3) for name in features), numeric_fields=())
    model: Any = build("fgcnn", inputs, 2, {"channels": [3], "kernel": 3, "pooling": 1, "classifier": "fm"}).double().eval()
    drawn = {name: torch.randn(2, 2, generator=torch.Generator().manual_seed(ord(name)), dtype=torch.float64) for name in features}

    def generated(moved: str) -> torch.Tensor:
        vectors = torch.stack([drawn[name][int(name in moved)] for name in features]).unsqueeze(0)
        return torch.atanh(model.generator(vectors) / model.generator.gain)

    first, second = pair
    with torch.no_grad():
        return (generated("") - generated(first) - generated(second) + generated(pair)).abs().max().item()


@pytest.mark.parametrize("features", ["abcdefgh", "ahbcdefg", "habcdefg"])
def test_what_is_generated_together_is_what_stands_together(features: str) -> None:
    """One layer of kernel 3 makes sums of parts that see three fields in a row: fields further apart are never in one part."""
    for first, second in ("ab", "ah", "dh", "ac", "bh"):
        apart = abs(features.index(first) - features.index(second))
        together = mixed_difference(features, first + second)
        assert together > 1e-3 if apart <= 2 else together < 1e-9, (features, first, second)
