"""Vocabulary: the values of the training split get ids of their own, the most frequent first; others are unknown.

Ids: 0 padding, 1..oov_buckets unknown (hashed when there are several), then the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT, UNKNOWN_ID, Feature, Vocabulary
from ctrkit.transforms.hashing import murmur_ids, no_value, write_murmur_ids

if TYPE_CHECKING:
    import numpy as np

    from ctrkit.transforms.onnx_part import OnnxWriter

_OOV_SALT = 0
_NOT_FOUND = 0
"""No value maps to it: id 0 is padding."""


class VocabularyLookup:
    """Known values to ids, the rest to unknown ids.

    Args:
        values: the known values without repeats, in the order of their ids.
    """

    def __init__(self, feature: Feature, settings: Vocabulary, values: pl.Series) -> None:
        self.feature = feature
        self.settings = settings
        self._values = values
        self.first_word = 1 + settings.oov_buckets
        self._ids = pl.int_range(self.first_word, self.first_word + len(values), eager=True)

    @property
    def rows(self) -> int:
        return self.first_word + len(self._values)

    def only(self, kept: np.ndarray) -> VocabularyLookup:
        """The same without the values where ``kept`` (bool ``[values]``) is false: they are unknown then."""
        return VocabularyLookup(self.feature, self.settings, self._values.filter(pl.Series(kept)))

    def encode(self, values: pl.Expr) -> pl.Expr:
        if self.settings.oov_buckets == 1:
            return values.replace_strict(self._values, self._ids, default=UNKNOWN_ID, return_dtype=pl.Int64)
        ids = values.replace_strict(self._values, self._ids, default=_NOT_FOUND, return_dtype=pl.Int64)
        return pl.when(ids != _NOT_FOUND).then(ids).otherwise(murmur_ids(values, self.settings.oov_buckets, _OOV_SALT))

    def write_onnx(self, writer: OnnxWriter, values: str) -> str:
        import numpy as np

        hashed = self.settings.oov_buckets > 1
        keys: dict[str, Any] = {"keys_strings" if self.feature.dtype == "string" else "keys_int64s": self._values.to_list()}
        default = _NOT_FOUND if hashed else UNKNOWN_ID
        ids = writer.op("LabelEncoder", values, domain="ai.onnx.ml", values_int64s=self._ids.to_list(), default_int64=default, **keys)
        if not hashed:
            return ids
        unknown = writer.op("Equal", ids, writer.constant(_NOT_FOUND, np.int64))
        return writer.op("Where", unknown, write_murmur_ids(writer, values, self.feature, self.settings.oov_buckets, _OOV_SALT), ids)

    def state(self) -> dict[str, Any]:
        return {}

    def vocabulary(self) -> pl.Series:
        return self._values


class VocabularyFitter:
    """Counts values chunk by chunk; memory grows with the distinct values only."""

    _PENDING_ROWS = 2**17

    def __init__(self, feature: Feature, settings: Vocabulary) -> None:
        self.feature = feature
        self.settings = settings
        dtype = pl.String if feature.dtype == "string" else pl.Int64
        self._merged = pl.DataFrame(schema={"value": dtype, "count": pl.UInt64})
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = 0

    def update(self, values: pl.Series) -> None:
        self.update_counts(values.alias("value").to_frame().group_by("value").agg(pl.len().alias("count")))

    def update_counts(self, counts: pl.DataFrame) -> None:
        self._pending.append(_own_text(counts.select("value", pl.col("count").cast(pl.UInt64))))
        self._pending_rows += counts.height
        if self._pending_rows > max(self._PENDING_ROWS, self._merged.height):
            self._merge()

    def _merge(self) -> None:
        counts = pl.concat([self._merged, *self._pending]).group_by("value").agg(pl.col("count").sum())
        self._merged = _own_text(counts)
        self._pending, self._pending_rows = [], 0

    def finish(self) -> VocabularyLookup:
        self._merge()
        missing = "" if self.feature.dtype == "string" else MISSING_INT
        if self._merged.filter(pl.col("value") != missing).is_empty():
            raise no_value(self.feature)
        frequent = self._merged.filter(pl.col("count") >= self.settings.min_count)
        if frequent.filter(pl.col("value") != missing).is_empty():
            most = self._merged.filter(pl.col("value") != missing)["count"].max()
            raise CtrkitError(
                f"feature '{self.feature.name}' has no value seen {self.settings.min_count} times in the training split: "
                f"the most frequent is seen {most} times",
                "Lower its transform's min_count, or drop it from features",
            )
        ordered = frequent.sort(["count", "value"], descending=[True, False])
        values = ordered["value"] if self.settings.max_size is None else ordered["value"].head(self.settings.max_size)
        return VocabularyLookup(self.feature, self.settings, values)


def _own_text(counts: pl.DataFrame) -> pl.DataFrame:
    """Copies the strings: those that Polars gathers are views, which keep the whole chunk they come from in memory."""
    if counts["value"].dtype != pl.String:
        return counts
    return counts.with_columns(pl.Series("value", pl.from_arrow(counts["value"].to_arrow(compat_level=pl.CompatLevel.oldest()))))
