"""A cross of two fields for the exported graph: to Polars expressions and to ONNX nodes, upon the ids of the two.

The same ids as ``ctrkit.embeddings.crosses`` gives a batch in training, which has the formula.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from onnx import TensorProto, helper

from ctrkit.embeddings.crosses import Crosses, Pair, cross_name
from ctrkit.embeddings.unified import PRIME, hash_coefficients
from ctrkit.transforms.onnx_part import OnnxPart, OnnxWriter

_NOT_FOUND = 0


class CrossTransform:
    """
    Args:
        pair: the fields.
        factor: rows of the second.
        frequent: keys with rows of their own, rising.
        buckets: rows of the other keys.
    """

    def __init__(self, pair: Pair, factor: int, frequent: Sequence[int], buckets: int) -> None:
        self.pair, self.factor, self.frequent, self.buckets = pair, factor, frequent, buckets
        self.name = cross_name(pair)
        self.rows = range(1 + buckets, 1 + buckets + len(frequent))
        self.coefficients = hash_coefficients(self.name, 0)

    def to_polars(self) -> pl.Expr:
        """The two fields' columns of ids -> the column of the cross'."""
        first, second = (pl.col(name) for name in self.pair)
        key = first * self.factor + second
        x = key % PRIME
        hashed = pl.lit(self.coefficients[0], dtype=pl.Int64)
        for c in self.coefficients[1:]:
            hashed = (hashed * x + c) % PRIME
        tail = 1 + hashed % self.buckets
        ids = (
            key.replace_strict(self.frequent, self.rows, default=_NOT_FOUND, return_dtype=pl.Int64) if self.frequent else pl.lit(_NOT_FOUND)
        )
        return pl.when(ids != _NOT_FOUND).then(ids).otherwise(tail).alias(self.name)

    def to_onnx(self) -> OnnxPart:
        """``first@id`` and ``second@id`` -> ``first@second@id``, INT64 ``[rows]``."""
        writer = OnnxWriter(self.name)

        def number(value: int) -> str:
            return writer.constant(value, np.int64)

        first, second = (f"{name}@id" for name in self.pair)
        key = writer.op("Add", writer.op("Mul", first, number(self.factor)), second)
        prime = number(PRIME)
        x, hashed = writer.op("Mod", key, prime), number(self.coefficients[0])
        for c in self.coefficients[1:]:
            hashed = writer.op("Mod", writer.op("Add", writer.op("Mul", hashed, x), number(c)), prime)
        ids = writer.op("Add", writer.op("Mod", hashed, number(self.buckets)), number(1))
        if self.frequent:
            known = {"keys_int64s": list(self.frequent), "values_int64s": list(self.rows), "default_int64": _NOT_FOUND}
            row = writer.op("LabelEncoder", key, domain="ai.onnx.ml", **known)
            ids = writer.op("Where", writer.op("Equal", row, number(_NOT_FOUND)), ids, row)
        writer.op("Identity", ids, output="id")
        return writer.part([], [helper.make_tensor_value_info(f"{self.name}@id", TensorProto.INT64, ["rows"])])


def cross_transforms(crosses: Crosses | None) -> list[CrossTransform]:
    """Of a trained model's crosses."""
    if crosses is None:
        return []
    rows = {field.name: field.rows for field in crosses.inputs.id_fields}
    return [CrossTransform(pair, rows[pair[1]], keys.tolist(), crosses.buckets) for pair, keys in crosses.frequent.items()]
