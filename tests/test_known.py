from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.errors import CtrkitError
from ctrkit.known import KnownValues
from ctrkit.schema import MISSING_INT

texts = st.text(max_size=4).filter(lambda text: "\0" not in text and text.isprintable())


@given(
    st.lists(texts, max_size=8),
    st.lists(texts, max_size=8),
    st.lists(st.integers(-5, 5), max_size=8),
    st.lists(st.integers(-9, 9), max_size=8),
)
def test_unknown_values_are_those_outside_the_vocabulary(
    words: list[str], asked: list[str], numbers: list[int], asked_numbers: list[int]
) -> None:
    known = KnownValues.of({"word": words, "number": numbers})
    values = np.empty(len(asked), object)
    values[:] = asked
    assert known.unknown("word", values) == sum(text not in words and text != "" for text in asked)
    got = known.unknown("number", np.array([*asked_numbers, MISSING_INT], np.int64))
    assert got == sum(number not in numbers for number in asked_numbers)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "known.npz"
    KnownValues.of({"a/b ä": ["x", "y"], "n": [2**62, -5], "none": []}).save(file)
    known = KnownValues.load(file)
    assert "a/b ä" in known and "n" in known and "other" not in known
    assert known.unknown("a/b ä", np.array(["x", "z"], object)) == 1
    assert known.unknown("n", np.array([2**62, 2**62 + 1])) == 1
    assert known.unknown("none", np.array(["x", ""], object)) == 1
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CtrkitError, match="is damaged"):
        KnownValues.load(file)
