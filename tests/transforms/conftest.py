"""Fitting and running transforms, shared by the tests."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest

from ctrkit.schema import Feature, Kind
from ctrkit.transforms import FittedTransform, canonicalise, fitter_for
from ctrkit.transforms.canonical import canonical_dtype
from ctrkit.transforms.onnx_part import OnnxPart, assemble


@pytest.fixture(scope="session")
def column() -> Callable[[Feature, Sequence[Any]], pl.DataFrame]:
    """Python values -> a frame with the feature's canonical column. Infinite numbers stay: a graph may be fed them."""

    def make(feature: Feature, values: Sequence[Any]) -> pl.DataFrame:
        series = pl.Series(feature.name, values, dtype=canonical_dtype(feature))
        if feature.kind is Kind.NUMERIC:
            return series.fill_null(float("nan")).to_frame()
        return canonicalise(series.to_frame(), [feature])

    return make


@pytest.fixture(scope="session")
def fit(column: Callable[..., pl.DataFrame]) -> Callable[..., FittedTransform]:
    """Fits a feature's transform on python values, in one chunk or several."""

    def fitted(feature: Feature, values: Sequence[Any], chunk: int | None = None) -> FittedTransform:
        fitter = fitter_for(feature)
        frame = column(feature, values)
        for piece in frame.iter_slices(chunk or max(frame.height, 1)):
            fitter.update(piece)
        return fitter.finish()

    return fitted


@pytest.fixture(scope="session")
def feed() -> Callable[[Sequence[Feature], pl.DataFrame], dict[str, np.ndarray]]:
    """Canonical columns -> the tensors of an ONNX graph."""

    def tensors(features: Sequence[Feature], frame: pl.DataFrame) -> dict[str, np.ndarray]:
        inputs = {}
        for feature in features:
            series = frame[feature.name]
            if feature.multi_valued:
                inputs[f"{feature.name}.lengths"] = series.list.len().cast(pl.Int64).to_numpy()
                inputs[f"{feature.name}.values"] = series.explode(empty_as_null=False).to_numpy()
            else:
                inputs[feature.name] = series.to_numpy()
        return inputs

    return tensors


@pytest.fixture(scope="session")
def session() -> Callable[[Sequence[OnnxPart]], ort.InferenceSession]:
    """Parts -> a session of their own, single-threaded."""

    def start(parts: Sequence[OnnxPart], opset: int | None = None) -> ort.InferenceSession:
        model = assemble(parts)
        if opset is not None:
            model.opset_import[0].version = opset
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    return start
