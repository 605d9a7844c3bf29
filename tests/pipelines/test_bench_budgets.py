"""Both splits spend a budget to the row, each by its rule."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.bench.budgets import LEAST_ROWS, equal_caps, in_proportion

NEEDED = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(3, 10**6), min_size=1, max_size=8)


@given(NEEDED, st.integers(0, 10**6))
def test_rows_in_proportion_add_up(needed: dict[str, int], more: int) -> None:
    rows = LEAST_ROWS * len(needed) + more
    split = in_proportion(needed, rows)
    assert list(split) == list(needed)
    assert sum(split.values()) == rows
    assert min(split.values()) >= LEAST_ROWS
    larger = {name: n for name, n in split.items() if n > LEAST_ROWS + 1}
    if larger:
        ratio = sum(larger.values()) / sum(needed[name] for name in larger)
        assert all(abs(n - ratio * needed[name]) <= 2 + len(split) for name, n in larger.items())


@given(NEEDED, st.data())
def test_caps_are_equal_and_spend_the_budget(needed: dict[str, int], data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, sum(needed.values())))
    split = equal_caps(needed, rows)
    assert list(split) == list(needed)
    assert sum(split.values()) == rows
    capped = [n for name, n in split.items() if n < needed[name]]
    if capped:
        cap = max(capped)
        assert all(n in (cap, cap - 1) for n in capped)
        assert all(needed[name] <= cap for name, n in split.items() if n == needed[name])


def test_splits_by_hand() -> None:
    needed = {"user": 600, "item": 300, "gender": 4}
    assert in_proportion(needed, 94) == {"user": 60, "item": 30, "gender": 4}
    assert equal_caps(needed, 95) == {"user": 46, "item": 45, "gender": 4}
    assert equal_caps(needed, 704) == {"user": 400, "item": 300, "gender": 4}
