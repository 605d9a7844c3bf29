"""Fitted transforms over every kind of feature, and a model over them that TorchRec can run."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import polars as pl
import pytest
import torch

import ctrkit.quiet  # noqa: F401
from ctrkit.config import Embedding
from ctrkit.data.batch import Batch
from ctrkit.export.writer import Trained
from ctrkit.models.base import CTRModel
from ctrkit.models.registry import build_for
from ctrkit.schema import Feature
from ctrkit.training.distributed import distribute, gather_full_weights, process_group
from ctrkit.transforms import FittedTransforms, canonicalise, fitter_for

FEATURES = [
    Feature.model_validate(feature)
    for feature in (
        {"name": "tags", "kind": "multi_valued", "max_length": 2},
        {"name": "the user", "kind": "categorical"},
        {"name": "price", "kind": "numeric"},
        {"name": "site", "kind": "categorical", "transform": {"kind": "hash", "buckets": 5}},
        {"name": "seen", "kind": "multi_valued", "dtype": "int", "pooling": "sum"},
        {"name": "age", "kind": "numeric", "transform": {"kind": "buckets", "count": 3}},
        {"name": "item", "kind": "categorical", "dtype": "int", "transform": {"kind": "vocabulary", "oov_buckets": 3}},
    )
]


@pytest.fixture(scope="session")
def golden() -> pl.DataFrame:
    """Canonical raw rows of ``FEATURES``."""
    columns = {
        "tags": ["x|y|z", "", "x", None, "y||x|w", "z", "x|x", "w"],
        "the user": ["a", "b", "", None, "ü", "a", "a\0b", "c"],
        "price": [1.0, -2.5, None, 4.0, float("inf"), 0.0, 1e9, 7.0],
        "site": ["p", "q", "r", None, "s", "t", "u", "v"],
        "seen": [[1, 2, 3], [], None, [2], [2**24, 2**24 + 1], [-1], [1, 1], []],
        "age": [20.0, 30.0, 40.0, None, 50.0, 60.0, 70.0, 80.0],
        "item": [1, 2**24, 2**24 + 1, None, 2**31, 2**31 + 1, -5, 1],
    }
    return canonicalise(pl.DataFrame(columns, schema_overrides={"seen": pl.List(pl.Int64)}), FEATURES)


@pytest.fixture(scope="session")
def transforms(golden: pl.DataFrame) -> FittedTransforms:
    fitters = [fitter_for(feature) for feature in FEATURES]
    for fitter in fitters:
        fitter.update(golden)
    return FittedTransforms([fitter.finish() for fitter in fitters])


@pytest.fixture(scope="module")
def trained(transforms: FittedTransforms, golden: pl.DataFrame) -> Iterator[Callable[..., Trained]]:
    """``trained("fm")``, ``trained("mmoe", label={"a": "x", "b": "y"})``: a model in TorchRec's hands, its weights drawn at random and far from zero."""
    with process_group() as worker:

        def make(model: str, embedding: Embedding | None = None, label: str | dict[str, str] = "click", **settings: object) -> Trained:
            torch.manual_seed(0)
            embedding = embedding or Embedding(dim=8, optimizer="sgd", init_std=0.5)
            inputs = transforms.inputs.model_copy(update={"tasks": () if isinstance(label, str) else tuple(label)})
            dense_arch = build_for(embedding, model, inputs, dict(settings)).eval()
            for parameter in dense_arch.parameters():
                torch.nn.init.normal_(parameter, 0, 0.2)
            parallel = distribute(CTRModel(deepcopy(dense_arch), embedding), embedding, worker, seed=1).model.eval()

            def reference(batch: Batch) -> np.ndarray:
                with torch.no_grad():
                    return parallel(batch.to(worker.device)).sigmoid().cpu().numpy()

            tables = gather_full_weights(parallel)
            return Trained(model, transforms, dense_arch, tables, reference, golden, "run-1", label, {"test": {"auc": 0.5}}, {"rows": 8})

        yield make
