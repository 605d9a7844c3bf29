"""A model's maps of field against field, such as AutoInt's attention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from ctrkit.explain.drawing import FAINT, LESS, MORE, Picture, bare, finished, short, styled
from ctrkit.explain.markup import Number, Shown, figure, folded, table

_DIVERGING = LinearSegmentedColormap.from_list("less-more", ["#0b4a9e", LESS, "#a9cdf5", "#f8fafc", "#fdc59b", MORE, "#9a3406"])


@dataclass(frozen=True)
class FieldMap:
    """A ``[fields, fields]`` matrix, of one row or the mean over a sample."""

    name: str
    values: np.ndarray


@dataclass(frozen=True)
class MapSection:
    """What a model shows of its own; see ``ctrkit.models.base.FieldMaps``.

    Attributes:
        rows: that the maps are means of.
    """

    title: str
    about: str
    neutral: float
    fields: Sequence[str]
    maps: Sequence[FieldMap]
    rows: int

    @property
    def mean(self) -> np.ndarray:
        return np.mean([m.values for m in self.maps], axis=0)

    def strongest_pairs(self, count: int) -> list[tuple[str, str, float]]:
        """The largest entries of the mean over all maps, a field with itself left out: (row's field, column's field, value)."""
        off_diagonal = np.where(np.eye(len(self.fields), dtype=bool), -np.inf, self.mean)
        order = np.argsort(off_diagonal, axis=None)[::-1][: min(count, len(self.fields) * (len(self.fields) - 1))]
        places = [divmod(int(place), len(self.fields)) for place in order]
        return [(self.fields[row], self.fields[column], float(self.mean[row, column])) for row, column in places]

    def to_json(self) -> dict[str, Any]:
        maps = [{"name": m.name, "values": np.round(m.values, 6).tolist()} for m in self.maps]
        pairs = [{"field": a, "other": b, "value": value} for a, b, value in self.strongest_pairs(20)]
        return {"title": self.title, "about": self.about, "neutral": self.neutral, "fields": self.fields, "maps": maps, "pairs": pairs}

    def show(self, name: str) -> Shown:
        """A sample's mean map, and each map small; a row's mean map alone, folded."""
        mean = mean_map(self, name)
        if self.rows == 1:
            about = f"<p class='faint'>{escape(self.about)} White is {self.neutral:.4g}, an even share; orange is more, blue is less.</p>"
            return Shown(folded(f"Mean over the {len(self.maps)} maps of this row", figure(mean) + about), [mean])
        maps = all_maps(self, f"{name}-all")
        values = np.stack([m.values for m in self.maps])
        pairs = self.strongest_pairs(20)
        html = (
            f"<p>{escape(self.about)} White is {self.neutral:.4g}, an even share; orange is more, blue is less. "
            f"The entries of all {len(self.maps)} maps reach from {values.min():.4g} to {values.max():.4g}.</p>"
            f"<h3>Mean over all {len(self.maps)} maps and {self.rows:,} rows</h3>{figure(mean)}<h3>Each map</h3>{figure(maps)}"
            + folded(
                f"The {len(pairs)} strongest pairs in figures",
                table(("field (row)", "other (column)", "mean"), [(a, b, Number(f"{value:.5f}")) for a, b, value in pairs]),
            )
        )
        return Shown(html, [mean, maps])


def mean_map(section: MapSection, name: str) -> Picture:
    """The mean over a section's maps with its fields' names, and its strongest pairs."""
    count = len(section.fields)
    side = min(7.0, max(2.6, 0.19 * count + 1.2))
    pairs = section.strongest_pairs(min(15, max(6, int(side / 0.28))))
    with styled(side + 4.2, side) as drawn:
        left, right = drawn.subplots(1, 2, width_ratios=[side, 2.6])
        image = _draw_map(left, section.mean, section.neutral)
        step = max(1, math.ceil(count / 45))
        size = min(9.0, max(5.0, 300 / count))
        names = [short(field, 24) for field in section.fields]
        left.set_xticks(range(0, count, step), names[::step], rotation=90, fontsize=size)
        left.set_yticks(range(0, count, step), names[::step], fontsize=size)
        bar = drawn.colorbar(image, ax=left, shrink=0.55, pad=0.02, aspect=22)
        bar.ax.tick_params(labelsize=7.5, length=0)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        if pairs:
            places = np.arange(len(pairs))
            beyond = [value - section.neutral for _, _, value in pairs]
            right.barh(places, beyond, left=section.neutral, color=[MORE if b > 0 else LESS for b in beyond], height=0.6)
            right.set_yticks(places, [f"{short(a, 14)} → {short(b, 14)}" for a, b, _ in pairs], fontsize=8.5)
            right.set_ylim(max(len(pairs), 8) - 0.4, -0.6)
            right.axvline(section.neutral, color=FAINT, linewidth=0.8)
            right.xaxis.set_major_locator(MaxNLocator(4))
        right.set_title(f"strongest pairs, from {section.neutral:.4g} on", loc="left", fontsize=9.5)
        bare(right, "x")
        return finished(name, drawn)


def all_maps(section: MapSection, name: str) -> Picture:
    """Every map of a section, small, on one scale."""
    count = len(section.maps)
    columns = min((c for c in (4, 3) if count % c == 0), default=min(4, count)) if count > 2 else count
    rows = math.ceil(count / columns)
    reach = max(np.abs(m.values - section.neutral).max() for m in section.maps)
    with styled(2.35 * columns + 0.7, 2.5 * rows) as drawn:
        axes = drawn.subplots(rows, columns, squeeze=False)
        image = None
        for place, one in zip(axes.flat, section.maps, strict=False):
            image = _draw_map(place, one.values, section.neutral, reach)
            place.set_title(one.name, fontsize=9, loc="left")
            place.set_xticks([])
            place.set_yticks([])
        for place in list(axes.flat)[count:]:
            place.set_visible(False)
        assert image is not None
        bar = drawn.colorbar(image, ax=list(axes.flat), shrink=0.5, pad=0.02, aspect=24)
        bar.ax.tick_params(labelsize=7.5, length=0)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return finished(name, drawn)


def _draw_map(axes: Axes, values: np.ndarray, neutral: float, reach: float | None = None):
    """Colours leave white at ``neutral``; the scale reaches as far up as down, or to zero where values are not negative."""
    reach = reach or float(np.abs(values - neutral).max()) or 1e-9
    low = max(0.0, neutral - reach) if values.min() >= 0 else neutral - reach
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes.imshow(
        values, cmap=_DIVERGING, norm=TwoSlopeNorm(neutral, min(low, neutral - 1e-12), neutral + reach), interpolation="nearest"
    )
