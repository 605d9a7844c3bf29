"""Rows as people know them: raw values beside the ids that the model looks up for them."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from ctrkit.export.writer import json_rows
from ctrkit.schema import Feature, Vocabulary
from ctrkit.transforms import FittedTransforms
from ctrkit.transforms.bag import kept_elements


@dataclass(frozen=True)
class Element:
    """A value that is looked up.

    Attributes:
        value: raw, as a client would send it; None is missing.
        unseen: the training rows' vocabulary does not hold it, so that the model only sees "unknown".
    """

    value: Any
    id: int
    unseen: bool


@dataclass(frozen=True)
class RawRow:
    """One row.

    Attributes:
        values: of each feature, raw, as a client would send it; None is missing.
        elements: of each id field, the values that are looked up: one, or those of a bag or a sequence that are kept, in their order.
    """

    values: dict[str, Any]
    elements: dict[str, list[Element]]


def raw_rows(transforms: FittedTransforms, raw: pl.DataFrame, encoded: pl.DataFrame) -> list[RawRow]:
    """Canonical raw rows beside what ``transforms`` made of them."""
    values = json_rows(raw)
    features = {field.name: transforms[field.name].feature for field in transforms.inputs.id_fields}
    bags = [feature for feature in features.values() if feature.multi_valued]
    looked_up = json_rows(raw.with_columns(kept_elements(feature) for feature in bags))
    ids = encoded.select(list(features)).to_dicts()
    return [
        RawRow(row, {name: _elements(feature, kept[name], of_row[name]) for name, feature in features.items()})
        for row, kept, of_row in zip(values, looked_up, ids, strict=True)
    ]


def _elements(feature: Feature, values: Any, ids: Any) -> list[Element]:
    pairs = zip(values, ids, strict=True) if feature.multi_valued else [(values, ids)]
    return [Element(value, number, _unseen(feature, value, number)) for value, number in pairs]


def _unseen(feature: Feature, value: Any, number: int) -> bool:
    return isinstance(feature.transform, Vocabulary) and value not in (None, "") and number <= feature.transform.oov_buckets
