"""Which events are for what, and that nothing of the future is known before it happens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalSplit
from ctrkit.retrieval.events import LEFT_OUT, TEST, TRAIN, VALID, Events, assign_splits, queries_of


def made(rows: list[tuple[int, int, float]], **split: object) -> Events:
    """Events of (user, item, time) in any order."""
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))
    user, item = (np.array([row[i] for row in ordered], np.int64) for i in range(2))
    time = np.array([row[2] for row in ordered], np.float64)
    codes, cold = assign_splits(user, item, time, RetrievalSplit.model_validate(split))
    return Events(user, item, time, codes, cold)


def bag(bags: tuple[np.ndarray, np.ndarray], row: int) -> list[int]:
    values, offsets = bags
    return values[offsets[row] : offsets[row + 1]].tolist()


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[int, int, float]]:
    """Events of some users, some at the same time; every user has each item once at most."""
    rows = [(0, i, float(i)) for i in range(4)]
    for user in range(1, draw(st.integers(1, 5)) + 1):
        items = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True))
        rows += [(user, item, float(draw(st.integers(0, 6)))) for item in items]
    return rows


def test_the_last_event_is_the_test_and_the_one_before_validation() -> None:
    events = made([(0, 5, 3.0), (0, 6, 1.0), (0, 7, 2.0), (0, 8, 0.5), (1, 5, 1.0), (1, 6, 2.0)])
    assert events.item[events.user == 0].tolist() == [8, 6, 7, 5]
    assert events.split.tolist() == [TRAIN, TRAIN, VALID, TEST, TRAIN, TRAIN]
    test, valid = queries_of(events, "test"), queries_of(events, "valid")
    assert bag(test.targets, 0) == [5] and bag(test.history, 0) == [8, 6, 7] and sorted(bag(test.seen, 0)) == [6, 7, 8]
    assert bag(valid.targets, 0) == [7] and bag(valid.history, 0) == [8, 6] and sorted(bag(valid.seen, 0)) == [6, 8]


def test_by_time_a_user_is_asked_once_for_all_his_targets() -> None:
    events = made([(u, i, float(10 * i + u)) for u in range(2) for i in range(10)], by="time", valid=4, test=6)
    asked = queries_of(events, "test")
    assert len(asked) == 2
    assert [sorted(bag(asked.targets, row)) for row in range(2)] == [[7, 8, 9], [7, 8, 9]]
    assert bag(asked.history, 0) == [0, 1, 2, 3, 4, 5, 6]
    assert bag(queries_of(events, "valid").history, 1) == [0, 1, 2, 3, 4]


@given(logs(), st.sampled_from(["leave-last-out", "time"]), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.3]))
def test_a_history_holds_only_what_was_before(log: list[tuple[int, int, float]], by: str, cold_items: float, cold_users: float) -> None:
    try:
        events = made(log, by=by, cold_items=cold_items, cold_users=cold_users, valid=0.2, test=0.2)
    except CtrkitError:
        return
    when = {(int(u), int(i)): float(t) for u, i, t in zip(events.user, events.item, events.time, strict=True)}
    cold = {(int(u), int(i)) for u, i in zip(events.user[events.cold], events.item[events.cold], strict=True)}
    history = events.histories(np.arange(len(events)))
    for event in range(len(events)):
        user = int(events.user[event])
        for item in bag(history, event):
            assert when[user, item] < events.time[event], "strictly earlier, and the user's own"
            assert (user, item) not in cold
    for split in ("valid", "test"):
        asked = queries_of(events, split)
        for query in range(len(asked)):
            user, targets = int(asked.user[query]), bag(asked.targets, query)
            earliest = min(when[user, item] for item in targets)
            assert all(when[user, item] < earliest for item in bag(asked.history, query))
            assert not set(targets) & set(bag(asked.seen, query)), "a target can be recommended"
            assert not set(targets) & set(bag(asked.history, query))


def test_every_target_is_asked_for_once() -> None:
    events = made([(u, i, float((7 * u + 3 * i) % 11)) for u in range(6) for i in range(8)], cold_items=0.25, cold_users=0.2)
    for split in ("valid", "test"):
        asked, index = queries_of(events, split), events.of_split(split)
        user = np.repeat(asked.user, np.diff(asked.targets[1]))
        pairs = sorted(zip(user.tolist(), asked.targets[0].tolist(), strict=True))
        assert pairs == sorted(zip(events.user[index].tolist(), events.item[index].tolist(), strict=True))


def test_cold_items_and_users_are_never_trained_on() -> None:
    events = made([(u, i, float((i + u) % 10)) for u in range(10) for i in range(10)], cold_items=0.2, cold_users=0.3)
    trained = events.split == TRAIN
    assert len(set(events.item[trained])) == 8 and len(set(events.user[trained])) == 7
    assert not events.cold[events.split != TEST][events.split[events.split != TEST] != LEFT_OUT].any()
    asked = queries_of(events, "test")
    assert asked.cold_user.sum() == 3
    assert all(bag(asked.history, row) == [] for row in np.flatnonzero(asked.cold_user))
    cold_items = set(range(10)) - set(events.item[trained].tolist())
    everything, _ = events.histories(np.arange(len(events)))
    assert not cold_items & set(everything.tolist())


def test_a_share_of_training_leaves_events_out_and_changes_no_target() -> None:
    rows = [(u, i, float(i)) for u in range(40) for i in range(20)]
    full, half = made(rows), made(rows, train_share=0.5)
    assert 0.4 < (half.split == TRAIN).sum() / (full.split == TRAIN).sum() < 0.6
    for code in (VALID, TEST):
        np.testing.assert_array_equal(full.split == code, half.split == code)
    asked = queries_of(half, "test")
    np.testing.assert_array_equal(asked.seen[0], queries_of(full, "test").seen[0])
    left_out = set(zip(half.user[half.split == LEFT_OUT].tolist(), half.item[half.split == LEFT_OUT].tolist(), strict=True))
    assert not any((int(u), item) in left_out for row, u in enumerate(asked.user) for item in bag(asked.history, row))


def test_a_log_too_short_to_split_is_an_error() -> None:
    with pytest.raises(CtrkitError, match="none of the 2 events are for valid"):
        made([(0, 0, 0.0), (0, 1, 1.0)])
