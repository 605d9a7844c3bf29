"""OptInter: how each pair of fields is modelled, and which of a row's pairs of values have a vector of their own."""

import math
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, cast

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from ctrkit.explain.decisions.summary import TITLE
from ctrkit.explain.drawing import LESS, LINE, MORE, Picture, finished, short, styled, words
from ctrkit.explain.markup import Number, Shown, figure, folded, table
from ctrkit.explain.raw import RawRow
from ctrkit.models.base import RankingModel
from ctrkit.models.optinter import METHODS, OptInter

_COLOURS = dict(zip(METHODS, (LINE, LESS, MORE), strict=True))


class ChosenPairs:
    """The view of a decision of ``ctrkit.models.optinter``."""

    def __init__(self, model: RankingModel, description: dict[str, Any]) -> None:
        self.crosses, self.description = cast(OptInter, model).crosses, description

    def whole(self) -> "PairSection":
        pairs = [ChosenPair(pair["fields"][0], pair["fields"][1], pair["method"], pair["rows"]) for pair in self.description["pairs"]]
        return PairSection(self.description["summary"], self.description["fields"], pairs)

    def of_row(self, row: RawRow) -> "PairsOfRow | None":
        if self.crosses is None:
            return None
        rows = {field.name: field.rows for field in self.crosses.inputs.id_fields}
        pairs = []
        for (first, second), keys in self.crosses.frequent.items():
            (a,), (b,) = row.elements[first], row.elements[second]
            own = bool((keys == a.id * rows[second] + b.id).any())
            pairs.append(PairOfValues(first, a.value, second, b.value, own))
        return PairsOfRow(pairs)

    def pruned(self, row: RawRow) -> set[str]:
        return set()


@dataclass(frozen=True)
class ChosenPair:
    """``rows`` of the table of a memorised pair."""

    first: str
    second: str
    method: str
    rows: int


@dataclass(frozen=True)
class PairSection:
    """All pairs of ``fields``."""

    summary: str
    fields: list[str]
    pairs: list[ChosenPair]
    title: str = TITLE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def show(self, name: str) -> Shown:
        picture = _choice_map(self, name)
        memorised = sorted((pair for pair in self.pairs if pair.rows), key=lambda pair: -pair.rows)
        rows = [(pair.first, pair.second, Number(f"{pair.rows:,}")) for pair in memorised]
        html = (
            f"<p>The search chose, {escape(self.summary)}.</p>{figure(picture)}"
            '<p class="faint">Naive: the pair is left to the network. Factorised: the vectors of the two values are multiplied. Memorised: '
            "each frequent pair of values has a vector of its own, the others share a few.</p>"
            + (
                folded(f"The {len(rows)} memorised pairs and the rows of their tables", table(("field", "other", "rows"), rows))
                if rows
                else ""
            )
        )
        return Shown(html, [picture])


@dataclass(frozen=True)
class PairOfValues:
    """Two values of a row, raw; ``own``: they were frequent enough together to have a vector of their own."""

    first: str
    first_value: Any
    second: str
    second_value: Any
    own: bool


@dataclass(frozen=True)
class PairsOfRow:
    """The memorised pairs of a row."""

    pairs: list[PairOfValues]
    title: str = TITLE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def show(self, name: str) -> Shown:
        own = sum(pair.own for pair in self.pairs)
        rows = [
            (
                f"{pair.first} = {words(pair.first_value)}",
                f"{pair.second} = {words(pair.second_value)}",
                "its own" if pair.own else "shared",
            )
            for pair in sorted(self.pairs, key=lambda pair: not pair.own)
        ]
        html = (
            f"<p>Of the {len(self.pairs)} memorised pairs of this row {own} were seen often enough to have a vector of their own.</p>"
            + folded("The pairs", table(("value", "other value", "vector"), rows))
        )
        return Shown(html, [])


def _choice_map(section: PairSection, name: str) -> Picture:
    """Field by field, a colour a way."""
    count = len(section.fields)
    place = {field: i for i, field in enumerate(section.fields)}
    chosen = np.full((count, count), np.nan)
    for pair in section.pairs:
        i, j = place[pair.first], place[pair.second]
        chosen[i, j] = chosen[j, i] = METHODS.index(pair.method)
    side = min(7.0, max(2.6, 0.19 * count + 1.2))
    with styled(side + 1.8, side) as drawn:
        axes = drawn.subplots()
        axes.imshow(chosen, cmap=ListedColormap(list(_COLOURS.values())), vmin=0, vmax=len(METHODS) - 1, interpolation="nearest")
        step = max(1, math.ceil(count / 45))
        size = min(9.0, max(5.0, 300 / count))
        names = [short(field, 24) for field in section.fields][::step]
        axes.set_xticks(range(0, count, step), names, rotation=90, fontsize=size)
        axes.set_yticks(range(0, count, step), names, fontsize=size)
        axes.set_xticks(np.arange(0.5, count - 1), minor=True)
        axes.set_yticks(np.arange(0.5, count - 1), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.7)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        found = {way: sum(pair.method == way for pair in section.pairs) for way in METHODS}
        handles = [Patch(color=colour, label=f"{way} ({found[way]})") for way, colour in _COLOURS.items()]
        drawn.legend(handles=handles, loc="outside right upper", frameon=False)
        return finished(name, drawn)
