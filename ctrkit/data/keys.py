"""Keys that are the same value, whatever their types: joins and groups."""

import polars as pl

from ctrkit.errors import CtrkitError

_NO_KEYS = (pl.List, pl.Array, pl.Binary, pl.Duration, pl.Object)


def plain_text(column: str, dtype: pl.DataType) -> pl.Expr:
    """A column as text in which equal numbers are equal: 5.0 is "5"."""
    text = pl.col(column).cast(pl.String)
    if not dtype.is_float():
        return text
    whole = pl.when(pl.col(column) == pl.col(column).floor()).then(pl.col(column).cast(pl.Int64, strict=False).cast(pl.String))
    return pl.coalesce(whole, text)


def check_key(dtype: pl.DataType, place: str) -> None:
    """Raises CtrkitError if values of a type cannot be told apart as keys; ``place`` names the column."""
    if isinstance(dtype, _NO_KEYS):
        raise CtrkitError(f"{place} is of type {dtype}", "It must be text, numbers or dates")


def left_join(frame: pl.DataFrame, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """The frame with the columns of the table's rows of the same key, nulls where there is none."""
    mine, its = frame.schema[key], table.schema[key]
    if mine == its:
        return frame.join(table, on=key, how="left", maintain_order="left")
    dated = all(isinstance(dtype, pl.Date | pl.Datetime) for dtype in (mine, its))
    common = [pl.col(key).dt.epoch("us") if dated else plain_text(key, dtype) for dtype in (mine, its)]
    left, right = frame.with_columns(common[0].alias("@key")), table.with_columns(common[1].alias("@key")).drop(key)
    return left.join(right, on="@key", how="left", maintain_order="left").drop("@key")
