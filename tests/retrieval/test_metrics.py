"""Metrics against numbers worked out by hand."""

import math

import numpy as np
import pytest

from ctrkit.retrieval import metrics

FOUND = np.array([[False, True, False, True], [False, False, False, False], [True, True, False, False]])
TARGETS = np.array([3, 1, 2])


def test_recall_and_hit() -> None:
    np.testing.assert_allclose(metrics.recall(FOUND, TARGETS, 2), [1 / 3, 0, 1])
    np.testing.assert_allclose(metrics.recall(FOUND, TARGETS, 4), [2 / 3, 0, 1])
    np.testing.assert_array_equal(metrics.hit(FOUND, 1), [0, 0, 1])
    np.testing.assert_array_equal(metrics.hit(FOUND, 2), [1, 0, 1])


def test_ndcg_discounts_by_the_logarithm_of_the_rank() -> None:
    third = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    np.testing.assert_allclose(metrics.ndcg(FOUND, TARGETS, 4), [third / ideal, 0, 1])
    np.testing.assert_allclose(metrics.ndcg(FOUND, TARGETS, 1), [0, 0, 1])


def test_ndcg_of_a_list_shorter_than_k() -> None:
    np.testing.assert_allclose(metrics.ndcg(FOUND, TARGETS, 10), metrics.ndcg(FOUND, TARGETS, 4))


def test_the_reciprocal_rank() -> None:
    np.testing.assert_allclose(metrics.reciprocal_rank(np.array([1, 4])), [1, 0.25])


def test_coverage_novelty_and_popularity_bias() -> None:
    counts = np.array([4, 1, 0, 0])
    lists = np.array([[0, 1], [0, 2]])
    assert metrics.coverage(lists, 4, 1) == 1 / 4
    assert metrics.coverage(lists, 4, 2) == 3 / 4
    bits = [-math.log2(5 / 9), -math.log2(2 / 9), -math.log2(1 / 9)]
    np.testing.assert_allclose(metrics.novelty(lists, counts, 2), [(bits[0] + bits[1]) / 2, (bits[0] + bits[2]) / 2])
    assert metrics.popularity_bias(lists, np.array([1, 0]), counts, 1) == pytest.approx(4 / 2.5)
    assert math.isnan(metrics.popularity_bias(lists, np.array([2, 3]), counts, 1))
