import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.diversity import diversified

CORNER = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])


def test_a_hand_worked_list() -> None:
    scores = np.array([1.0, 0.9, 0.5, 0.0])
    assert diversified(scores, CORNER, 1.0, 4).tolist() == [0, 1, 2, 3]
    # after 0: 1 has 0.5 * 0.9 - 0.5 * 0.995 = -0.05, 2 has 0.25, 3 has 0.5; after 3: 2 has 0.25 again, 1 still -0.05
    assert diversified(scores, CORNER, 0.5, 4).tolist() == [0, 3, 2, 1]
    assert diversified(scores, CORNER, 0.8, 3).tolist() == [0, 1, 2]


def test_it_asks_of_scores_only_their_order_and_distances() -> None:
    scores = np.array([0.2, 0.9, 0.5, 0.7])
    once = diversified(scores, CORNER, 0.6, 3)
    np.testing.assert_array_equal(once, diversified(10 * scores - 4, 3 * CORNER, 0.6, 3))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_short_lists(count: int) -> None:
    assert len(diversified(np.ones(3), np.eye(3), 0.5, count)) == min(count, 3)
    assert len(diversified(np.empty(0), np.empty((0, 3)), 0.5, count)) == 0


@given(st.integers(0, 2**16), st.floats(0, 1), st.integers(1, 12), st.integers(1, 15))
def test_each_choice_is_the_best_that_was_left(seed: int, weight: float, items: int, count: int) -> None:
    random = np.random.default_rng(seed)
    scores, vectors = random.normal(size=items), random.normal(size=(items, 3))
    chosen = diversified(scores, vectors, weight, count).tolist()
    assert len(chosen) == len(set(chosen)) == min(items, count) and chosen[0] == int(np.argmax(scores))
    relevance = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for place in range(1, len(chosen)):
        gains = weight * relevance - (1 - weight) * (units @ units[chosen[:place]].T).max(axis=1)
        left = [item for item in range(items) if item not in chosen[:place]]
        assert gains[chosen[place]] >= max(gains[left]) - 1e-9
