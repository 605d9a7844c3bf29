"""The two pictures of a run: ``learning_curve.png`` and ``calibration.png``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctrkit.training.metrics import calibration, ece, reliability

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"


def learning_curve(records: Sequence[dict[str, Any]], best_step: int, path: Path) -> None:
    """Training loss and validation logloss on the left, validation AUC on the right, the best step marked.

    Args:
        records: of ``metrics.jsonl``, see ``tracking.read_records``.
        best_step: whose weights were kept.
        path: of the PNG.
    """
    train = [r for r in records if r["event"] == "train"]
    valid = [r for r in records if r["event"] == "valid"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color=GREY, marker=".", linewidth=1.2, label="train")
    left.plot([r["step"] for r in valid], [r["logloss"] for r in valid], color=BLUE, marker="o", markersize=4, label="valid")
    scored = [r for r in valid if r["auc"] is not None]
    right.plot([r["step"] for r in scored], [r["auc"] for r in scored], color=BLUE, marker="o", markersize=4, label="valid")
    for axes, metric in ((left, "logloss"), (right, "auc")):
        best = [r[metric] for r in valid if r["step"] == best_step and r[metric] is not None]
        axes.set_title(f"{metric}, {best[0]:.4f} on valid at best" if best else metric, loc="left", fontsize=11)
        axes.axvline(best_step, color=ORANGE, linestyle="--", linewidth=1, label=f"best, step {best_step:,}")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("step")
        _finish(axes)
    _save(figure, path)


def calibration_plot(labels: np.ndarray, probabilities: np.ndarray, split: str, path: Path) -> None:
    """Share of clicks, give or take twice its standard error, against mean prediction in bins of equal mass.

    On the diagonal a model is calibrated.
    """
    bins = reliability(labels, probabilities)
    noise = 2 * np.sqrt(bins.observed * (1 - bins.observed) / bins.rows)
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.subplots()
    lower = min(bins.predicted.min(), (bins.observed - noise).min())
    upper = max(bins.predicted.max(), (bins.observed + noise).max())
    margin = 0.05 * (upper - lower) or 0.05
    limits = (max(0.0, lower - margin), min(1.0, upper + margin))
    axes.plot(limits, limits, color=GREY, linestyle="--", linewidth=1, label="calibrated")
    axes.errorbar(
        bins.predicted, bins.observed, noise, color=BLUE, marker="o", markersize=5, ecolor=GREY, elinewidth=1.2, label="model, ± 2 s.e."
    )
    axes.set(xlim=limits, ylim=limits, xlabel="mean prediction", ylabel="share of clicks", aspect="equal")
    title = f"{split}: calibration {calibration(labels, probabilities):.3f}, ece {ece(labels, probabilities):.4f}"
    axes.set_title(title, loc="left", fontsize=11)
    _finish(axes)
    _save(figure, path)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
