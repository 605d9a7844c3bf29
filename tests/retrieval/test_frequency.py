"""The streaming estimate of how often an item is in a batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.retrieval.frequency import FrequencyEstimator, FrequencySettings


@given(st.integers(1, 20), st.floats(0.01, 1.0), st.integers(1, 30), st.floats(1.0, 100.0))
def test_an_item_in_every_kth_batch_has_a_gap_that_tends_to_k(period: int, alpha: float, times: int, initial: float) -> None:
    """The recurrence solved: a mean while ``1 / (n + 1) > alpha``, then ``B_n = k + (1 - alpha)^(n - m) (B_m - k)``."""
    estimator = FrequencyEstimator(FrequencySettings(learning_rate=alpha, hashes=1), initial)
    for _ in range(times):
        for _ in range(period - 1):
            estimator.update(np.array([7]))
        estimator.update(np.array([3, 7]))
    mean = sum(1 / (n + 1) > alpha for n in range(1, times + 1))
    expected = period + (1 - alpha) ** (times - mean) * (initial - period) / (mean + 1)
    assert np.exp(-estimator.log_probability(np.array([3])))[0] == pytest.approx(expected)


def test_an_item_twice_in_a_batch_is_there_once() -> None:
    once, twice = (FrequencyEstimator(FrequencySettings(), 5.0) for _ in range(2))
    for _ in range(10):
        once.update(np.array([1, 2]))
        twice.update(np.array([1, 1, 2]))
    np.testing.assert_array_equal(once.log_probability(np.arange(3)), twice.log_probability(np.arange(3)))


def test_frequencies_of_a_skewed_stream_are_found() -> None:
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 51)
    shares /= shares.sum()
    estimator = FrequencyEstimator(FrequencySettings(learning_rate=0.02), 5.0)
    for _ in range(3000):
        estimator.update(random.choice(50, 8, p=shares))
    truth = 1 - (1 - shares) ** 8
    error = estimator.log_probability(np.arange(50)) - np.log(truth)
    assert np.abs(error).mean() < 0.15


def test_few_batches_are_enough_to_tell_frequent_items_from_rare_ones() -> None:
    """Ten batches with one item in each, the other in the first: the initial gap of 40 weighs no more than one of theirs."""
    estimator = FrequencyEstimator(FrequencySettings(learning_rate=0.05), 40.0)
    estimator.update(np.array([1, 2]))
    for _ in range(9):
        estimator.update(np.array([1]))
    frequent, rare = np.exp(-estimator.log_probability(np.array([1, 2])))
    assert frequent == pytest.approx(50 / 11) and rare == pytest.approx(41 / 2)


def test_several_hashes_tell_apart_what_one_confuses() -> None:
    """Few slots: with one hash many rare items look as frequent as a frequent one that shares their slot."""

    def confused(hashes: int) -> int:
        estimator = FrequencyEstimator(FrequencySettings(learning_rate=0.1, buckets=64, hashes=hashes), 50.0)
        for _ in range(200):
            estimator.update(np.arange(8))
        return int((estimator.log_probability(np.arange(100, 400)) > np.log(1 / 10)).sum())

    assert confused(1) > 10 * max(confused(4), 1)


def test_an_item_that_was_never_in_a_batch_keeps_the_initial_gap() -> None:
    estimator = FrequencyEstimator(FrequencySettings(), 40.0)
    for _ in range(100):
        estimator.update(np.array([1]))
    assert estimator.log_probability(np.array([999]))[0] == pytest.approx(-np.log(40))


def test_it_goes_on_where_it_was() -> None:
    first, second = (FrequencyEstimator(FrequencySettings(), 5.0) for _ in range(2))
    first.update(np.array([1, 2]))
    second.load(first.state())
    for estimator in (first, second):
        estimator.update(np.array([2]))
    np.testing.assert_array_equal(first.log_probability(np.arange(5)), second.log_probability(np.arange(5)))
