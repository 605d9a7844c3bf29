"""The pictures of a run: ``learning_curve.png``, ``calibration.png`` and, of a search over pairs of fields, ``decision.png``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ctrkit.training.metrics import calibration, ece, reliability

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"
COLORS = (BLUE, "#16a34a", "#9333ea", "#db2777", "#0891b2")
"""Of several tasks, in their order."""


def learning_curve(records: Sequence[dict[str, Any]], best_step: int, path: Path, tasks: Sequence[str] = ()) -> None:
    """Training loss and validation logloss on the left, validation AUC on the right, the best step marked; a line a task.

    Args:
        records: of ``metrics.jsonl``, see ``tracking.read_records``.
        best_step: whose weights were kept.
        path: of the PNG.
        tasks: names of several labels; the training loss is then the weighted sum of theirs.
    """
    train = [r for r in records if r["event"] == "train"]
    valid = [r for r in records if r["event"] == "valid"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss = "train, all tasks" if tasks else "train"
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color=GREY, marker=".", linewidth=1.2, label=loss)
    for axes, metric in ((left, "logloss"), (right, "auc")):
        for number, task in enumerate(tasks or ("valid",)):
            name = f"{task}/{metric}" if tasks else metric
            scored = [r for r in valid if r[name] is not None]
            steps, values, color = [r["step"] for r in scored], [r[name] for r in scored], COLORS[number % len(COLORS)]
            axes.plot(steps, values, color=color, marker="o", markersize=4, label=task)
        best = [r[metric] for r in valid if r["step"] == best_step and r[metric] is not None]
        axes.set_title(f"{metric}, {best[0]:.4f} on valid at best" if best else metric, loc="left", fontsize=11)
        axes.axvline(best_step, color=ORANGE, linestyle="--", linewidth=1, label=f"best, step {best_step:,}")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("step")
        _finish(axes)
    _save(figure, path)


def calibration_plot(labels: np.ndarray, probabilities: np.ndarray, split: str, path: Path, tasks: Sequence[str] = ()) -> None:
    """Share of clicks, give or take twice its standard error, against mean prediction in bins of equal mass. A panel a task.

    On the diagonal a model is calibrated.

    Args:
        labels: ``[rows]``, or ``[rows, tasks]``; ``probabilities`` too.
    """
    panels = max(1, len(tasks))
    figure = Figure(figsize=(5.2 * panels, 5), layout="constrained")
    y, p = labels.reshape(-1, panels), probabilities.reshape(-1, panels)
    for number, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        title, what = (f"{split}, {tasks[number]}", f"'{tasks[number]}'") if tasks else (split, "clicks")
        _calibration(axes, y[:, number], p[:, number], title, what)
    _save(figure, path)


def _calibration(axes: Axes, labels: np.ndarray, probabilities: np.ndarray, title: str, what: str) -> None:
    bins = reliability(labels, probabilities)
    noise = 2 * np.sqrt(bins.observed * (1 - bins.observed) / bins.rows)
    lower = min(bins.predicted.min(), (bins.observed - noise).min())
    upper = max(bins.predicted.max(), (bins.observed + noise).max())
    margin = 0.05 * (upper - lower) or 0.05
    limits = (max(0.0, lower - margin), min(1.0, upper + margin))
    axes.plot(limits, limits, color=GREY, linestyle="--", linewidth=1, label="calibrated")
    axes.errorbar(
        bins.predicted, bins.observed, noise, color=BLUE, marker="o", markersize=5, ecolor=GREY, elinewidth=1.2, label="model, ± 2 s.e."
    )
    axes.set(xlim=limits, ylim=limits, xlabel="mean prediction", ylabel=f"share of {what}", aspect="equal")
    measured = f"calibration {calibration(labels, probabilities):.3f}, ece {ece(labels, probabilities):.4f}"
    axes.set_title(f"{title}: {measured}", loc="left", fontsize=11)
    _finish(axes)


def pair_map(fields: Sequence[str], pairs: Sequence[dict[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Field by field, the way chosen for each pair, a colour a way.

    Args:
        pairs: ``{"fields": [a, b], "method": one of methods}`` each.
    """
    place = {name: i for i, name in enumerate(fields)}
    chosen = np.full((len(fields), len(fields)), np.nan)
    for pair in pairs:
        i, j = (place[name] for name in pair["fields"])
        chosen[i, j] = chosen[j, i] = methods.index(pair["method"])
    colors = ("#e5e7eb", BLUE, ORANGE)
    side = min(12.0, 3 + 0.22 * len(fields))
    figure = Figure(figsize=(side + 2, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(chosen, cmap=ListedColormap(colors), vmin=0, vmax=len(methods) - 1)
    ticks = range(len(fields))
    axes.set_xticks(ticks, fields, rotation=90, fontsize=8)
    axes.set_yticks(ticks, fields, fontsize=8)
    axes.set_xticks(np.arange(0.5, len(fields) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(fields) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    counts = [sum(pair["method"] == method for pair in pairs) for method in methods]
    patches = [Patch(color=color, label=f"{method} ({count})") for color, method, count in zip(colors, methods, counts, strict=True)]
    figure.legend(handles=patches, loc="outside right upper", frameon=False)
    _save(figure, path)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
