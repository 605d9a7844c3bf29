"""The full catalogue is ranked as sorting by hand would, seen items left out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.data.splits import random_keys
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.baselines.popularity import Popularity
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.evaluate import Ranked, item_kinds, measure, measure_slices, rank, rank_catalogue
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.rows import Bags, offsets_of
from tests.retrieval.conftest import ITEMS


def bags(*lists: list[int]) -> Bags:
    return np.array([value for part in lists for value in part], np.int64), offsets_of(np.array([len(part) for part in lists]))


def queries(targets: Bags, seen: Bags, cold: list[bool] | None = None) -> Queries:
    count = len(targets[1]) - 1
    number = np.arange(count)
    return Queries(number, number, np.array(cold or [False] * count), targets, seen, seen)


class Fixed:
    """A score for every query and item."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        return self.table[which]


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 6))
def test_ranks_and_lists_are_those_of_sorting(seed: int, items: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    table = random.integers(0, 4, (rows, items)).astype(float)
    split = [random.permutation(items) for _ in range(rows)]
    held = [int(random.integers(1, items + 1)) for _ in range(rows)]
    targets = [order[:n][: int(random.integers(1, n + 1))].tolist() for order, n in zip(split, held, strict=True)]
    seen = [order[n:].tolist() for order, n in zip(split, held, strict=True)]
    ranked = rank(Fixed(table), queries(bags(*targets), bags(*seen)), items, items)
    keys = random_keys(0, items, seed=0)
    place = 0
    for row in range(rows):
        unseen = [item for item in range(items) if item not in seen[row]]
        best_first = sorted(unseen, key=lambda item: (-table[row, item], keys[item]))
        assert ranked.lists[row].tolist() == [*best_first, *[-1] * len(seen[row])]
        for target in targets[row]:
            assert ranked.ranks[place] == best_first.index(target) + 1
            place += 1


def test_seen_items_are_never_recommended() -> None:
    table = np.array([[5.0, 4.0, 3.0, 2.0, 1.0]])
    ranked = rank(Fixed(table), queries(bags([3]), bags([0, 2])), 5, 3)
    assert ranked.lists.tolist() == [[1, 3, 4]] and ranked.ranks.tolist() == [2]


def test_a_perfect_and_a_hopeless_recommender() -> None:
    targets = bags([0, 1], [2])
    best = np.array([[2.0, 1, 0, -1], [0, 0, 1, -1]])
    asked = queries(targets, bags([], []))
    counts = np.array([1, 1, 1, 1])
    good = measure(rank(Fixed(best), asked, 4, 2), asked, counts, (2,))
    assert good["recall@2"] == good["ndcg@2"] == good["hit@2"] == good["mrr"] == 1
    bad = measure(rank(Fixed(-best), asked, 4, 1), asked, counts, (1,))
    assert bad["recall@1"] == bad["ndcg@1"] == bad["hit@1"] == 0
    assert bad["mrr"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_equal_scores_do_not_favour_the_first_items() -> None:
    """All scores equal: every target's rank is uniform over the catalogue."""
    items = 1000
    asked = queries(bags(*([i] for i in range(items))), bags(*([] for _ in range(items))))
    ranked = rank(Fixed(np.zeros((items, items))), asked, items, 10)
    assert sorted(ranked.ranks.tolist()) == list(range(1, items + 1))
    assert abs(np.corrcoef(ranked.ranks, np.arange(items))[0, 1]) < 0.1


def test_a_score_that_is_no_number_is_an_error(dataset: RetrievalDataset) -> None:
    with pytest.raises(ValueError, match="the item of number 1 a score that is no finite number"):
        rank(Fixed(np.array([[1.0, np.nan]])), queries(bags([0]), bags([])), 2, 1)
    asked = dataset.queries("test", 1)
    with pytest.raises(CtrkitError, match="gives the item 17 a score that is no finite number"):
        rank_catalogue(Fixed(np.where(np.arange(ITEMS) == 17, np.inf, 0.0)[None]), asked, dataset, 5)


def test_a_user_who_has_seen_nearly_all_shortens_no_list_but_his_own() -> None:
    """Of two users' lists of two one has a single item: coverage, novelty and bias count three."""
    counts = np.array([3, 2, 1, 1])
    scores = np.array([[4.0, 3, 2, 1], [4.0, 3, 2, 1]])
    asked = queries(bags([0], [3]), bags([], [0, 1, 2]))
    ranked = rank(Fixed(scores), asked, 4, 2)
    assert ranked.lists.tolist() == [[0, 1], [3, -1]]
    found = measure(ranked, asked, counts, (2,))
    bits = [-math.log2((count + 1) / 11) for count in (3, 2, 1)]
    assert found["coverage@2"] == 3 / 4
    assert found["novelty@2"] == pytest.approx(((bits[0] + bits[1]) / 2 + bits[2]) / 2)
    assert found["popularity_bias@2"] == pytest.approx((3 + 2 + 1) / 3 / 2)


def test_kinds_of_items_go_by_training_events() -> None:
    counts = np.array([0, 100, 5, 5, 4, 3, 2, 2, 1, 1, 1])
    assert item_kinds(counts).tolist() == ["cold", "head", *["torso"] * 4, *["tail"] * 5]


def test_slices_count_only_their_targets_and_queries() -> None:
    counts = np.array([10, 5, 0])
    asked = queries(bags([0, 2], [1], [2]), bags([], [], []), [False, False, True])
    ranked = rank(Popularity(counts), asked, 3, 1)
    assert isinstance(ranked, Ranked)
    found = measure_slices(ranked, asked, counts, np.array([8, 1, 0]), (1,))
    assert found["cold_items"]["queries"] == 2 and found["cold_items"]["recall@1"] == 0
    assert found["cold_items"]["mrr"] == pytest.approx(1 / 3)
    assert found["warm_items"]["queries"] == 2 and found["warm_items"]["recall@1"] == 0.5
    assert found["cold_users"]["queries"] == 1
    assert found["light"]["queries"] == 1 and found["light"]["recall@1"] == 0
    assert found["heavy"]["recall@1"] == 0.5, "one of two targets"
    assert "medium" not in found


def test_popularity_lists_the_most_popular_unseen_items() -> None:
    ranked = rank(Popularity(np.array([1, 9, 5])), queries(bags([0], [1]), bags([1], [])), 3, 2)
    assert ranked.lists.tolist() == [[2, 0], [1, 2]]
