"""Splits of exact sizes, found in passes over keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.config import Split
from ctrkit.data.splits import cut, in_passes, kth_largest, order_keys, random_keys, time_keys
from ctrkit.errors import CtrkitError


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_the_kth_largest_key(keys: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(keys)))
    chunks = np.array_split(np.array(keys, dtype=np.uint64), 3)
    expected = sorted(keys, reverse=True)[k - 1]
    assert kth_largest(lambda: chunks, len(keys), k) == (expected, sum(x >= expected for x in keys), sum(x > expected for x in keys))


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=50))
def test_time_keys_keep_the_order(times: list[float]) -> None:
    keys = time_keys(np.array(times))
    for i in range(1, len(times)):
        assert (times[i - 1] < times[i]) == (keys[i - 1] < keys[i])
        assert (times[i - 1] == times[i]) == (keys[i - 1] == keys[i])


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_random_keys_are_distinct_uniform_and_independent_of_the_chunks(seed: int) -> None:
    keys = random_keys(0, 100_000, seed)
    assert len(np.unique(keys)) == 100_000
    pieces = [random_keys(first, count, seed) for first, count in ((0, 7), (7, 60_000), (60_007, 39_993))]
    assert np.array_equal(np.concatenate(pieces), keys)
    counts = np.bincount((keys >> np.uint64(60)).astype(int), minlength=16)
    assert np.square(counts - 6250).sum() / 6250 < 37.7  # chi-squared, 15 degrees of freedom, p = 0.001


def test_seeds_give_unrelated_splits() -> None:
    first, second = (random_keys(0, 100_000, seed) > np.uint64(2**63) for seed in (0, 1))
    assert abs(np.mean(first == second) - 0.5) < 0.01


@pytest.mark.parametrize(("valid", "test", "sizes"), [(0.1, 0.2, (700, 100, 200)), (30, 50, (920, 30, 50)), (0.25, 0, (750, 250, 0))])
@pytest.mark.parametrize("by", ["order", "random"])
def test_sizes_are_exact(by: str, valid: float, test: float, sizes: tuple[int, int, int]) -> None:
    split = Split.model_validate({"by": by, "valid": valid, "test": test})
    keys = order_keys(0, 1000) if by == "order" else random_keys(0, 1000, 3)
    found = cut(lambda: [keys[:300], keys[300:]], 1000, split)
    assert tuple(found.rows.values()) == sizes
    assert tuple(np.bincount(found.assign(keys), minlength=3)) == sizes


def test_in_order_the_test_comes_last_and_the_validation_before_it() -> None:
    found = cut(lambda: in_passes(order_keys, 10), 10, Split(by="order", valid=2, test=3))
    assert found.assign(order_keys(0, 10)).tolist() == [0] * 5 + [1] * 2 + [2] * 3


@given(st.lists(st.integers(0, 12), min_size=12, max_size=80), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_rows_of_one_time_stay_together_and_splits_follow_time(times: list[int], valid: float, test: float) -> None:
    keys = time_keys(np.array(times, dtype=float))
    split = Split(by="time", column="t", valid=valid, test=test)
    try:
        found = cut(lambda: [keys], len(keys), split)
    except CtrkitError as error:
        assert ("no rows for" in str(error) and len(set(times)) < 3) or "no split may be empty" in str(error)
        return
    assigned = found.assign(keys)
    assert np.bincount(assigned, minlength=3).tolist() == list(found.rows.values())
    by_time = {t: {int(a) for a, x in zip(assigned, times, strict=True) if x == t} for t in times}
    assert all(len(splits) == 1 for splits in by_time.values())
    ordered = [splits.pop() for _, splits in sorted(by_time.items())]
    assert ordered == sorted(ordered) and set(ordered) == {0, 1, 2}


def test_ties_take_the_nearer_size() -> None:
    times = np.repeat(np.arange(10.0), 100)  # a tenth a day
    found = cut(lambda: [time_keys(times)], 1000, Split(by="time", column="t", valid=0.12, test=0.08))
    assert found.rows == {"train": 800, "valid": 100, "test": 100}


@pytest.mark.parametrize(
    ("days", "sizes"),
    [
        ([25, 25, 25, 25], {"train": 50, "valid": 25, "test": 25}),
        ([34, 33, 33], {"train": 34, "valid": 33, "test": 33}),
        ([10, 80, 10], {"train": 10, "valid": 80, "test": 10}),
        ([80, 19, 1], {"train": 80, "valid": 19, "test": 1}),
    ],
)
def test_few_days_are_split_though_far_from_the_sizes(days: list[int], sizes: dict[str, int]) -> None:
    times = time_keys(np.repeat(np.arange(len(days), dtype=float), days))
    assert cut(lambda: [times], 100, Split(by="time", column="day", valid=0.1, test=0.1)).rows == sizes


@pytest.mark.parametrize(
    ("rows", "split"),
    [
        (5, Split(by="order", valid=0.05, test=0.2)),
        (10, Split(by="order", valid=5, test=5)),
        (0, Split(by="random")),
        (4, Split(by="order")),
    ],
)
def test_no_split_may_be_empty(rows: int, split: Split) -> None:
    with pytest.raises(CtrkitError, match="no split may be empty.*Change split.valid and split.test"):
        cut(lambda: in_passes(order_keys, rows), rows, split)


def test_one_time_for_all_rows_cannot_be_split() -> None:
    with pytest.raises(CtrkitError, match="too many rows share one 'day'"):
        cut(lambda: [time_keys(np.zeros(100))], 100, Split(by="time", column="day"))
