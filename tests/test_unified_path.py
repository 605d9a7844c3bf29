"""A unified embedding from the log to the bundle: no vocabulary anywhere, and a bundle as large as its table."""

from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.bundle import MODEL_FILE
from ctrkit.config import Experiment
from ctrkit.data.prepare import prepare
from ctrkit.training.evaluate import predict_split
from ctrkit.training.run import load_run
from ctrkit.training.trainer import train
from pipelines.export import export_run
from pipelines.score import score

TABLE_ROWS, DIM, LOOKUPS = 5_000, 4, 2
ROWS, TEST_ROWS = 1200, 200


def experiment(folder: Path, distinct: int) -> Experiment:
    """A log with so many users, whose clicks follow the item."""
    random = np.random.default_rng(0)
    item = random.integers(0, 20, ROWS)
    pl.DataFrame(
        {
            "user": [f"ü{u}" for u in random.integers(0, distinct, ROWS)],
            "item": item,
            "tags": ["|".join(f"t{(i + k) % distinct}" for k in range(i % 4)) for i in item],
            "hour": random.integers(0, 24, ROWS),
            "price": random.normal(size=ROWS),
            "click": (random.random(ROWS) < np.linspace(0.05, 0.95, 20)[item]).astype(int),
        }
    ).write_csv(folder / "log.csv")
    return Experiment.model_validate(
        {
            "name": "shared",
            "data": {"path": str(folder / "log.csv")},
            "label": "click",
            "split": {"by": "order", "valid": 200, "test": TEST_ROWS},
            "features": [
                {"name": "user", "kind": "categorical"},
                {"name": "item", "kind": "categorical", "dtype": "int"},
                {"name": "tags", "kind": "multi_valued", "max_length": 2},
                {"name": "hour", "kind": "numeric", "transform": {"kind": "buckets", "count": 4}},
                {"name": "price", "kind": "numeric"},
            ],
            "model": {"name": "dnn", "hidden": [8]},
            "embedding": {
                "kind": "unified",
                "rows": TABLE_ROWS,
                "dim": DIM,
                "lookups": LOOKUPS,
                "feature_lookups": {"user": 3},
                "learning_rate": 0.1,
            },
            "training": {"batch_size": 100, "steps": 32, "learning_rate": 0.01, "threads": 1},
            "output": str(folder),
        }
    )


@pytest.mark.parametrize("distinct", [pytest.param(30, marks=pytest.mark.slow), 1000])
def test_from_raw_values_to_a_bundle_without_a_vocabulary(distinct: int, tmp_path: Path) -> None:
    settings = experiment(tmp_path, distinct)
    dataset = prepare(settings, tmp_path / "dataset")
    assert not list((dataset.path / "transforms").glob("vocabulary*"))
    result = train(settings, dataset, run_dir=tmp_path / "run", console=Console(quiet=True))
    width, fields = DIM * LOOKUPS, 5
    dense = (fields * width + 1) * 8 + 8 + 1 + 2 * width  # two layers, and the number's two vectors
    assert result.params == TABLE_ROWS * DIM + dense + 3 * DIM * width, "the last is the projection of 'user'"
    assert result.test["auc"] > 0.7
    assert {name: tuple(t.shape) for name, t in load_run(result.run)[2]["tables"].items()} == {"embedding/shared": (TABLE_ROWS, DIM)}

    exported = export_run(result.run, tmp_path / "repo")
    assert exported["max_abs_diff"] <= 1e-5
    model = Path(exported["bundle"]) / MODEL_FILE
    assert "LabelEncoder" not in {node.op_type for node in onnx.load(model).graph.node}
    assert 0 < model.stat().st_size - 4 * TABLE_ROWS * DIM < 40_000

    score(exported["bundle"], tmp_path / "log.csv", tmp_path / "scored.parquet")
    scored = pl.read_parquet(tmp_path / "scored.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(scored[-TEST_ROWS:], predict_split(result.run, "test").probabilities, atol=1e-5)
