"""A categorical feature: one value a row, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from ctrkit.schema import MISSING_INT, Feature
from ctrkit.transforms.base import Lookup, LookupFitter

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxPart


def _present(feature: Feature) -> pl.Expr:
    return pl.col(feature.name).fill_null("" if feature.dtype == "string" else MISSING_INT)


class CategoricalTransform:
    """Raw value -> ``Int64`` id; ONNX ``name@id`` INT64 [rows]."""

    def __init__(self, feature: Feature, lookup: Lookup) -> None:
        self.feature = feature
        self.lookup = lookup

    @property
    def rows(self) -> int:
        return self.lookup.rows

    def to_polars(self) -> pl.Expr:
        return self.lookup.encode(_present(self.feature)).alias(self.feature.name)

    def to_onnx(self) -> OnnxPart:
        from onnx import TensorProto, helper

        from ctrkit.transforms.onnx_part import OnnxWriter, raw_inputs

        writer = OnnxWriter(self.feature.name)
        ids = self.lookup.write_onnx(writer, self.feature.name)
        writer.op("Identity", ids, output="id")
        return writer.part(
            raw_inputs(self.feature), [helper.make_tensor_value_info(f"{self.feature.name}@id", TensorProto.INT64, ["rows"])]
        )

    def state(self) -> dict[str, Any]:
        return self.lookup.state()

    def vocabulary(self) -> pl.Series | None:
        return self.lookup.vocabulary()


class CategoricalFitter:
    """Fits the look-up on the column's values."""

    def __init__(self, feature: Feature, lookup: LookupFitter) -> None:
        self.feature = feature
        self._lookup = lookup

    def update(self, frame: pl.DataFrame) -> None:
        self._lookup.update(frame.select(_present(self.feature)).to_series())

    def update_counts(self, counts: pl.DataFrame) -> None:
        """Takes in canonical values that are counted already: columns ``value``, each once, and ``count``."""
        self._lookup.update_counts(counts)

    def finish(self) -> CategoricalTransform:
        return CategoricalTransform(self.feature, self._lookup.finish())
