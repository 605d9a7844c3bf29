"""Standardised numbers: (f(x) - mean) / std, f the identity or sign(x) log(1 + |x|); NaN where missing.

All in float64, float32 at the end. Infinite values, and those too large for float32 once standardised, are missing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ctrkit.errors import CtrkitError
from ctrkit.schema import Feature, Log1p
from ctrkit.transforms.hashing import no_value

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxPart


class NumericTransform:
    """Raw number -> ``Float32``; ONNX ``name@dense`` FLOAT [rows].

    Args:
        mean, std: of f(x) over the training split's finite values.
    """

    rows = None

    def __init__(self, feature: Feature, mean: float, std: float) -> None:
        self.feature = feature
        self.mean = mean
        self.std = std

    def to_polars(self) -> pl.Expr:
        x = pl.col(self.feature.name).fill_null(math.nan)
        if isinstance(self.feature.transform, Log1p):
            x = x.sign() * (1.0 + x.abs()).log()
        dense = ((x - self.mean) / self.std).cast(pl.Float32)
        return pl.when(dense.is_infinite()).then(pl.lit(math.nan, dtype=pl.Float32)).otherwise(dense).alias(self.feature.name)

    def to_onnx(self) -> OnnxPart:
        from onnx import TensorProto, helper

        from ctrkit.transforms.onnx_part import OnnxWriter, raw_inputs

        writer = OnnxWriter(self.feature.name)
        x = self.feature.name
        if isinstance(self.feature.transform, Log1p):
            grown = writer.op("Add", writer.constant(1.0, np.float64), writer.op("Abs", x))
            x = writer.op("Mul", writer.op("Sign", x), writer.op("Log", grown))
        centred = writer.op("Sub", x, writer.constant(self.mean, np.float64))
        scaled = writer.op("Div", centred, writer.constant(self.std, np.float64))
        dense = writer.op("Cast", scaled, to=TensorProto.FLOAT)
        writer.op("Where", writer.op("IsInf", dense), writer.constant(math.nan, np.float32), dense, output="dense")
        return writer.part(
            raw_inputs(self.feature), [helper.make_tensor_value_info(f"{self.feature.name}@dense", TensorProto.FLOAT, ["rows"])]
        )

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def vocabulary(self) -> None:
        return None


def finite_values(frame: pl.DataFrame, feature: Feature) -> np.ndarray:
    """The column's finite values, float64."""
    column = pl.col(feature.name)
    return frame.select(column.filter(column.is_finite())).to_series().to_numpy()


class NumericFitter:
    """Mean and variance, merged over chunks (Chan, Golub & LeVeque, 1979)."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._least, self._most = math.inf, -math.inf

    def update(self, frame: pl.DataFrame) -> None:
        x = finite_values(frame, self.feature)
        if not len(x):
            return
        if isinstance(self.feature.transform, Log1p):
            x = np.sign(x) * np.log(1.0 + np.abs(x))
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(x.mean())
            squares = float(np.square(x - mean).sum())
            gap = mean - self._mean
            total = self._count + len(x)
            self._mean += gap * (len(x) / total)
            self._squares += squares + gap * gap * (self._count * len(x) / total)
        self._count = total
        self._least, self._most = min(self._least, float(x.min())), max(self._most, float(x.max()))

    def finish(self) -> NumericTransform:
        if not self._count:
            raise no_value(self.feature)
        if self._least == self._most:
            return NumericTransform(self.feature, self._least, 1.0)
        std = math.sqrt(self._squares / self._count) if math.isfinite(self._squares) else math.nan
        if not (math.isfinite(self._mean) and math.isfinite(std)):
            raise CtrkitError(
                f"feature '{self.feature.name}' holds numbers too large to standardise: the sum of their squares overflows",
                "Give it the transform log1p or buckets",
            )
        return NumericTransform(self.feature, self._mean, std if std > 0 else 1.0)
