"""What a model makes of a history, place by place: over a sample, and value by value in one row."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, MultipleLocator

from ctrkit.explain.drawing import FAINT, INK, LINE, OWN, Picture, bare, finished, short, styled, words
from ctrkit.explain.markup import Number, Shown, figure, folded, table
from ctrkit.explain.raw import Element
from ctrkit.models.base import PlaceWeights

SHOWN_VALUES = 20


@dataclass(frozen=True)
class Place:
    """Of the rows of a sample whose history reaches so far.

    Attributes:
        place: from the end, 1 is the most recent.
        rows: so many of them; of the means of none there is None.
        weight: mean over the rows and over all maps.
        even: mean of what every place would have, were they all alike; None where weights do not sum to 1.
        weights: mean of each map.
    """

    place: int
    rows: int
    weight: float | None
    even: float | None
    weights: dict[str, float | None]


@dataclass(frozen=True)
class PlaceSection:
    """Mean weights over a sample.

    Attributes:
        rows: of the sample.
        places: the most recent first.
    """

    sequence: str
    about: str
    rows: int
    places: list[Place]

    @property
    def title(self) -> str:
        return f"Attention to {self.sequence}"

    @classmethod
    def of(cls, shown: PlaceWeights, mask: np.ndarray) -> "PlaceSection":
        """
        Args:
            shown: of the sample.
            mask: ``[rows, length]``, where there is a value.
        """
        weights = {name: w.double().cpu().numpy() for name, w in shown.weights.items()}
        even = np.broadcast_to(1 / (mask.sum(1, keepdims=True) + 1), mask.shape) if shown.normalised else None
        places = []
        for place in range(1, mask.shape[1] + 1):
            there = mask[:, -place]
            means = {name: _mean(w[there, -place]) for name, w in weights.items()}
            overall = _mean(np.stack([w[there, -place] for w in weights.values()]))
            places.append(Place(place, int(there.sum()), overall, None if even is None else _mean(even[there, -place]), means))
        return cls(shown.sequence, shown.about, len(mask), places)

    def to_json(self) -> dict[str, Any]:
        places = [asdict(place) for place in self.places]
        return {"title": self.title, "about": self.about, "sequence": self.sequence, "rows": self.rows, "places": places}

    def show(self, name: str) -> Shown:
        reached = [place for place in self.places if place.rows]
        if not reached:
            return Shown(f"<p>None of the {self.rows:,} rows has anything in its {escape(self.sequence)}.</p>", [])
        picture = _place_picture(self, reached, name)
        several = list(reached[0].weights) if len(reached[0].weights) > 1 else []
        dashed = " Dashed: what each would have, were all places alike." if reached[0].even is not None else ""
        lines = f" A thin line is one of the {len(several)} heads, the bars are their mean." if several else ""
        rows = [
            (
                str(place.place),
                Number(f"{place.rows:,}"),
                Number(f"{place.weight:.5f}"),
                *(Number(f"{place.weights[column]:.5f}") for column in several),
            )
            for place in reached
        ]
        html = (
            f"<p>{escape(self.about)}</p>{figure(picture)}"
            f'<p class="faint">Above: the mean weight of the value at each place, over the rows whose history reaches so far; 1 is the most '
            f"recent value.{dashed}{lines} Below: how many of the {self.rows:,} rows those are.</p>"
            + folded(f"All {len(reached)} places in figures", table(("place from the end", "rows", "mean weight", *several), rows))
        )
        return Shown(html, [picture])


@dataclass(frozen=True)
class HistoryValue:
    """A value of one row's history.

    Attributes:
        place: from the end, 1 is the most recent.
        value, unseen: as of ``ctrkit.explain.raw.Element``.
        weight: mean over all maps.
        weights: of each map.
    """

    place: int
    value: Any
    unseen: bool
    weight: float
    weights: dict[str, float]


@dataclass(frozen=True)
class HistorySection:
    """The weights of one row's history, the most recent value first."""

    sequence: str
    about: str
    values: list[HistoryValue]

    @property
    def title(self) -> str:
        return f"Attention to {self.sequence}"

    @classmethod
    def of(cls, shown: PlaceWeights, history: Sequence[Element]) -> "HistorySection":
        """
        Args:
            shown: of one row.
            history: its values, the most recent last.
        """
        values = []
        for place, element in enumerate(reversed(history), 1):
            weights = {name: float(w[0, -place]) for name, w in shown.weights.items()}
            values.append(HistoryValue(place, element.value, element.unseen, float(np.mean(list(weights.values()))), weights))
        return cls(shown.sequence, shown.about, values)

    def to_json(self) -> dict[str, Any]:
        values = [asdict(value) for value in self.values]
        return {"title": self.title, "about": self.about, "sequence": self.sequence, "values": values}

    def show(self, name: str) -> Shown:
        if not self.values:
            return Shown(f"<p>This row has nothing in its {escape(self.sequence)}.</p>", [])
        picture = _history_picture(self.values, name)
        several = list(self.values[0].weights) if len(self.values[0].weights) > 1 else []
        mean = f", mean over {len(several)} heads" if several else ""
        left_out = f" The {len(self.values) - SHOWN_VALUES} before them are in the table." if len(self.values) > SHOWN_VALUES else ""
        rows = [
            (
                str(v.place),
                words(v.value) + (" (unseen in training)" if v.unseen else ""),
                Number(f"{v.weight:.5f}"),
                *(Number(f"{v.weights[column]:.5f}") for column in several),
            )
            for v in self.values
        ]
        html = (
            f"<p>{escape(self.about)}</p>{figure(picture)}"
            f'<p class="faint">The weight of each value of this row\'s history{mean}, the most recent on top.{left_out}</p>'
            + folded(f"All {len(self.values)} values in figures", table(("place from the end", "raw value", "weight", *several), rows))
        )
        return Shown(html, [picture])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _place_picture(section: PlaceSection, reached: Sequence[Place], name: str) -> Picture:
    at = [place.place for place in reached]
    with styled(10, 3.9) as drawn:
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.bar(at, [place.weight or 0 for place in reached], color=OWN, width=0.7)
        if len(reached[0].weights) > 1:
            for one in reached[0].weights:
                above.plot(at, [place.weights[one] or 0 for place in reached], color=INK, linewidth=0.7, alpha=0.55)
        if reached[0].even is not None:
            above.plot(at, [place.even or 0 for place in reached], color=INK, linewidth=1.1, linestyle="--")
        above.axhline(0, color=FAINT, linewidth=0.8)
        above.set_ylabel("mean weight")
        below.bar(at, [place.rows for place in reached], color=LINE, width=0.7)
        below.set(ylabel="rows", xlabel="place from the end: 1 is the most recent", ylim=(0, section.rows * 1.05), xlim=(0.3, at[-1] + 0.7))
        below.xaxis.set_major_locator(MultipleLocator(1 if at[-1] <= 25 else 5))
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in (above, below):
            bare(axes, "y")
        return finished(name, drawn)


def _history_picture(values: Sequence[HistoryValue], name: str) -> Picture:
    shown = values[:SHOWN_VALUES]
    at = np.arange(len(shown))
    with styled(10, 0.75 + 0.22 * len(shown)) as drawn:
        axes = drawn.subplots()
        axes.barh(at, [value.weight for value in shown], color=OWN, height=0.62)
        labels = [f"{v.place}.  {short(words(v.value), 40)}{' (unseen)' if v.unseen else ''}" for v in shown]
        axes.set_yticks(at, labels)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set_xlabel("weight")
        bare(axes, "x")
        return finished(name, drawn)
