"""The pictures that every explanation has: of fields over a sample, and of one row."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrkit.explain.drawing import (
    FAINT,
    GRADIENTS,
    INK,
    LESS,
    LINE,
    MORE,
    PERMUTATION,
    Picture,
    bare,
    finished,
    short,
    styled,
    words,
)
from ctrkit.explain.explanation import FieldScore, FieldShare, RowExplanation, SplitExplanation

SHOWN_FIELDS = 40
SHOWN_SHARES = 14


def importance(fields: Sequence[FieldScore]) -> Picture:
    """The most important fields: drop of AUC with its spread over repeats, and mean absolute contribution, side by side."""
    shown = fields[:SHOWN_FIELDS]
    with styled(10, 0.9 + 0.235 * len(shown)) as figure:
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
            bare(axes, "x")
            axes.axvline(0, color=FAINT, linewidth=0.8)
        return finished("importance", figure)


def agreement(explanation: SplitExplanation) -> Picture:
    """Every field once: how much it helps against how much it moves the prediction."""
    fields = explanation.fields
    x, y = (np.array(v) for v in zip(*((s.auc_drop.mean, s.attribution) for s in fields), strict=True))
    with styled(6.2, 4.2) as figure:
        axes = figure.subplots()
        axes.errorbar(x, y, xerr=[s.auc_drop.std for s in fields], fmt="none", ecolor=LINE, elinewidth=1.2, zorder=1)
        axes.scatter(x, y, s=26, color=GRADIENTS, edgecolor="white", linewidth=0.7, zorder=2)
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.margins(x=0.12, y=0.08)
        axes.set(xlabel="permutation: drop of AUC (helps the model)", ylabel="mean |contribution| (moves the logit)")
        bare(axes, "both")
        named = sorted(set(np.argsort(-x)[:8]) | set(np.argsort(-y)[:8]))
        _name_points(figure, axes, [fields[i].field for i in named], x[named], y[named])
        return finished("agreement", figure)


def _name_points(figure: Figure, axes: Axes, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Beside each point its name, where it is on no other name; left out where there is no such place."""
    figure.draw_without_rendering()  # lays it out: only now is it known where on the page a point is
    at = axes.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi
    taken: list[tuple[float, float, float]] = []
    for name, place, (left, bottom) in zip(names, zip(x, y, strict=True), at, strict=True):
        width = 5.2 * len(name)
        for dx, dy in ((5, 3), (5, -10), (-5 - width, 3), (-5 - width, -10)):
            start, base = left + dx, bottom + dy
            if all(start > e or start + width < s or abs(base - b) > 9 for s, e, b in taken):
                taken.append((start, start + width, base))
                axes.annotate(name, place, xytext=(dx, dy), textcoords="offset points", fontsize=8.5)
                break


def waterfall(row: RowExplanation, name: str) -> Picture:
    """From the average row's logit to this row's, a field a step; the axis above reads the same in probability."""
    shown, rest = row.fields[:SHOWN_SHARES], row.fields[SHOWN_SHARES:]
    steps = [(label_of(share), share.contribution) for share in shown]
    if rest:
        steps.append((f"{len(rest)} other fields", sum(share.contribution for share in rest)))
    with styled(10, 1.5 + 0.27 * len(steps)) as figure:
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
        above.set_xlabel("probability")
        above.spines[:].set_visible(False)
        bare(axes, "x")
        return finished(name, figure)


def label_of(share: FieldShare) -> str:
    """``field = value`` on one line."""
    text = words(share.value)
    if text == words(None):
        return f"{short(share.field, 24)} is {text}"
    note = " (unseen)" if share.unseen else " (pruned)" if share.pruned else ""
    return f"{short(share.field, 24)} = {short(text, 30)}{note}"


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
