"""OptFS: which feature values the search kept, of all of them and of one row's."""

from dataclasses import asdict, dataclass
from html import escape
from typing import Any, cast

import numpy as np
from matplotlib.ticker import PercentFormatter

from ctrkit.explain.decisions.summary import TITLE
from ctrkit.explain.drawing import LINE, OWN, Picture, bare, finished, short, styled, words
from ctrkit.explain.markup import Number, Shown, figure, folded, table
from ctrkit.explain.raw import RawRow
from ctrkit.models.base import RankingModel
from ctrkit.models.optfs import OptFS

SHOWN_FEATURES = 40


class KeptValues:
    """The view of a decision of ``ctrkit.models.optfs``."""

    def __init__(self, model: RankingModel, description: dict[str, Any]) -> None:
        decision = cast(OptFS, model).decision
        assert decision is not None
        self.decision, self.description = decision, description

    def whole(self) -> "KeptSection":
        features = [KeptRatio(name, **counts) for name, counts in self.description["fields"].items()]
        return KeptSection(self.description["summary"], sorted(features, key=lambda f: (-f.ratio, -f.kept)))

    def of_row(self, row: RawRow) -> "KeptOfRow":
        values = []
        for name, value in row.values.items():
            if name in row.elements:
                values += [Value(name, e.value, bool(self.decision[name][e.id])) for e in row.elements[name]]
            else:
                values.append(Value(name, value, bool(self.decision[name])))
        return KeptOfRow(values)

    def pruned(self, row: RawRow) -> set[str]:
        values = self.of_row(row).values
        return {value.feature for value in values} - {value.feature for value in values if value.kept}


@dataclass(frozen=True)
class KeptRatio:
    """Of a feature's ``values``, the one for unknown values among them, ``kept`` are left; a number is one value."""

    feature: str
    values: int
    kept: int
    ratio: float


@dataclass(frozen=True)
class KeptSection:
    """``features``: the one of which most is left first."""

    summary: str
    features: list[KeptRatio]
    title: str = TITLE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def show(self, name: str) -> Shown:
        picture = _ratio_picture(self.features[:SHOWN_FEATURES], name)
        gone = [escape(f.feature) for f in self.features if not f.kept]
        without = f" Of {', '.join(gone)} nothing is left: the model does without." if gone else ""
        more = len(self.features) - SHOWN_FEATURES
        left_out = f" {more} features of which less is kept are in the table and in the JSON only." if more > 0 else ""
        rows = [(f.feature, Number(f"{f.values:,}"), Number(f"{f.kept:,}"), Number(f"{f.ratio:.2%}")) for f in self.features]
        html = (
            f"<p>The search {escape(self.summary)}.{without}</p>{figure(picture)}"
            f'<p class="faint">The share of each feature\'s values that the model was then trained on. All values that training had unknown '
            f"count as one, and so does a number, which is kept or not. Whatever was pruned has no influence.{left_out}</p>"
            + folded(f"All {len(self.features)} features in figures", table(("feature", "values", "kept", "ratio"), rows))
        )
        return Shown(html, [picture])


@dataclass(frozen=True)
class Value:
    """A value of a row, raw; None is missing."""

    feature: str
    value: Any
    kept: bool


@dataclass(frozen=True)
class KeptOfRow:
    """All values of a row that are looked up, feature by feature; several of a bag."""

    values: list[Value]
    title: str = TITLE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def show(self, name: str) -> Shown:
        kept, pruned = ([v for v in self.values if v.kept is which] for which in (True, False))
        html = (
            f"<p>Of this row's {len(self.values)} values {len(kept)} were kept and {len(pruned)} pruned.</p>"
            f"<p><b>Kept</b> {_chips(kept, 'chip')}</p><p><b>Pruned</b> {_chips(pruned, 'chip pruned')}</p>"
            '<p class="faint">A pruned value has no influence: any other pruned value in its place, and the prediction is the same. What its '
            "feature contributes above, if anything, is that none of the kept values stands there.</p>"
        )
        return Shown(html, [])


def _chips(values: list[Value], style: str) -> str:
    return " ".join(f'<span class="{style}">{escape(v.feature)} = {escape(words(v.value))}</span>' for v in values) or "none"


def _ratio_picture(features: list[KeptRatio], name: str) -> Picture:
    at = np.arange(len(features))
    with styled(10, 0.75 + 0.235 * len(features)) as drawn:
        axes = drawn.subplots()
        axes.barh(at, [1] * len(features), color=LINE, height=0.62)
        axes.barh(at, [f.ratio for f in features], color=OWN, height=0.62)
        axes.set_yticks(at, [short(f.feature, 30) for f in features])
        axes.set_ylim(len(features) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        for place, f in enumerate(features):
            axes.annotate(
                f"{f.kept:,} of {f.values:,}", (1, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5,
                annotation_clip=False,
            )  # fmt: skip
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title("kept values", loc="left", fontsize=10, color=OWN, weight="bold")
        bare(axes, "x")
        return finished(name, drawn)
