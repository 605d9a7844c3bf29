from hypothesis import example, given
from hypothesis import strategies as st

from ctrkit.data.steps import even_steps


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(1, 9))
@example(rows=3, size=2, least=2)
@example(rows=1, size=2, least=2)
def test_every_row_is_in_one_step_and_steps_are_even(rows: int, size: int, least: int) -> None:
    steps = even_steps(rows, size, least)
    assert [row for start, stop in steps for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in steps]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, rows)
    if rows // least >= -(-rows // size):
        assert max(sizes) <= size and len(steps) == -(-rows // size)
