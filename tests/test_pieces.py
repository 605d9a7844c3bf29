from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.bundle import RUN_ROWS, open_bundle
from ctrkit.feeds import columns_to_feed, rows_to_columns
from ctrkit.pieces import in_pieces
from tests.handmade import FEATURES, make_bundle, probability

TAGS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4)
SOME = st.lists(st.fixed_dictionaries({"user": st.sampled_from(["u1", "u2"]), "age": st.integers(0, 9), "tags": TAGS}), max_size=9)


def feed_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return columns_to_feed(rows_to_columns(rows, FEATURES), FEATURES)


@given(SOME, st.integers(1, 4))
def test_pieces_hold_the_rows_in_their_order(rows: list[dict[str, Any]], most: int) -> None:
    pieces = in_pieces(feed_of(rows), FEATURES, most)
    expected = [feed_of(rows[at : at + most]) for at in range(0, len(rows) or 1, most)]
    assert len(pieces) == len(expected)
    for piece, part in zip(pieces, expected, strict=True):
        assert piece.keys() == part.keys()
        for name in part:
            np.testing.assert_array_equal(piece[name], part[name])


@pytest.mark.parametrize("count", [RUN_ROWS, RUN_ROWS + 1, 3 * RUN_ROWS + 7])
def test_no_run_is_larger_and_all_rows_get_their_own_probability(tmp_path: Path, count: int) -> None:
    rows = [{"user": f"u{i % 3}", "age": i, "price": i / 7, "tags": ["a"] * (i % 4)} for i in range(count)]
    bundle = open_bundle(make_bundle(tmp_path))
    session, sizes = bundle.session, []

    class Watched:
        def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> Any:
            sizes.append(len(feed["user"]))
            return session.run(outputs, feed)

    bundle.__dict__["session"] = Watched()
    np.testing.assert_allclose(bundle.score(rows), [probability(row) for row in rows], rtol=1e-5)
    assert sum(sizes) == count and max(sizes) <= RUN_ROWS
