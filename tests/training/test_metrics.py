"""Metrics against scikit-learn, closed forms and invariances."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from ctrkit.schema import NO_GROUP
from ctrkit.training import metrics

# few distinct scores, so that ties are common
score = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.floats(0, 1, width=32))
rows = st.lists(st.tuples(st.integers(0, 1), score, st.integers(0, 4), st.floats(0.01, 10)), min_size=1, max_size=60)


def columns(table: list[tuple]) -> tuple[np.ndarray, ...]:
    y, p, g, w = zip(*table, strict=True)
    return np.array(y), np.array(p, np.float64), np.array(g), np.array(w)


@given(rows)
def test_auc_is_scikit_learns(table: list[tuple]) -> None:
    y, p, _, w = columns(table)
    if y.min() == y.max():
        assert np.isnan(metrics.auc(y, p))
        return
    assert metrics.auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert metrics.auc(y, p, w) == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=1e-9)


@given(rows)
def test_auc_knows_order_only(table: list[tuple]) -> None:
    y, p, _, _ = columns(table)
    assume(y.min() != y.max())
    ranks = np.unique(p, return_inverse=True)[1]
    assert metrics.auc(y, np.exp(ranks / 7)) == metrics.auc(y, p)
    assert metrics.auc(y, -p) == pytest.approx(1 - metrics.auc(y, p), abs=1e-12)
    assert metrics.auc(1 - y, p) == pytest.approx(1 - metrics.auc(y, p), abs=1e-12)


@given(rows)
def test_a_weight_of_two_is_a_row_twice(table: list[tuple]) -> None:
    y, p, g, _ = columns(table)
    assume(y.min() != y.max())
    assert metrics.auc(y, p, 1 + g) == pytest.approx(metrics.auc(np.repeat(y, 1 + g), np.repeat(p, 1 + g)), abs=1e-12)


@given(rows)
def test_gauc_is_the_mean_over_groups_weighted_by_rows(table: list[tuple]) -> None:
    y, p, g, _ = columns(table)
    both = [k for k in np.unique(g) if len(set(y[g == k])) == 2]
    if not both:
        assert np.isnan(metrics.gauc(y, p, g))
        return
    expected = np.average([roc_auc_score(y[g == k], p[g == k]) for k in both], weights=[(g == k).sum() for k in both])
    assert metrics.gauc(y, p, g) == pytest.approx(expected, abs=1e-12)


@given(rows)
def test_gauc_of_one_group_is_auc(table: list[tuple]) -> None:
    y, p, _, _ = columns(table)
    assume(y.min() != y.max())
    assert metrics.gauc(y, p, np.full(len(y), 7)) == pytest.approx(metrics.auc(y, p), abs=1e-12)


@given(rows, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=50)
def test_logloss_is_scikit_learns(table: list[tuple], dtype: type) -> None:
    y, p, _, _ = columns(table)
    assert metrics.logloss(y, p.astype(dtype)) == pytest.approx(log_loss(y, p.astype(dtype), labels=[0, 1]), rel=1e-6, abs=1e-6)


@given(rows)
def test_metrics_do_not_depend_on_the_order_of_rows(table: list[tuple]) -> None:
    forward, backward = columns(table)[:3], columns(table[::-1])[:3]
    assert metrics.evaluate_metrics(*forward) == pytest.approx(metrics.evaluate_metrics(*backward), nan_ok=True)


def test_a_large_unbalanced_log_is_exact() -> None:
    """Where 200 thresholds are off by 0.1: clicks at 0.2 %, predictions crowded near 0."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 200, 200_000)
    y = (rng.random(200_000) < p).astype(float)
    assert metrics.auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)


def test_closed_forms() -> None:
    y = np.array([1, 0, 0, 0])
    base_rate = np.full(4, 0.25)
    assert metrics.ne(y, base_rate) == pytest.approx(1)
    assert metrics.calibration(y, base_rate) == pytest.approx(1)
    assert metrics.calibration(y, 2 * base_rate) == pytest.approx(2)
    assert metrics.ece(y, base_rate) == pytest.approx(0)
    assert metrics.ece(y, base_rate + 0.5) == pytest.approx(0.5)
    assert metrics.auc(y, base_rate) == 0.5
    assert metrics.auc(y, [0.9, 0.1, 0.2, 0.3]) == 1
    assert metrics.logloss(y, [1.0, 0.0, 0.0, 0.0]) == pytest.approx(0, abs=1e-12)


def test_ece_of_equal_mass_bins() -> None:
    """Two bins: predictions 0.1 with a quarter of clicks, 0.8 with all."""
    y, p = [0, 0, 0, 1, 1, 1, 1, 1], [0.1] * 4 + [0.8] * 4
    bins = metrics.reliability(y, p, bins=2)
    assert bins.rows.tolist() == [4, 4]
    assert bins.observed.tolist() == [0.25, 1]
    assert metrics.ece(y, p, bins=2) == pytest.approx((0.15 + 0.2) / 2)


@given(rows)
def test_calibrated_by_construction_has_no_ece(table: list[tuple]) -> None:
    """Predicting each group's own share of clicks: bins keep equal predictions together."""
    y, _, g, _ = columns(table)
    share = (np.bincount(g, y) / np.maximum(np.bincount(g), 1))[g]
    assert metrics.ece(y, share) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_what_needs_two_undefined(label: int) -> None:
    values = metrics.evaluate_metrics([label] * 3, [0.2, 0.3, 0.4], [1, 1, 2])
    assert np.isnan(values["auc"]) and np.isnan(values["gauc"]) and np.isnan(values["ne"])
    assert np.isfinite(values["logloss"]) and np.isfinite(values["ece"])
    assert np.isnan(values["calibration"]) == (label == 0)


def test_rows_without_a_group_are_no_group() -> None:
    labels, probabilities = [0, 1, 1, 0, 1, 0], [0.1, 0.9, 0.2, 0.8, 0.3, 0.7]
    found = metrics.evaluate_metrics(labels, probabilities, [5, 5, *[NO_GROUP] * 4])
    assert found["gauc"] == 1 and found["auc"] < 0.6


def test_bad_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.auc([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="one length"):
        metrics.logloss([0, 1], [0.1])


def test_imports_without_torch() -> None:
    code = "import sys, ctrkit.training.metrics; assert not {'torch', 'sklearn', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
