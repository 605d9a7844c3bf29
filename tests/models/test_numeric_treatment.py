"""``embedding.numeric`` from the config to the bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctrkit.config import AutoDis, Embedding, Experiment, Scale
from ctrkit.config_file import load_config, to_yaml
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError
from ctrkit.training.evaluate import predict_split
from ctrkit.training.trainer import train
from pipelines.export import export_run


def experiment(folder: Path, model: dict[str, Any], **embedding: Any) -> Experiment:
    """A log whose clicks hang on a number's being near zero, of two other columns and on two numbers."""
    random = np.random.default_rng(0)
    rows = 1500
    price = random.normal(size=rows)
    missing = random.random(rows) < 0.1
    click = random.random(rows) < np.where(np.abs(price) < 0.5, 0.9, 0.1)
    pl.DataFrame(
        {
            "price": np.where(missing, np.nan, price),
            "age": random.normal(size=rows),
            "user": random.integers(0, 30, rows).astype(str),
            "item": random.integers(0, 20, rows).astype(str),
            "click": click.astype(np.int64),
        }
    ).with_columns(pl.col("price").fill_nan(None)).write_parquet(folder / "log.parquet")
    return Experiment.model_validate(
        {
            "name": "numbers",
            "data": {"path": str(folder / "log.parquet")},
            "label": "click",
            "split": {"valid": 0.2, "test": 0.2},
            "features": [
                {"name": ["price", "age"], "kind": "numeric"},
                {"name": ["user", "item"], "kind": "categorical"},
            ],
            "model": model,
            "embedding": {"dim": 4, **embedding},
            "training": {"batch_size": 100, "epochs": 8, "learning_rate": 0.02, "threads": 1},
            "output": str(folder),
        }
    )


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"name": "lr"}, marks=pytest.mark.slow),
        {
            "name": "fgcnn",
            "channels": [3, 2],
            "kernel": 3,
            "classifier": "widedeep",
            "classifier_settings": {"hidden": [8], "batch_norm": True},
        },
        pytest.param({"name": "ffm"}, marks=pytest.mark.slow),
    ],
    ids=lambda model: model["name"],
)
def test_a_model_with_autodis_trains_reloads_and_exports(model: dict[str, Any], tmp_path: Path) -> None:
    chosen = experiment(tmp_path, model, numeric={"kind": "autodis", "meta_embeddings": 8})
    result = train(chosen, prepare(chosen, tmp_path / "dataset"), console=Console(quiet=True))
    assert result.test is not None
    assert result.test["auc"] > 0.8
    assert predict_split(result.run, "test").metrics()["auc"] == pytest.approx(result.test["auc"], abs=1e-6)
    assert export_run(result.run, tmp_path / "repo")["max_abs_diff"] <= 1e-5


def test_logistic_regression_on_scaled_numbers_cannot_learn_that(tmp_path: Path) -> None:
    chosen = experiment(tmp_path, {"name": "lr"})
    result = train(chosen, prepare(chosen, tmp_path / "dataset"), console=Console(quiet=True))
    assert result.test is not None
    assert result.test["auc"] < 0.65


def test_it_is_a_word_or_a_group_of_settings(tmp_path: Path) -> None:
    assert Embedding().numeric == Scale()
    assert Embedding.model_validate({"numeric": "autodis"}).numeric == AutoDis()
    chosen = experiment(tmp_path, {"name": "lr"}, numeric={"kind": "autodis", "temperature": 0.5})
    assert chosen.embedding.numeric == AutoDis(temperature=0.5)
    (tmp_path / "config.yaml").write_text(to_yaml(chosen))
    assert load_config(tmp_path / "config.yaml") == chosen
    assert load_config(tmp_path / "config.yaml", ["embedding.numeric=scale"]).embedding.numeric == Scale()


@pytest.mark.parametrize(
    "override,message",
    [
        ("embedding.numeric=buckets", "Known: autodis, scale"),
        ("embedding.numeric.temperature=0", "embedding.numeric.temperature"),
        ("embedding.numeric.temprature=1", "Did you mean 'temperature'"),
    ],
)
def test_bad_settings_of_it_are_refused(override: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(experiment(tmp_path, {"name": "lr"}, numeric="autodis")))
    with pytest.raises(CtrkitError) as refusal:
        load_config(tmp_path / "config.yaml", [override])
    assert message in str(refusal.value)
