"""Mutual information is scikit-learn's, to the last digits, and nobody's names or places change a bit of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from ctrkit.selection import information as kernel
from ctrkit.selection.information import Cells, cells, crossed, information, joint_cells, joint_table

Columns = tuple[np.ndarray, int, np.ndarray, int, np.ndarray]


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    """Two columns of codes with their sizes, and a label."""
    rows = draw(st.integers(1, 60))
    sizes = draw(st.integers(1, 12)), draw(st.integers(1, 400))
    a, b = (np.array(draw(st.lists(st.integers(0, size - 1), min_size=rows, max_size=rows)), np.uint16) for size in sizes)
    label = np.array(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)), np.uint8)
    return a, sizes[0], b, sizes[1], label


def same(first: Cells, second: Cells) -> bool:
    return np.array_equal(first.counts, second.counts) and np.array_equal(first.times, second.times)


def measured(a: np.ndarray, a_size: int, b: np.ndarray, b_size: int) -> float:
    table = joint_table(a, a_size, b, b_size)
    return information(cells(table), cells(table.sum(1)), cells(table.sum(0)))


@given(columns())
def test_it_is_scikit_learns(given: Columns) -> None:
    a, a_size, b, b_size, _ = given
    assert measured(a, a_size, b, b_size) == pytest.approx(mutual_info_score(a, b), rel=1e-9, abs=1e-12)


@given(columns(), st.randoms(use_true_random=False))
def test_names_and_places_of_rows_change_no_bit(given: Columns, random) -> None:
    a, a_size, b, b_size, label = given
    names, rows = list(range(a_size)), list(range(len(a)))
    random.shuffle(names)
    random.shuffle(rows)
    renamed = np.array(names, np.uint16)[a][rows]
    assert measured(renamed, a_size, b[rows], b_size) == measured(a, a_size, b, b_size)
    for one, other in zip(
        joint_cells(renamed, a_size, b[rows], b_size, label[rows]), joint_cells(a, a_size, b, b_size, label), strict=True
    ):
        assert same(one, other)


@given(columns())
def test_the_cells_of_a_pair_are_those_of_its_rows(given: Columns) -> None:
    a, a_size, b, b_size, label = given
    joint, with_label = joint_cells(a, a_size, b, b_size, label)
    _, counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    _, labelled = np.unique(np.stack([a, b, label]), axis=1, return_counts=True)
    assert same(joint, cells(counts)) and same(with_label, cells(labelled))


@given(columns())
def test_counting_by_sorting_is_counting_by_table(given: Columns) -> None:
    a, a_size, b, b_size, label = given
    with pytest.MonkeyPatch.context() as patch:
        by_table = joint_cells(a, a_size, b, b_size, label)
        patch.setattr(kernel, "TABLE_CELLS", 0)
        by_sorting = joint_cells(a, a_size, b, b_size, label)
    assert same(by_table[0], by_sorting[0]) and same(by_table[1], by_sorting[1])


def test_more_joint_codes_than_32_bits_hold() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 70_000, 3000).astype(np.uint32), random.integers(0, 70_000, 3000).astype(np.uint32)
    label = random.integers(0, 2, 3000).astype(np.uint8)
    joint, with_label = joint_cells(a, 70_000, b, 70_000, label)
    assert (joint.rows, with_label.rows) == (3000, 3000)
    assert joint.number == len(set(zip(a.tolist(), b.tolist(), strict=True)))


@given(columns())
def test_crossing_makes_a_value_of_each_pair(given: Columns) -> None:
    a, _, b, b_size, _ = given
    joined, size = crossed(a, b, b_size)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert size == len(set(pairs)) == len(set(zip(joined.tolist(), pairs, strict=True)))


def test_known_answers() -> None:
    a = np.array([0, 0, 1, 1], np.uint8)
    assert measured(a, 2, a, 2) == pytest.approx(np.log(2))
    assert measured(a, 2, np.array([0, 1, 0, 1], np.uint8), 2) == 0
    assert cells(np.array([[0, 3], [3, 1]])).entropy == pytest.approx(-(2 * 3 / 7 * np.log(3 / 7) + np.log(1 / 7) / 7))
