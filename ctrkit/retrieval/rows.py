"""Encoded features of many users, items or events, in memory, a column a feature; and what the towers take of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ctrkit.schema import Inputs

Bags = tuple[np.ndarray, np.ndarray]
"""Values and offsets: row r has ``values[offsets[r] : offsets[r + 1]]``."""


@dataclass(frozen=True)
class Rows:
    """Columns of one length.

    Attributes:
        count: rows.
        ids: of single-valued id fields, int64 ``[rows]``.
        bags: of multi-valued ones.
        numbers: of numeric fields, float32 ``[rows]``; NaN is missing.
    """

    count: int
    ids: Mapping[str, np.ndarray]
    bags: Mapping[str, Bags]
    numbers: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, encoded: pl.DataFrame, inputs: Inputs) -> Rows:
        """The columns of those fields."""
        ids, bags = {}, {}
        for field in inputs.id_fields:
            column = encoded[field.name]
            if field.multi_valued:
                values = column.explode(empty_as_null=False).to_numpy().astype(np.int64, copy=False)
                bags[field.name] = values, offsets_of(column.list.len().to_numpy())
            else:
                ids[field.name] = column.to_numpy()
        numbers = {name: encoded[name].to_numpy() for name in inputs.numeric_fields}
        return cls(encoded.height, ids, bags, numbers)

    def take(self, index: np.ndarray) -> Rows:
        """Some rows, in that order, repeated as often as they are named."""
        return Rows(
            len(index),
            {name: column[index] for name, column in self.ids.items()},
            {name: take_bags(bags, index) for name, bags in self.bags.items()},
            {name: column[index] for name, column in self.numbers.items()},
        )

    def beside(self, other: Rows) -> Rows:
        """The columns of both, which have the same rows."""
        return Rows(self.count, {**self.ids, **other.ids}, {**self.bags, **other.bags}, {**self.numbers, **other.numbers})

    def dense(self, inputs: Inputs) -> np.ndarray:
        """float32 ``[rows, numeric fields]``."""
        columns = [self.numbers[name] for name in inputs.numeric_fields]
        return np.stack(columns, axis=1) if columns else np.zeros((self.count, 0), np.float32)


def stack(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one part after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return Rows(
        sum(part.count for part in parts),
        {name: np.concatenate([part.ids[name] for part in parts]) for name in first.ids},
        {name: _joined([part.bags[name] for part in parts]) for name in first.bags},
        {name: np.concatenate([part.numbers[name] for part in parts]) for name in first.numbers},
    )


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 ``[rows + 1]``."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def take_bags(bags: Bags, index: np.ndarray) -> Bags:
    values, offsets = bags
    return slices(values, offsets[index], offsets[index + 1])


def slices(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Bags:
    """``values[starts[r] : stops[r]]`` of each row."""
    taken = offsets_of(stops - starts)
    return values[np.arange(taken[-1]) + np.repeat(starts - taken[:-1], np.diff(taken))], taken


def _joined(parts: Sequence[Bags]) -> Bags:
    return np.concatenate([values for values, _ in parts]), offsets_of(np.concatenate([np.diff(offsets) for _, offsets in parts]))
