"""Quantile buckets: the number becomes the id of the quantile range it falls into.

Ids: 1 missing, 2 + k for bucket k = how many boundaries are at or below x. An infinite value is missing.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ctrkit.schema import UNKNOWN_ID, Buckets, Feature
from ctrkit.transforms.hashing import no_value
from ctrkit.transforms.numeric import finite_values

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxPart, OnnxWriter

_FIRST_BUCKET = UNKNOWN_ID + 1
_BLOCK = 64


class BucketsTransform:
    """Raw number -> ``Int64`` id; ONNX ``name@id`` INT64 [rows].

    Args:
        boundaries: rising, without repeats; bucket k holds boundaries[k - 1] <= x < boundaries[k].
    """

    def __init__(self, feature: Feature, boundaries: list[float]) -> None:
        self.feature = feature
        self.boundaries = boundaries

    @property
    def rows(self) -> int:
        return _FIRST_BUCKET + len(self.boundaries) + 1

    def to_polars(self) -> pl.Expr:
        x = pl.col(self.feature.name)
        below = pl.lit(pl.Series(self.boundaries, dtype=pl.Float64)).search_sorted(x, side="right").cast(pl.Int64)
        bucket = _FIRST_BUCKET + below if self.boundaries else pl.lit(_FIRST_BUCKET, dtype=pl.Int64)
        return pl.when(x.is_finite()).then(bucket).otherwise(pl.lit(UNKNOWN_ID, dtype=pl.Int64)).alias(self.feature.name)

    def to_onnx(self) -> OnnxPart:
        from onnx import TensorProto, helper

        from ctrkit.transforms.onnx_part import OnnxWriter, raw_inputs

        name = self.feature.name
        writer = OnnxWriter(self.feature.name)
        finite = writer.op("LessOrEqual", writer.op("Abs", name), writer.constant(sys.float_info.max, np.float64))
        bucket = writer.constant(_FIRST_BUCKET, np.int64)
        if self.boundaries:
            bucket = writer.op("Add", self._write_below(writer), bucket)
        writer.op("Where", finite, bucket, writer.constant(UNKNOWN_ID, np.int64), output="id")
        return writer.part(raw_inputs(self.feature), [helper.make_tensor_value_info(f"{name}@id", TensorProto.INT64, ["rows"])])

    def _write_below(self, writer: OnnxWriter) -> str:
        """Boundaries at or below x, INT64 [rows]: counted in one go when few, else the block first, then inside it."""
        last = writer.constant([-1], np.int64)
        x = writer.op("Unsqueeze", self.feature.name, last)
        if len(self.boundaries) <= _BLOCK:
            return _write_count(writer, writer.constant(self.boundaries, np.float64), x, last)
        padded = np.full((math.ceil(len(self.boundaries) / _BLOCK), _BLOCK), np.inf)
        padded.flat[: len(self.boundaries)] = self.boundaries
        begun = _write_count(writer, writer.constant(padded[:, 0], np.float64), x, last)
        block = writer.op("Max", writer.op("Sub", begun, writer.constant(1, np.int64)), writer.constant(0, np.int64))
        inside = _write_count(writer, writer.op("Gather", writer.constant(padded, np.float64), block), x, last)
        return writer.op("Add", writer.op("Mul", block, writer.constant(_BLOCK, np.int64)), inside)

    def state(self) -> dict[str, Any]:
        return {"boundaries": self.boundaries}

    def vocabulary(self) -> None:
        return None


def _write_count(writer: OnnxWriter, boundaries: str, x: str, axis: str) -> str:
    """How many ``boundaries`` ([n] or [rows, n]) each row of ``x`` [rows, 1] reaches, INT64 [rows]."""
    from onnx import TensorProto

    reached = writer.op("LessOrEqual", boundaries, x)
    return writer.op("ReduceSum", writer.op("Cast", reached, to=TensorProto.INT64), axis, keepdims=0)


class BucketsFitter:
    """Quantiles of a uniform sample of bounded size; exact while all values fit in it.

    The sample is the values with the smallest random keys. Keys come in row order from a seeded stream, so the result does not
    depend on how the rows are cut into chunks.
    """

    SAMPLE = 2**18

    def __init__(self, feature: Feature, settings: Buckets) -> None:
        self.feature = feature
        self.settings = settings
        self._random = np.random.default_rng(0)
        self._values = np.empty(0)
        self._keys = np.empty(0)

    def update(self, frame: pl.DataFrame) -> None:
        values = finite_values(frame, self.feature)
        keys = self._random.random(len(values))
        if len(self._keys) == self.SAMPLE:
            chosen = keys < self._keys.max()
            values, keys = values[chosen], keys[chosen]
        self._values = np.concatenate([self._values, values])
        self._keys = np.concatenate([self._keys, keys])
        if len(self._keys) > self.SAMPLE:
            smallest = np.argpartition(self._keys, self.SAMPLE - 1)[: self.SAMPLE]
            self._values, self._keys = self._values[smallest], self._keys[smallest]

    def finish(self) -> BucketsTransform:
        if not len(self._values):
            raise no_value(self.feature)
        shares = np.arange(1, self.settings.count) / self.settings.count
        quantiles = np.unique(np.quantile(self._values, shares, method="higher"))
        return BucketsTransform(self.feature, quantiles[quantiles > self._values.min()].tolist())
