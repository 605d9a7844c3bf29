"""From the log's columns to the label, the group id and the time of each row."""

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from ctrkit.data.keys import check_key, plain_text
from ctrkit.data.readers import Chunk, LogReader
from ctrkit.errors import CtrkitError, nearest
from ctrkit.schema import NO_GROUP

_OVER_ROWS = {"Agg", "Len", "Over", "Rank", "Quantile", "Correlation", "Explode", "Selector"}
"""Polars' names for what takes or gives several rows or columns."""

LABEL, GROUP, TIME = "@label", "@group", "@time"


def label_columns(tasks: Sequence[str]) -> list[str]:
    """A dataset's columns of labels: ``@label``, or ``@label:<task>`` for each of several."""
    return [f"{LABEL}:{task}" for task in tasks] or [LABEL]


class LabelRule:
    """A column of 0 and 1 (or true and false), or an SQL expression such as ``rating >= 4`` that gives them.

    A text column inside an expression is a number if all its cells in the first chunk are numbers.

    Args:
        text: the experiment's ``label``, or one of them.
        reader: of the log whose columns it may name.
        task: the label's name among several.
        setting: where it stands in the config, for errors.

    Raises:
        CtrkitError: no such column, no expression, or one over several rows.
    """

    def __init__(self, text: str, reader: LogReader, task: str | None = None, setting: str = "label") -> None:
        self.text = text
        self._place = f"label.{task}" if task else setting
        (self._column,) = label_columns([task] if task else [])
        available = reader.columns()
        self._numeric: list[str] | None = None
        if text in available:
            self.columns = [text]
            self._expression = None
            return
        try:
            self._expression = pl.sql_expr(text)
        except pl.exceptions.PolarsError as error:
            raise CtrkitError(
                f"{self._place}: '{text}' is neither a column nor an expression: {error}", nearest(text, available)
            ) from error
        if not _of_single_rows(self._expression):
            raise CtrkitError(
                f"{self._place}: '{text}' is computed over several rows, those of the test among them",
                "Write an expression of a row's own columns, such as 'rating >= 4', or compute it beforehand into a column of the log",
            )
        self.columns = list(dict.fromkeys(self._expression.meta.root_names()))
        if not self.columns:
            raise CtrkitError(f"{self._place}: '{text}' names no column of the log", nearest(text, available))
        reader.require(self.columns)

    def values(self, chunk: Chunk) -> pl.Series:
        """Labels of the chunk's rows, Float32, 0 or 1.

        Raises:
            CtrkitError: a missing label or one with a third value, naming row and value.
        """
        raw = chunk.frame[self.columns[0]] if self._expression is None else self._evaluate(chunk, self._expression)
        if raw.dtype == pl.Boolean:
            labels = raw.cast(pl.Float32)
        elif raw.dtype == pl.String:
            labels = raw.cast(pl.Float32, strict=False)
            if labels.null_count():
                text = raw.str.strip_chars().str.to_lowercase()
                labels = text.replace({"true": "1", "false": "0"}).cast(pl.Float32, strict=False)
        elif raw.dtype.is_numeric():
            labels = raw.cast(pl.Float32)
        else:
            raise CtrkitError(
                f"{self._place}: '{self.text}' is of type {raw.dtype}", "It must be 0 and 1; write an expression such as 'rating >= 4'"
            )
        wrong = ((labels != 0) & (labels != 1)).fill_null(True)
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            value = raw[row]
            if value is None:
                raise CtrkitError(
                    f"{self._place}: '{self.text}' is missing in {chunk.place(row)}", "Every row needs one: remove those rows"
                )
            raise CtrkitError(
                f"{self._place}: '{self.text}' is {value!r} in {chunk.place(row)}",
                f"It must be 0 or 1; for other values write an expression, such as '{self.columns[0]} >= 1'",
            )
        return labels.alias(self._column)

    def _evaluate(self, chunk: Chunk, expression: pl.Expr) -> pl.Series:
        frame = chunk.frame.select(self.columns)
        if self._numeric is None:
            texts = [name for name in self.columns if frame.schema[name] == pl.String]
            self._numeric = [name for name in texts if _first_non_number(frame[name]) is None]
        for name in self._numeric:
            row = _first_non_number(frame[name])
            if row is not None:
                raise CtrkitError(
                    f"{self._place}: '{self.text}' needs numbers, and '{name}' is {frame[name][row]!r} in {chunk.place(row)}",
                    "Mend or remove that row",
                )
        try:
            return frame.select(pl.col(self._numeric).cast(pl.Float64), pl.exclude(self._numeric)).select(expression).to_series()
        except pl.exceptions.PolarsError as error:
            raise CtrkitError(
                f"{self._place}: '{self.text}' cannot be computed: {str(error).splitlines()[0]}",
                "Compare numbers with numbers and text with 'text'",
            ) from error


def _of_single_rows(expression: pl.Expr) -> bool:
    """Whether each row's value comes from that row alone: no aggregate, no window, no list spread over rows."""
    with warnings.catch_warnings(action="ignore"):  # that JSON is for looking at, not for keeping
        tree = json.loads(expression.meta.serialize(format="json"))
    return _OVER_ROWS.isdisjoint(_operations(tree))


def _operations(node: Any) -> Iterator[str]:
    """Names of all that an expression does, without its columns and literals."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for part in node:
            yield from _operations(part)
    elif isinstance(node, dict):
        for name, content in node.items():
            yield name
            if name not in ("Column", "Literal"):
                yield from _operations(content)


def _first_non_number(series: pl.Series) -> int | None:
    """Index of the first cell that is neither null nor a number."""
    if series.dtype != pl.String:
        return None
    wrong = series.is_not_null() & series.cast(pl.Float64, strict=False).is_null()
    return int(wrong.arg_max() or 0) if wrong.any() else None


class TimeRule:
    """The time column as Float64 that orders rows: numbers as they are, dates and times as microseconds.

    Text is read as numbers if the first chunk holds nothing else, or as dates and times.

    Args:
        setting: where the column is named in the config, for errors.
    """

    def __init__(self, column: str, setting: str = "split.column") -> None:
        self.column = column
        self.setting = setting
        self._text_is_number: bool | None = None

    def values(self, chunk: Chunk) -> pl.Series:
        """Times of the chunk's rows.

        Raises:
            CtrkitError: a time that is missing or unreadable, naming its row.
        """
        raw = chunk.frame[self.column]
        times = self._times(raw).alias(TIME)
        wrong = times.is_null() | times.is_nan()
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            value = "missing" if raw[row] is None else repr(raw[row])
            raise CtrkitError(
                f"{self.setting}: '{self.column}' is {value} in {chunk.place(row)}",
                "Every row needs a time: a number, a date, or a date and time",
            )
        return times

    def _times(self, raw: pl.Series) -> pl.Series:
        if isinstance(raw.dtype, pl.Date | pl.Datetime):
            return raw.dt.epoch("us").cast(pl.Float64)
        if raw.dtype.is_numeric() or raw.dtype == pl.Null:
            return raw.cast(pl.Float64)
        if raw.dtype != pl.String:
            raise CtrkitError(f"{self.setting}: '{self.column}' is of type {raw.dtype}", "It must be numbers, dates, or dates and times")
        if self._text_is_number is None:
            self._text_is_number = _first_non_number(raw) is None
        if self._text_is_number:
            return raw.cast(pl.Float64, strict=False)
        try:
            return raw.str.to_datetime(strict=False, time_unit="us").dt.epoch("us").cast(pl.Float64)
        except pl.exceptions.PolarsError:  # no known way of writing a date
            return pl.Series(self.column, [None] * len(raw), dtype=pl.Float64)


def group_ids(values: pl.Series, setting: str = "group") -> pl.Series:
    """A 64-bit hash of each value: equal for equal values, all that grouping needs. Where there is none, ``NO_GROUP``.

    Args:
        setting: where the column is named in the config, for errors.

    Raises:
        CtrkitError: the column is of a type that cannot be grouped by.
    """
    check_key(values.dtype, f"{setting}: '{values.name}'")
    texts = values.to_frame().select(plain_text(values.name, values.dtype)).to_series()
    none = texts.is_null() | (texts == "")
    return texts.fill_null("").hash(seed=0).reinterpret(signed=True).set(none, NO_GROUP).alias(GROUP)
