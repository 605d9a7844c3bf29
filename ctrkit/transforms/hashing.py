"""Hashing: id = 1 + murmur3_32(text, salt) mod buckets. An int is hashed as its decimal string.

Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT, Feature, Hash

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxWriter


def murmur_ids(values: pl.Expr, buckets: int, salt: int) -> pl.Expr:
    """Strings or ints -> ids 1..buckets."""
    import polars_hash  # noqa: F401  registers the namespace nchash

    text = values.cast(pl.String)
    hashed = text.nchash.murmur32(seed=salt)  # pyright: ignore[reportAttributeAccessIssue]
    return 1 + hashed.cast(pl.Int64) % buckets


def write_murmur_ids(writer: OnnxWriter, values: str, feature: Feature, buckets: int, salt: int) -> str:
    """The same as ONNX nodes."""
    import numpy as np
    from onnx import TensorProto

    if feature.dtype == "int":
        values = writer.op("Cast", values, to=TensorProto.STRING)
    hashed = writer.op("MurmurHash3", values, domain="com.microsoft", seed=salt, positive=1)
    wide = writer.op("Cast", hashed, to=TensorProto.INT64)
    bucket = writer.op("Mod", wide, writer.constant(buckets, np.int64))
    return writer.op("Add", bucket, writer.constant(1, np.int64))


class HashLookup:
    """Ids 1..buckets; nothing to store."""

    def __init__(self, feature: Feature, settings: Hash) -> None:
        self.feature = feature
        self.settings = settings

    @property
    def rows(self) -> int:
        return self.settings.buckets + 1

    def encode(self, values: pl.Expr) -> pl.Expr:
        return murmur_ids(values, self.settings.buckets, self.settings.salt)

    def write_onnx(self, writer: OnnxWriter, values: str) -> str:
        return write_murmur_ids(writer, values, self.feature, self.settings.buckets, self.settings.salt)

    def state(self) -> dict[str, Any]:
        return {}

    def vocabulary(self) -> None:
        return None


class HashFitter:
    """Only makes sure that the feature has values at all."""

    def __init__(self, feature: Feature, settings: Hash) -> None:
        self.feature = feature
        self.settings = settings
        self._seen = False

    def update(self, values: pl.Series) -> None:
        missing = "" if self.feature.dtype == "string" else MISSING_INT
        self._seen = self._seen or bool((values != missing).any())

    def update_counts(self, counts: pl.DataFrame) -> None:
        self.update(counts["value"])

    def finish(self) -> HashLookup:
        if not self._seen:
            raise no_value(self.feature)
        return HashLookup(self.feature, self.settings)


def no_value(feature: Feature) -> CtrkitError:
    """The error of a feature that is missing in every training row."""
    return CtrkitError(
        f"feature '{feature.name}' has no value in the training split: every row is missing",
        "Check the column's name and the file's separator, or drop it from features",
    )
