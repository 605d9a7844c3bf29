"""Rows as people write them (JSON objects) -> columns -> the tensors an exported graph takes.

Strict: a value of the wrong type is an error that names row and field, never a guess. A feature that is missing or
null counts as missing.

| feature | accepted | becomes |
|---|---|---|
| categorical string | string, integer (its decimal text) | text, missing = ``""`` |
| categorical int | integer within int64 | int64, missing = ``MISSING_INT`` |
| numeric | integer, float | float64, missing = NaN |
| multi-valued, sequence | list of such values, or text split at the feature's separator | values and lengths, missing = empty bag |
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrkit.errors import CtrkitError, nearest
from ctrkit.schema import MISSING_INT, Feature, Kind

if TYPE_CHECKING:
    import polars as pl

Bag = tuple[np.ndarray, np.ndarray]
"""A multi-valued column: values ``[total]`` and lengths int64 ``[rows]``."""

Columns = Mapping[str, np.ndarray | Bag]
"""One canonical raw column a feature, under its name."""

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxlong = 80
_NUMERIC, _CATEGORICAL = Kind.NUMERIC, Kind.CATEGORICAL  # an enum's members take a while to look up
_NUMBERS, _INTEGERS, _TEXTS = {int, float, type(None)}, {int}, {str, type(None)}
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


class RowError(CtrkitError):
    """A row that does not fit the features.

    Attributes:
        row: its index in the list of rows, None when a whole column is at fault.
        field: the field at fault, None when the row as a whole is.
        reason: what is wrong with it.
    """

    def __init__(self, row: int | None, field: str | None, reason: str) -> None:
        self.row = row
        self.field = field
        self.reason = reason
        where = [f"{word} {shown}" for word, shown in (("row", row), ("field", field and repr(field))) if shown is not None]
        super().__init__(f"{', '.join(where)}: {reason}")


class NotFinite(RowError):
    """A row of which a model made something else than finite numbers.

    Attributes:
        rows: all such rows, int64.
    """

    def __init__(self, field: str | None, reason: str, rows: np.ndarray) -> None:
        super().__init__(int(rows[0]), field, reason)
        self.rows = rows


def input_names(feature: Feature) -> tuple[str, ...]:
    """The graph's inputs for a feature: ``name``, or ``name.values`` and ``name.lengths`` for a multi-valued one."""
    if feature.multi_valued:
        return f"{feature.name}.values", f"{feature.name}.lengths"
    return (feature.name,)


def reads(feature: Feature, given: Feature) -> bool:
    """Whether a feature can take the values of another one: of the same kind, and as integers or as text if those are given."""
    numbers = feature.kind is Kind.NUMERIC, given.kind is Kind.NUMERIC
    return numbers[0] == numbers[1] and feature.multi_valued == given.multi_valued and (feature.dtype, given.dtype) != ("int", "string")


def columns_to_feed(columns: Columns, features: Sequence[Feature]) -> dict[str, np.ndarray]:
    """Columns -> tensors under the graph's input names.

    Raises:
        CtrkitError: a feature has no column.
    """
    feed: dict[str, np.ndarray] = {}
    for feature in features:
        if feature.name not in columns:
            raise CtrkitError(f"no column for the feature '{feature.name}'", f"Columns given: {', '.join(columns)}")
        column = columns[feature.name]
        if isinstance(column, tuple):
            feed.update(zip(input_names(feature), column, strict=True))
        else:
            feed[feature.name] = column
    return feed


def frame_to_columns(frame: "pl.DataFrame", features: Sequence[Feature]) -> dict[str, np.ndarray | Bag]:
    """Canonical Polars columns -> columns of NumPy arrays. Strings become object arrays, as onnxruntime takes them."""
    columns: dict[str, np.ndarray | Bag] = {}
    for feature in features:
        series = frame[feature.name]
        if feature.multi_valued:
            lengths = series.list.len().to_numpy().astype(np.int64)
            columns[feature.name] = series.explode(empty_as_null=False).to_numpy(), lengths
        else:
            columns[feature.name] = series.to_numpy()
    return columns


def rows_to_columns(rows: Sequence[Any], features: Sequence[Feature]) -> dict[str, np.ndarray | Bag]:
    """JSON objects -> one canonical raw column a feature.

    Raises:
        RowError: a row is no object, holds an unknown feature or a value of the wrong type.
    """
    known = {f.name for f in features}
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RowError(index, None, f"expected an object, got {_shown(row)}")
        if not row.keys() <= known:
            field = next(name for name in row if name not in known)
            raise RowError(index, str(field), f"unknown feature. {nearest(str(field), list(known))}")
    columns = _together(rows, features)
    return {f.name: columns[f.name] if f.name in columns else _column(f, [row.get(f.name) for row in rows]) for f in features}


def lists_to_columns(lists: Mapping[str, Any], features: Sequence[Feature]) -> dict[str, np.ndarray | Bag]:
    """A JSON list of values a feature, all of one length -> one canonical raw column a feature. A feature without a list is missing.

    Raises:
        RowError: an unknown feature, no list, a list of another length than the first, or a value of the wrong type.
    """
    known = {f.name: f for f in features}
    first, rows = next(((name, len(values)) for name, values in lists.items() if isinstance(values, list)), ("", 0))
    for name, values in lists.items():
        if name not in known:
            raise RowError(None, name, f"unknown feature. {nearest(name, list(known))}")
        if not isinstance(values, list):
            raise RowError(None, name, f"expected a list of values, got {_shown(values)}")
        if len(values) != rows:
            raise RowError(None, name, f"{len(values)} values where '{first}' has {rows}")
    absent = [None] * rows
    return {f.name: _column(f, lists.get(f.name, absent)) for f in features}


def _together(rows: Sequence[dict[str, Any]], features: Sequence[Feature]) -> dict[str, np.ndarray]:
    """The columns of all features of one type at once, where no value needs a look of its own: some microseconds a request, not a feature."""
    names: dict[str, list[str]] = {"number": [], "string": [], "int": []}
    for feature in features:
        kind = feature.kind
        if kind is _NUMERIC or kind is _CATEGORICAL:
            names["number" if kind is _NUMERIC else feature.dtype].append(feature.name)
    columns: dict[str, np.ndarray] = {}
    for type_, same in names.items():
        array = _plain(type_, [row.get(name) for name in same for row in rows])
        if array is not None:
            columns.update(zip(same, array.reshape(len(same), len(rows)), strict=True))
    return columns


def _plain(type_: str, values: list[Any]) -> np.ndarray | None:
    """An array of values that all have the types that JSON gives such a feature; None where each must be looked at."""
    types = set(map(type, values))
    try:
        if type_ == "number":
            return np.array(values, np.float64) if types <= _NUMBERS else None  # NumPy makes NaN of None
        if type_ == "int":
            return np.array(values, np.int64) if types <= _INTEGERS else None
    except OverflowError:
        return None
    if not types <= _TEXTS:
        return None
    texts = [value or "" for value in values]
    return np.array(texts, object) if "".join(texts).isascii() else None


def _column(feature: Feature, values: list[Any]) -> np.ndarray | Bag:
    type_ = "number" if feature.kind is _NUMERIC else feature.dtype
    if not feature.multi_valued and (column := _plain(type_, values)) is not None:
        return column
    if type_ == "number":
        return np.array(_convert(feature, values, _number), np.float64)
    read, dtype = (_text, object) if feature.dtype == "string" else (_integer, np.int64)
    if feature.kind is _CATEGORICAL:
        return np.array(_convert(feature, values, read), dtype)
    bags = _convert(feature, values, lambda value: _bag(value, feature, read))
    return np.array([element for bag in bags for element in bag], dtype), np.array([len(bag) for bag in bags], np.int64)


def _convert(feature: Feature, values: list[Any], read: Callable[[Any], Any]) -> list[Any]:
    try:
        return [read(value) for value in values]
    except ValueError:
        for row, value in enumerate(values):
            try:
                read(value)
            except ValueError as error:
                raise RowError(row, feature.name, str(error)) from None
        raise


def _text(value: Any) -> str:
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value)
        return value
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"expected a string, got {_shown(value)}")


def _check_unicode(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected a string, got {value!r}, which is not valid Unicode") from None


def _integer(value: Any) -> int:
    if value is None:
        return MISSING_INT
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected an integer, got {_shown(value)}")
    if not _INT_MIN <= value <= _INT_MAX:
        raise ValueError(f"expected an integer of 64 bits, got {value}")
    return value


def _number(value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"expected a number, got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"expected a number, got {value}, which is beyond 64-bit floats") from None


def _bag(value: Any, feature: Feature, read: Callable[[Any], Any]) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        parts: list[Any] = value.split(feature.separator)
        return [_parsed(part) for part in parts] if feature.dtype == "int" else [read(part) for part in parts]
    if not isinstance(value, list):
        raise ValueError(f"expected a list, or text separated by {feature.separator!r}, got {_shown(value)}")
    return [read(element) for element in value]


def _parsed(text: str) -> int:
    text = text.strip()
    if not text:
        return MISSING_INT
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f"expected integers, got {_shown(text)}")
    return _integer(int(text))


def _shown(value: Any) -> str:
    """A received value and its JSON type, for a message; never all of a long or deep one."""
    kinds = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "object"}
    text = _shortened.repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kinds.get(type(value), type(value).__name__)})"


def check_finite(found: np.ndarray, columns: Columns, features: Sequence[Feature]) -> None:
    """Raises NotFinite, which names the largest number of the first row of which a model made something else than finite numbers: such a
    one is the cause as a rule.

    Args:
        found: what it made, ``[rows]`` or ``[rows, any]``.
        columns: the rows.
    """
    finite = np.isfinite(found)
    if finite.all():
        return
    rows = np.flatnonzero(~finite.reshape(len(found), -1).all(1))
    raise NotFinite(*_largest(int(rows[0]), columns, features), rows)


def _largest(row: int, columns: Columns, features: Sequence[Feature]) -> tuple[str | None, str]:
    """The field of a row's largest number, and what is to be said of it."""
    numbers = {feature.name: float(columns[feature.name][row]) for feature in features if feature.kind is Kind.NUMERIC}
    present = [name for name, number in numbers.items() if math.isfinite(number)]
    largest = max(present, key=lambda name: abs(numbers[name]), default=None)
    if largest is None:
        return None, "the model makes no finite number of this row: leave it out"
    told = f"the model makes no finite number of this row, whose largest number is {numbers[largest]:g}"
    return largest, f"{told}: correct it, or leave it out where it is not known"
