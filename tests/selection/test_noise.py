"""Chance is what shuffling the rows gives, without shuffling them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from ctrkit.selection.information import Cells, cells
from ctrkit.selection.noise import Chance, Noise, psi


def column(random: np.random.Generator, rows: int, values: int, skew: float) -> np.ndarray:
    shares = 1 / np.arange(1, values + 1) ** skew
    return random.choice(values, rows, p=shares / shares.sum())


def of(codes: np.ndarray) -> Cells:
    return cells(np.bincount(codes))


def shuffled(codes: np.ndarray, positives: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Mutual information with a label of so many ones, over so many shuffles of the rows."""
    rows = len(codes)
    counts = np.bincount(codes)
    clicks = random.multivariate_hypergeometric(counts, positives, size=draws, method="marginals")

    def sums(table: np.ndarray) -> np.ndarray:
        return (table * np.log(np.maximum(table, 1))).sum(-1)

    margins = sums(np.array([positives, rows - positives])) + sums(counts)
    return np.log(rows) + (sums(clicks) + sums(counts - clicks) - margins) / rows


@pytest.mark.parametrize(("rows", "positives", "values"), [(4000, 20, 2000), (10_000, 20, 1000), (2000, 1970, 1000)])
def test_few_clicks_on_many_values_seldom_seem_to_stand_out(rows: int, positives: int, values: int) -> None:
    """Two clicks on one value are a leap: by the smooth tail one shuffle in 20 to 100 is above 3."""
    codes = np.arange(rows) % values
    noise, column = Noise(rows, positives), of(codes)
    chance = noise.with_label(column)
    found = shuffled(codes, positives, 2000, np.random.default_rng(1))
    assert np.mean([chance.z(information) > 3 for information in found]) > 0.005
    levels, times = np.unique(found.round(12), return_counts=True)
    far = sum(int(n) for level, n in zip(levels, times, strict=True) if noise.z(column, chance, level) > 3)
    assert far / len(found) < 0.004
    assert noise.z(column, chance, found.max() * 1.5) == chance.z(found.max() * 1.5), "no shuffle says as much"


@given(st.lists(st.integers(0, 9), min_size=4, max_size=120), st.data())
def test_small_logs_are_exact(values: list[int], data: st.DataObject) -> None:
    positives = data.draw(st.integers(1, len(values) - 1))
    label = np.arange(len(values)) < positives
    expected = expected_mutual_information(contingency_matrix(label, values, sparse=True), len(values))
    found = Noise(len(values), positives).with_label(of(np.array(values)))
    assert found.mean == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("skew", [0.0, 1.0])
@pytest.mark.parametrize("values", [2, 30, 700, 8000])
def test_large_logs_agree_with_scikit_learn(values: int, skew: float) -> None:
    random = np.random.default_rng(values)
    codes = column(random, 20_000, values, skew)
    label = random.random(20_000) < 0.2
    other = column(random, 20_000, 25, 0.5)
    noise = Noise(20_000, int(label.sum()))
    for margin, found in (
        (label, noise.with_label(of(codes)).mean),
        (other, float(noise.between(noise.weights(of(codes))[None], noise.weights(of(other))[None])[0, 0])),
    ):
        expected = expected_mutual_information(contingency_matrix(margin, codes, sparse=True), 20_000)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "skew", "rate"), [(2, 0, 0.3), (5, 1, 0.02), (60, 0, 0.2), (900, 1, 0.05), (1000, 0, 0.2), (4000, 0.7, 0.3)]
)
def test_spread_and_tail_are_those_of_shuffles(values: int, skew: float, rate: float) -> None:
    random = np.random.default_rng(7)
    codes = column(random, 5000, values, skew)
    drawn = shuffled(codes, int(5000 * rate), 1000, random)
    chance = Noise(5000, int(5000 * rate)).with_label(of(codes))
    assert drawn.mean() == pytest.approx(chance.mean, abs=4 * chance.spread / np.sqrt(1000))
    assert drawn.std() == pytest.approx(chance.spread, rel=0.15)
    far = np.mean([chance.z(float(mi)) > 2.5 for mi in drawn])
    assert far < 0.02  # 0.006 for a normal variable


def test_information_of_unique_values_is_all_chance() -> None:
    chance = Noise(5000, 1000).with_label(of(np.arange(5000)))
    entropy = cells(np.array([1000, 4000])).entropy
    assert chance.mean == pytest.approx(entropy, rel=1e-9)
    assert chance.z(entropy) == 0


def test_a_constant_has_no_chance() -> None:
    assert Noise(5000, 1000).with_label(of(np.zeros(5000, int))) == Chance(0.0, 0.0)
    assert Chance(0.0, 0.0).z(0.0) == 0


def test_a_cell_by_hand() -> None:
    """2 of 3 rows are clicks; a value of one row has one with probability 2/3, and N log(N n / (a b)) is then log(3 / 2)."""
    assert psi(3, 1, 2) == pytest.approx(2 / 3 * np.log(3 / 2))
    assert psi(10, 10, 4) == pytest.approx(0)
