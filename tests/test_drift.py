"""Bins of the training data, and the population stability index against them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.drift import Bins, bins_of_codes, bins_of_numbers, population_stability, present_codes
from ctrkit.known import codes_of
from ctrkit.schema import MISSING_INT, Feature

numbers = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")), st.just(0.0)), min_size=1, max_size=200)


@given(numbers)
def test_training_rows_fall_as_the_bins_say(values: list[float]) -> None:
    column = np.array(values)
    bins = bins_of_numbers(column)
    counts = bins.count_numbers(column)
    assert counts.sum() == len(column) and counts / len(column) == pytest.approx(bins.shares, abs=1e-6)
    assert counts[0] == np.isnan(column).sum()
    assert population_stability(bins.shares, counts) == pytest.approx(0, abs=1e-4)


@given(st.lists(st.integers(0, 30)), st.integers(0, 5), st.sets(st.integers(0, 30)))
def test_training_values_fall_as_the_bins_say(values: list[int], missing: int, vocabulary: set[int]) -> None:
    codes, known = np.array(values, np.int64), np.array(sorted(vocabulary), np.int64)
    for words in (known, None):
        bins = bins_of_codes(codes, missing, words)
        unknown = 0 if words is None else sum(value not in vocabulary for value in values)
        counts = bins.count_codes(codes, missing, unknown)
        assert counts.sum() == len(values) + missing and (counts >= 0).all() and counts[0] == missing
        assert counts / max(counts.sum(), 1) == pytest.approx(bins.shares, abs=1e-6)
        for place, code in enumerate(bins.codes):
            assert counts[1 + place] == values.count(code)
        if words is not None:
            assert counts[-1] == unknown and set(bins.codes) <= vocabulary
            assert sum(bins.without_unknown().shares) == pytest.approx(sum(bins.shares), abs=1e-5)


def test_equal_values_share_a_bin() -> None:
    bins = bins_of_numbers(np.array([0.0] * 80 + list(range(1, 21))))
    assert bins.edges is not None and bins.edges[0] == 0 and bins.shares[:2] == (0, 0.8)
    assert bins_of_numbers(np.array([np.nan] * 3)).shares == (1.0, 0.0)


def test_the_index_is_its_definition() -> None:
    shares = (0.0, 0.5, 0.3, 0.2)
    counts = np.array([0, 200, 300, 500])
    expected = sum((q - p) * math.log(q / p) for p, q in ((0.5, 0.2), (0.3, 0.3), (0.2, 0.5)))
    assert population_stability(shares, counts) == pytest.approx(expected)
    assert population_stability(shares, np.array([100, 0, 0, 0])) > 5, "an empty bin is no infinity"


def test_a_moved_column_stands_out_and_another_sample_does_not() -> None:
    random = np.random.default_rng(0)
    bins = bins_of_numbers(random.normal(size=20_000))
    assert population_stability(bins.shares, bins.count_numbers(random.normal(size=2_000))) < 0.02
    assert population_stability(bins.shares, bins.count_numbers(random.normal(1, size=2_000))) > 0.25


def test_codes_leave_missing_values_out() -> None:
    tags = Feature.model_validate({"name": "tags", "kind": "multi_valued"})
    codes, missing = present_codes(tags, np.array(["a", "", "b"], object), np.array([2, 0, 1, 0]))
    assert codes.tolist() == codes_of(["a", "b"]).tolist() and missing == 3
    age = Feature.model_validate({"name": "age", "kind": "categorical", "dtype": "int"})
    assert present_codes(age, np.array([3, MISSING_INT]))[0].tolist() == [3]


def test_bins_survive_their_json() -> None:
    for bins in (bins_of_numbers(np.arange(50.0)), bins_of_codes(np.arange(5), 1, np.arange(3))):
        assert Bins.model_validate(bins.model_dump(mode="json", exclude_defaults=True)) == bins
