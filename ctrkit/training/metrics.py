"""Metrics of click predictions, exact, over whole splits. NumPy only.

``labels`` are 0 or 1, ``probabilities`` in [0, 1], both ``[rows]``. A metric that is undefined on the given rows is NaN:
auc, gauc and ne need both classes, calibration needs a click.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ctrkit.schema import NO_GROUP


def auc(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a click scores above a non-click, a tie counting one half.

    Args:
        labels: ``[rows]``.
        probabilities: ``[rows]``; any monotone score will do.
        weights: ``[rows]``, not negative; default 1.
    """
    y, p = _checked(labels, probabilities)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(p)
    y, p, w = y[order], p[order], w[order]
    if not len(y):
        return float("nan")
    ties = np.flatnonzero(np.append(True, p[1:] != p[:-1]))
    clicks, others = np.add.reduceat(w * y, ties), np.add.reduceat(w * (1 - y), ties)
    others_below = np.cumsum(others) - others
    pairs = clicks.sum() * others.sum()
    return float((clicks * (others_below + others / 2)).sum() / pairs) if pairs > 0 else float("nan")


def gauc(labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike) -> float:
    """AUC within each group (a user, say), averaged with the groups' rows as weights (Zhu et al., 2017).

    Groups of a single class have no AUC and are left out.
    """
    y, p = _checked(labels, probabilities)
    g = np.asarray(groups)
    if not len(y):
        return float("nan")
    order = np.lexsort((p, g))
    y, p, g = y[order], p[order], g[order]
    group_starts = np.append(True, g[1:] != g[:-1])
    tie_starts = np.append(True, p[1:] != p[:-1]) | group_starts
    first_of_group = np.flatnonzero(group_starts)
    first_of_tie = np.flatnonzero(tie_starts)
    rows_of_group = np.diff(np.append(first_of_group, len(y)))
    rows_of_tie = np.diff(np.append(first_of_tie, len(y)))
    mean_rank_of_tie = first_of_tie + (rows_of_tie + 1) / 2
    rank = np.repeat(mean_rank_of_tie, rows_of_tie) - np.repeat(first_of_group, rows_of_group)
    clicks = np.add.reduceat(y, first_of_group)
    rank_sum = np.add.reduceat(rank * y, first_of_group)
    pairs = clicks * (rows_of_group - clicks)
    both = pairs > 0
    if not both.any():
        return float("nan")
    auc_of_group = (rank_sum[both] - clicks[both] * (clicks[both] + 1) / 2) / pairs[both]
    return float(np.average(auc_of_group, weights=rows_of_group[both]))


def logloss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood; probabilities are clipped to [eps, 1 - eps] with their dtype's eps, as scikit-learn does."""
    y, _ = _checked(labels, probabilities)
    p = np.asarray(probabilities)
    if not np.issubdtype(p.dtype, np.floating):
        p = p.astype(np.float64)
    eps = np.finfo(p.dtype).eps
    p = np.clip(p, eps, 1 - eps).astype(np.float64)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))) if len(y) else float("nan")


def ne(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Normalized entropy: logloss over the logloss of always predicting the base rate (He et al., 2014). Below 1 is informative."""
    y, _ = _checked(labels, probabilities)
    rate = y.mean() if len(y) else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    return logloss(labels, probabilities) / float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean prediction / mean label: 1 is right, above 1 predicts too many clicks."""
    y, p = _checked(labels, probabilities)
    clicks = y.sum()
    return float(p.sum() / clicks) if clicks > 0 else float("nan")


@dataclass(frozen=True)
class Reliability:
    """Rows binned by prediction: mean prediction, share of clicks and number of rows of each bin."""

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> Reliability:
    """Bins of equal mass (quantiles of the predictions); equal predictions share a bin, so there may be fewer."""
    y, p = _checked(labels, probabilities)
    edges = np.quantile(p, np.arange(1, bins) / bins) if len(p) else np.empty(0)
    bin_of_row = np.searchsorted(edges, p)
    rows = np.bincount(bin_of_row, minlength=bins)
    filled = rows > 0
    predicted = np.bincount(bin_of_row, p, bins)[filled] / rows[filled]
    observed = np.bincount(bin_of_row, y, bins)[filled] / rows[filled]
    return Reliability(predicted, observed, rows[filled])


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean |prediction - share of clicks| over bins of equal mass, weighted by their rows.

    Guo et al. (2017) bin by equal width; click probabilities crowd near 0, where bins of equal mass still tell them apart.
    """
    r = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(r.predicted - r.observed), weights=r.rows)) if len(r.rows) else float("nan")


def evaluate_metrics(labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike | None = None) -> dict[str, float]:
    """All of them; ``gauc`` when ``groups`` is given, over rows that have one."""
    result = {
        "auc": auc(labels, probabilities),
        "logloss": logloss(labels, probabilities),
        "ne": ne(labels, probabilities),
        "calibration": calibration(labels, probabilities),
        "ece": ece(labels, probabilities),
    }
    if groups is not None:
        known = np.asarray(groups) != NO_GROUP
        result["gauc"] = gauc(*(np.asarray(part)[known] for part in (labels, probabilities, groups)))
    return result


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if y.shape != p.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape} must be two vectors of one length")
    if np.isnan(p).any():
        raise ValueError("a probability is NaN")
    return y, p
