"""A small model on one feature alone: what it tells of the label in rows it was not trained on."""

from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ctrkit.data.splits import in_passes, kth_largest, random_keys
from ctrkit.selection.coded import CodedLog, Column

Surrogate = Literal["logistic", "trees"]
ROWS = 50_000
"""At most so many rows are trained on and predicted, drawn uniformly."""
_CATEGORIES = 254


def surrogate_scores(log: CodedLog, surrogate: Surrogate, seed: int = 0) -> list[float]:
    """Of each feature, 1 - logloss / logloss of the mean rate, over two halves each predicted by a model of the other.

    ``logistic`` has a weight a value, with scikit-learn's usual L2 penalty. ``trees`` are 50 boosted trees on the number, or on
    the categories: the 254 most frequent of the training half, the others as one.
    """
    keys = np.concatenate(list(in_passes(lambda first, count: random_keys(first, count, seed), log.rows)))
    key, _, _ = kth_largest(lambda: [keys], log.rows, min(ROWS, log.rows))
    rows = np.flatnonzero(keys >= np.uint64(key))
    half = (keys[rows] & np.uint64(1)).astype(bool)
    return [_score(column, rows, half, log.label[rows], surrogate) for column in log.columns]


def _score(column: Column, rows: np.ndarray, half: np.ndarray, label: np.ndarray, surrogate: Surrogate) -> float:
    loss, base = 0.0, 0.0
    for train, held_out in ((half, ~half), (~half, half)):
        if label[train].min() == label[train].max() or not held_out.any():
            return 0.0
        inputs = _one_hot(column, rows) if surrogate == "logistic" else _categories(column, rows, train)
        model = LogisticRegression(max_iter=200) if surrogate == "logistic" else _trees(column)
        predicted = model.fit(inputs[train], label[train]).predict_proba(inputs[held_out])[:, 1]
        loss += log_loss(label[held_out], predicted, labels=[0, 1]) * held_out.sum()
        base += log_loss(label[held_out], np.full(held_out.sum(), label[train].mean()), labels=[0, 1]) * held_out.sum()
    return float(1 - loss / base)


def _trees(column: Column) -> HistGradientBoostingClassifier:
    categorical = None if column.numbers is not None else [0]
    settings: dict[str, Any] = {"early_stopping": False, "categorical_features": categorical}
    return HistGradientBoostingClassifier(max_iter=50, random_state=0, **settings)


def _one_hot(column: Column, rows: np.ndarray) -> csr_matrix:
    _, codes = np.unique(column.codes[rows], return_inverse=True)
    return csr_matrix((np.ones(len(rows)), codes, np.arange(len(rows) + 1)), shape=(len(rows), int(codes.max()) + 1))


def _categories(column: Column, rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    if column.numbers is not None:
        return column.numbers[rows][:, None]
    codes = column.codes[rows]
    counts = np.bincount(codes[train], minlength=column.size)
    order = np.argsort(-counts, kind="stable")[:_CATEGORIES]
    names = np.full(column.size, len(order))
    names[order] = np.arange(len(order))
    return names[codes][:, None].astype(float)
