"""The explanations drawn: each picture once, as PNG for a folder and as SVG for a page.

Orange is more, blue is less.
"""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctrkit.explain.explanation import FieldScore, MapSection, RowExplanation, SplitExplanation

MORE, LESS = "#e8590c", "#1c6fd4"
PERMUTATION, GRADIENTS = "#64748b", "#7c3aed"
INK, FAINT, LINE = "#1f2937", "#6b7280", "#e5e7eb"
_DIVERGING = LinearSegmentedColormap.from_list("less-more", ["#0b4a9e", LESS, "#a9cdf5", "#f8fafc", "#fdc59b", MORE, "#9a3406"])

SHOWN_FIELDS = 40
SHOWN_SHARES = 14

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "ctrkit",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Picture:
    """One drawing, twice.

    Attributes:
        name: of the file, without ``.png``.
        svg: without XML's prologue, to be put into a page.
    """

    name: str
    png: bytes
    svg: str


def importance(fields: Sequence[FieldScore]) -> Picture:
    """The most important fields: drop of AUC with its spread over repeats, and mean absolute contribution, side by side."""
    shown = fields[:SHOWN_FIELDS]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 0.9 + 0.235 * len(shown)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(shown))
        drops = [score.auc_drop.mean for score in shown]
        left.barh(places, drops, color=PERMUTATION, height=0.62)
        left.errorbar(drops, places, xerr=[s.auc_drop.std for s in shown], fmt="none", ecolor=INK, elinewidth=1.1, capsize=2)
        left.set_yticks(places, [score.field for score in shown])
        left.set_ylim(len(shown) - 0.4, -0.6)
        left.set_title("permutation: drop of AUC", loc="left", fontsize=10, color=PERMUTATION, weight="bold")
        right.barh(places, [score.attribution for score in shown], color=GRADIENTS, height=0.62)
        right.set_title("integrated gradients: mean |contribution| to the logit", loc="left", fontsize=10, color=GRADIENTS, weight="bold")
        for axes in (left, right):
            _bare(axes, "x")
            axes.axvline(0, color=FAINT, linewidth=0.8)
        return _picture("importance", figure)


def agreement(explanation: SplitExplanation) -> Picture:
    """Every field once: how much it helps against how much it moves the prediction."""
    fields = explanation.fields
    x, y = (np.array(v) for v in zip(*((s.auc_drop.mean, s.attribution) for s in fields), strict=True))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(x, y, xerr=[s.auc_drop.std for s in fields], fmt="none", ecolor=LINE, elinewidth=1.2, zorder=1)
        axes.scatter(x, y, s=26, color=GRADIENTS, edgecolor="white", linewidth=0.7, zorder=2)
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        named = set(np.argsort(-x)[:8]) | set(np.argsort(-y)[:8])
        for i in named:
            axes.annotate(fields[i].field, (x[i], y[i]), xytext=(5, 3), textcoords="offset points", fontsize=8.5)
        axes.margins(x=0.12, y=0.08)
        axes.set(xlabel="permutation: drop of AUC (helps the model)", ylabel="mean |contribution| (moves the logit)")
        _bare(axes, "both")
        return _picture("agreement", figure)


def mean_map(section: MapSection, name: str) -> Picture:
    """The mean over a section's maps with its fields' names, and its strongest pairs."""
    count = len(section.fields)
    side = min(7.0, max(2.6, 0.19 * count + 1.2))
    pairs = section.strongest_pairs(min(15, max(6, int(side / 0.28))))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(side + 4.2, side), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[side, 2.6])
        image = _draw_map(left, section.mean, section.neutral)
        step = max(1, math.ceil(count / 45))
        size = min(9.0, max(5.0, 250 / count))
        left.set_xticks(range(0, count, step), section.fields[::step], rotation=90, fontsize=size)
        left.set_yticks(range(0, count, step), section.fields[::step], fontsize=size)
        bar = figure.colorbar(image, ax=left, shrink=0.55, pad=0.02, aspect=22)
        bar.ax.tick_params(labelsize=7.5, length=0)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        if pairs:
            places = np.arange(len(pairs))
            beyond = [value - section.neutral for _, _, value in pairs]
            right.barh(places, beyond, left=section.neutral, color=[MORE if b > 0 else LESS for b in beyond], height=0.6)
            right.set_yticks(places, [f"{_short(a, 14)} → {_short(b, 14)}" for a, b, _ in pairs], fontsize=8.5)
            right.set_ylim(max(len(pairs), 8) - 0.4, -0.6)
            right.axvline(section.neutral, color=FAINT, linewidth=0.8)
            right.xaxis.set_major_locator(MaxNLocator(4))
        right.set_title(f"strongest pairs, from {section.neutral:.4g} on", loc="left", fontsize=9.5)
        _bare(right, "x")
        return _picture(name, figure)


def all_maps(section: MapSection, name: str) -> Picture:
    """Every map of a section, small, on one scale."""
    count = len(section.maps)
    columns = min((c for c in (4, 3) if count % c == 0), default=min(4, count)) if count > 2 else count
    rows = math.ceil(count / columns)
    reach = max(np.abs(m.values - section.neutral).max() for m in section.maps)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.35 * columns + 0.7, 2.5 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        image = None
        for place, one in zip(axes.flat, section.maps, strict=False):
            image = _draw_map(place, one.values, section.neutral, reach)
            place.set_title(one.name, fontsize=9, loc="left")
            place.set_xticks([])
            place.set_yticks([])
        for place in list(axes.flat)[count:]:
            place.set_visible(False)
        assert image is not None
        bar = figure.colorbar(image, ax=list(axes.flat), shrink=0.5, pad=0.02, aspect=24)
        bar.ax.tick_params(labelsize=7.5, length=0)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return _picture(name, figure)


def waterfall(row: RowExplanation, name: str) -> Picture:
    """From the average row's logit to this row's, a field a step; the axis above reads the same in probability."""
    shown, rest = row.fields[:SHOWN_SHARES], row.fields[SHOWN_SHARES:]
    steps = [(label_of(share.field, share.value, share.unseen), share.contribution) for share in shown]
    if rest:
        steps.append((f"{len(rest)} other fields", sum(share.contribution for share in rest)))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 1.5 + 0.27 * len(steps)), layout="constrained")
        axes = figure.subplots()
        at = row.base_logit
        ends = [at]
        for place, (_, change) in enumerate(steps, 1):
            axes.barh(place, change, left=at, color=MORE if change > 0 else LESS, height=0.66)
            axes.plot([at + change] * 2, [place - 0.33, place + 1.33], color=FAINT, linewidth=0.7)
            at += change
            ends.append(at)
        last = len(steps) + 1
        low, high = min(*ends, row.logit), max(*ends, row.logit)
        margin = 0.09 * (high - low) or 0.1
        for place, logit, what in ((0, row.base_logit, "average row"), (last, row.logit, "this row")):
            axes.plot([logit], [place], marker="D", markersize=6, color=INK)
            axes.annotate(
                f"{what}: {_sigmoid(logit):.2%}", (logit, place), xytext=(9, 0), textcoords="offset points", va="center", weight="bold"
            )
        start = row.base_logit
        for place, (_, change) in enumerate(steps, 1):
            right_end = max(start, start + change)
            axes.annotate(
                f"{change:+.3f}" if abs(change) >= 0.0005 else "0",
                (right_end, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=FAINT,
            )
            start += change
        axes.plot([row.base_logit] * 2, [0.1, 1.33], color=FAINT, linewidth=0.7)
        axes.set_yticks(range(last + 1), ["", *(text for text, _ in steps), ""])
        axes.set_ylim(last + 0.6, -0.6)
        axes.set_xlim(low - margin, high + 2.2 * margin)
        axes.set_xlabel("logit")
        above = axes.secondary_xaxis("top")
        ticks = _probability_ticks(low - margin, high + margin)
        above.set_xticks([math.log(p / (1 - p)) for p in ticks], [f"{100 * p:g} %" for p in ticks])
        above.set_xlabel("probability of a click")
        above.spines[:].set_visible(False)
        _bare(axes, "x")
        return _picture(name, figure)


def label_of(field: str, value: object, unseen: bool) -> str:
    """``field = value`` on one line."""
    if value is None or value in ("", []):
        return f"{field} is missing"
    text = ", ".join(str(v) for v in value) if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{_short(field, 24)} = {_short(text, 30)}{' (unseen)' if unseen else ''}"


def _probability_ticks(low: float, high: float) -> list[float]:
    """Round probabilities between two logits, from four to a dozen where they lie that far apart."""
    coarse = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
    steps = [[k / n for k in range(1, n)] for n in (20, 50, 100, 200, 1000)]
    found: list[float] = []
    for ticks in (coarse, *steps):
        found = [p for p in ticks if low <= math.log(p / (1 - p)) <= high]
        if len(found) >= 4:
            break
    return found


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _draw_map(axes: Axes, values: np.ndarray, neutral: float, reach: float | None = None):
    """Colours leave white at ``neutral``; the scale reaches as far up as down, or to zero where values are not negative."""
    reach = reach or float(np.abs(values - neutral).max()) or 1e-9
    low = max(0.0, neutral - reach) if values.min() >= 0 else neutral - reach
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes.imshow(
        values, cmap=_DIVERGING, norm=TwoSlopeNorm(neutral, min(low, neutral - 1e-12), neutral + reach), interpolation="nearest"
    )


def _bare(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis=grid, color=LINE, linewidth=0.7)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def _picture(name: str, figure: Figure) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a page shows any script; the PNG only what its font holds
        figure.savefig(png, dpi=130, format="png")
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    text = svg.getvalue()
    return Picture(name, png.getvalue(), re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL))
