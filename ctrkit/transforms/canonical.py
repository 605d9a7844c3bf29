"""A column of the log, of whatever dtype, to the canonical raw values that transforms and the exported model read.

| feature | canonical column | missing | read from |
|---|---|---|---|
| categorical string | String | ``""`` | text as it stands; other scalars as Polars writes them: 5 -> "5", 5.0 -> "5.0", True -> "true" |
| categorical int | Int64 | ``MISSING_INT`` | integers; text such as " 5" or "5.0"; whole floats; True -> 1 |
| numeric | Float64 | NaN | numbers; text such as " 2.5"; True -> 1; infinite values are missing |
| multi-valued, sequence | List | empty list | text split at the separator; lists; another scalar is a bag of one |

Null, NaN and (save in string features) blank text are missing. Needs Polars only.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import polars as pl

from ctrkit.errors import CtrkitError, nearest
from ctrkit.schema import MISSING_INT, Feature, Kind

_WHOLE_FRACTION = r"\.0*$"


def canonical_dtype(feature: Feature) -> pl.DataType:
    """The dtype of a feature's canonical column."""
    if feature.kind is Kind.NUMERIC:
        return pl.Float64()
    element = pl.String() if feature.dtype == "string" else pl.Int64()
    return pl.List(element) if feature.multi_valued else element


def canonical(feature: Feature) -> pl.Expr:
    """The canonical column as an expression, for lazy frames.

    A bad cell raises as in ``canonicalise``, without its row: an expression sees pieces of the column, not where they lie.
    """
    return pl.col(feature.name).map_batches(
        partial(_column, feature, first_row=None), return_dtype=canonical_dtype(feature), is_elementwise=True
    )


def canonicalise(frame: pl.DataFrame, features: Iterable[Feature], first_row: int = 0) -> pl.DataFrame:
    """Replaces every feature's column by its canonical one; other columns stay.

    Args:
        first_row: rows of the log before this frame. Errors count rows of data from 1.

    Raises:
        CtrkitError: a column is missing, of a dtype that the feature cannot be read from, or holds a cell that is no number.
    """
    columns = []
    for feature in features:
        if feature.name not in frame.columns:
            raise CtrkitError(f"the log has no column '{feature.name}'", nearest(feature.name, frame.columns))
        columns.append(_column(feature, frame[feature.name], first_row))
    return frame.with_columns(columns)


def _column(feature: Feature, column: pl.Series, first_row: int | None) -> pl.Series:
    rows = None if first_row is None else np.arange(first_row, first_row + len(column))
    canonical = _bags if feature.multi_valued else _scalars
    return canonical(feature, column, rows).alias(feature.name)


def _scalars(feature: Feature, column: pl.Series, rows: np.ndarray | None) -> pl.Series:
    """Canonical scalars; ``rows`` [n] are the log's rows they come from, for errors; None when not known."""
    if column.dtype == pl.Null:
        column = column.cast(pl.String)
    if column.dtype.is_float():
        column = column.fill_nan(None)
    if feature.kind is Kind.NUMERIC:
        numbers = _numbers(feature, column, rows)
        return numbers.set(numbers.is_infinite(), None).fill_null(float("nan"))
    if feature.dtype == "string":
        return _strings(feature, column).fill_null("")
    return _ints(feature, column, rows).fill_null(MISSING_INT)


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _wrong_dtype(feature: Feature, column: pl.Series, wanted: str) -> CtrkitError:
    return CtrkitError(
        f"column '{feature.name}' holds {column.dtype}, which cannot be read as {wanted}",
        "Change the feature's kind or dtype, or the column",
    )


def _strings(feature: Feature, column: pl.Series) -> pl.Series:
    if column.dtype.is_nested() or isinstance(column.dtype, pl.Binary | pl.Duration | pl.Object):
        raise _wrong_dtype(feature, column, "text")
    return column.cast(pl.String)


def _numbers(feature: Feature, column: pl.Series, rows: np.ndarray | None) -> pl.Series:
    if _is_text(column.dtype):
        text = _blank_to_null(column)
        numbers = text.cast(pl.Float64, strict=False)
        _check_cells(feature, text, numbers, rows, "a number")
        return numbers.fill_nan(None)
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise _wrong_dtype(feature, column, "numbers")
    return column.cast(pl.Float64)


def _ints(feature: Feature, column: pl.Series, rows: np.ndarray | None) -> pl.Series:
    if _is_text(column.dtype):
        text = _blank_to_null(column)
        ints = text.cast(pl.Int64, strict=False)
        if ints.null_count() > text.null_count():  # text such as 5.0, which is how pandas writes ints beside nulls
            ints = text.str.replace(_WHOLE_FRACTION, "").cast(pl.Int64, strict=False)
        _check_cells(feature, text, ints, rows, "a whole number of 64 bits")
        return ints
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise _wrong_dtype(feature, column, "whole numbers")
    ints = column.cast(pl.Int64, strict=False)
    if column.dtype.is_float() or column.dtype.is_decimal():
        ints = ints.set(ints.cast(column.dtype, strict=False) != column, None)
    _check_cells(feature, column, ints, rows, "a whole number of 64 bits")
    return ints


def _blank_to_null(column: pl.Series) -> pl.Series:
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _check_cells(feature: Feature, before: pl.Series, after: pl.Series, rows: np.ndarray | None, wanted: str) -> None:
    bad = (after.is_null() & before.is_not_null()).arg_true()
    if len(bad):
        row = "" if rows is None else f", row {rows[bad[0]] + 1}"
        more = f" (and {len(bad) - 1} more cells)" if len(bad) > 1 else ""
        raise CtrkitError(
            f"column '{feature.name}'{row}: '{before[bad[0]]}' is not {wanted}{more}",
            "Mend the cell or empty it, or "
            + ("make it a categorical feature" if feature.kind is Kind.NUMERIC else f"give '{feature.name}' dtype: string"),
        )


def _bags(feature: Feature, column: pl.Series, rows: np.ndarray | None) -> pl.Series:
    """Lists of canonical scalars."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    elif not isinstance(column.dtype, pl.List):
        if column.dtype.is_float():
            column = column.fill_nan(None)
        column = _strings(feature, column).str.split(feature.separator)
    bags = column.fill_null(pl.Series([[]], dtype=column.dtype))
    lengths = bags.list.len().to_numpy()
    elements = bags.explode(empty_as_null=False)
    values = _scalars(feature, elements, None if rows is None else np.repeat(rows, lengths))
    return regroup(values, lengths)


def regroup(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """Flat ``values`` [total] into lists of ``lengths`` [rows]."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    bags = pa.LargeListArray.from_arrays(pa.array(offsets), values.to_arrow())
    return pl.Series(bags, dtype=pl.List(values.dtype))
