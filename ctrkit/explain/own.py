"""What a model itself shows of how it reads rows, as sections: over a sample, and of one row."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ctrkit.explain.explanation import Section
from ctrkit.explain.lookups import Lookups
from ctrkit.explain.maps import FieldMap, MapSection
from ctrkit.explain.places import HistorySection, PlaceSection
from ctrkit.explain.raw import RawRow
from ctrkit.explain.subject import Subject
from ctrkit.models.base import FieldMaps, PlaceWeights

_ROWS_AT_A_TIME = 512


def sample_sections(subject: Subject, rows: Lookups) -> list[Section]:
    """Means over the rows."""
    maps: dict[str, list[FieldMaps]] = {}
    places: dict[str, list[PlaceWeights]] = {}
    with torch.no_grad():
        for part in rows.split(_ROWS_AT_A_TIME):
            for shown in subject.arch.explanations(part.embeddings, part.dense):
                if isinstance(shown, FieldMaps):
                    maps.setdefault(shown.title, []).append(_summed(shown))
                else:
                    places.setdefault(shown.sequence, []).append(shown)
    attended = [PlaceSection.of(_joined(parts), rows.embeddings[f"mask/{name}"].cpu().numpy()) for name, parts in places.items()]
    return [*(_mean_maps(subject, parts, rows.rows) for parts in maps.values()), *attended]


def row_sections(subject: Subject, row: Lookups, raw: RawRow) -> list[Section]:
    """Of one row."""
    with torch.no_grad():
        shown = subject.arch.explanations(row.embeddings, row.dense)
    return [
        _mean_maps(subject, [_summed(one)], 1) if isinstance(one, FieldMaps) else HistorySection.of(one, raw.elements[one.sequence])
        for one in shown
    ]


def _summed(shown: FieldMaps) -> FieldMaps:
    """Over the rows: maps ``[fields, fields]``."""
    return replace(shown, maps={name: values.double().sum(0) for name, values in shown.maps.items()})


def _mean_maps(subject: Subject, parts: Sequence[FieldMaps], rows: int) -> MapSection:
    first = parts[0]
    maps = [FieldMap(name, torch.stack([part.maps[name] for part in parts]).sum(0).cpu().numpy() / rows) for name in first.maps]
    return MapSection(first.title, first.about, first.neutral, subject.fields, maps, rows)


def _joined(parts: Sequence[PlaceWeights]) -> PlaceWeights:
    return replace(parts[0], weights={name: torch.cat([part.weights[name] for part in parts]) for name in parts[0].weights})
