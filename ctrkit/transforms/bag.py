"""A multi-valued feature: a bag of values a row, each looked up. Or a sequence: the same in order, the most recent last.

Missing elements ("" or MISSING_INT) are dropped, then the first ``max_length`` of the rest are kept; the last of a sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from ctrkit.schema import MISSING_INT, PADDING_ID, Feature, Kind
from ctrkit.transforms.base import Lookup, LookupFitter

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxPart, OnnxWriter


def kept_elements(feature: Feature) -> pl.Expr:
    """Of a column of raw bags, the elements that get an id, under the column's name."""
    missing = "" if feature.dtype == "string" else MISSING_INT
    empty = pl.lit([], dtype=pl.List(pl.String if feature.dtype == "string" else pl.Int64))
    element = pl.element()
    bags = pl.col(feature.name).fill_null(empty)
    present = bags.list.filter(element.is_not_null() & (element != missing)).list
    return present.tail(feature.max_length) if feature.kind is Kind.SEQUENCE else present.head(feature.max_length)


class BagTransform:
    """Bag of raw values -> ``List(Int64)`` of the kept elements' ids.

    In ONNX a dropped element gets the padding id instead: ``name@ids`` INT64 [total], aligned with ``name.values``.

    Args:
        lookup: of a sequence, that of the feature it is a history of.
    """

    def __init__(self, feature: Feature, lookup: Lookup) -> None:
        self.feature = feature
        self.lookup = lookup

    @property
    def rows(self) -> int:
        return self.lookup.rows

    def to_polars(self) -> pl.Expr:
        return kept_elements(self.feature).list.eval(self.lookup.encode(pl.element())).alias(self.feature.name)

    def to_onnx(self) -> OnnxPart:
        import numpy as np
        from onnx import TensorProto, helper

        from ctrkit.transforms.onnx_part import OnnxWriter, raw_inputs

        name = self.feature.name
        writer = OnnxWriter(self.feature.name)
        kept = self._write_kept(writer)
        ids = self.lookup.write_onnx(writer, f"{name}.values")
        writer.op("Where", kept, ids, writer.constant(PADDING_ID, np.int64), output="ids")
        return writer.part(raw_inputs(self.feature), [helper.make_tensor_value_info(f"{name}@ids", TensorProto.INT64, [f"{name}.total"])])

    def _write_kept(self, writer: OnnxWriter) -> str:
        """Whether each element is kept, BOOL [total]: present, and among the first (or last) ``max_length`` present ones of its bag."""
        import numpy as np
        from onnx import TensorProto

        values, lengths = f"{self.feature.name}.values", f"{self.feature.name}.lengths"
        zero, axis = writer.constant([0], np.int64), writer.constant(0, np.int64)
        missing = writer.constant(
            "" if self.feature.dtype == "string" else MISSING_INT, object if self.feature.dtype == "string" else np.int64
        )

        present = writer.op("Not", writer.op("Equal", values, missing))
        counts = writer.op("CumSum", writer.op("Cast", present, to=TensorProto.INT64), axis)  # [total], present up to here
        starts = writer.op("CumSum", lengths, axis, exclusive=1)  # [rows], each bag's first element

        # [total], each element's bag: bags that start at or before it, less one
        total = writer.op("Shape", values)
        length = writer.op("Add", total, writer.constant([1], np.int64))  # a last empty bag starts one past the end
        begun = writer.op("Expand", zero, length)
        ones = writer.op("Expand", writer.constant([1], np.int64), writer.op("Shape", lengths))
        begun = writer.op("CumSum", writer.op("ScatterElements", begun, starts, ones, reduction="add"), axis)
        bag = writer.op("Sub", writer.op("Slice", begun, zero, total), writer.constant(1, np.int64))

        from_zero = writer.op("Concat", zero, counts, axis=0)
        limit = writer.constant(self.feature.max_length, np.int64)
        if self.feature.kind is Kind.SEQUENCE:
            through = writer.op("Gather", from_zero, writer.op("Add", starts, lengths))  # [rows], present up to each bag's end
            later = writer.op("Sub", writer.op("Gather", through, bag), counts)  # [total], present after it in its bag
            within = writer.op("Less", later, limit)
        else:
            before = writer.op("Gather", from_zero, starts)  # [rows], present before each bag
            rank = writer.op("Sub", counts, writer.op("Gather", before, bag))  # [total], from 1 within the bag
            within = writer.op("LessOrEqual", rank, limit)
        return writer.op("And", present, within)

    def state(self) -> dict[str, Any]:
        return self.lookup.state()

    def vocabulary(self) -> pl.Series | None:
        return self.lookup.vocabulary()


class BagFitter:
    """Fits the look-up on the kept elements of all bags."""

    def __init__(self, feature: Feature, lookup: LookupFitter) -> None:
        self.feature = feature
        self._lookup = lookup

    def update(self, frame: pl.DataFrame) -> None:
        elements = frame.select(kept_elements(self.feature)).to_series().explode(empty_as_null=False)
        if len(elements):
            self._lookup.update(elements)

    def finish(self) -> BagTransform:
        return BagTransform(self.feature, self._lookup.finish())
