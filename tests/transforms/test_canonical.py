"""Whatever dtype a reader gives a column, the raw value comes out the same."""

import datetime
import math
import subprocess
import sys
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT, Feature, Kind
from ctrkit.transforms import canonical, canonical_dtype, canonicalise

TEXT = Feature(name="x", kind=Kind.CATEGORICAL)
INT = Feature(name="x", kind=Kind.CATEGORICAL, dtype="int")
NUMBER = Feature(name="x", kind=Kind.NUMERIC)
BAG = Feature(name="x", kind=Kind.MULTI_VALUED, separator="|")
INT_BAG = Feature(name="x", kind=Kind.MULTI_VALUED, dtype="int", separator=", ")

CASES = {
    "text": (TEXT, pl.Series(["a", "", None, " b "]), ["a", "", "", " b "]),
    "int to text": (TEXT, pl.Series([5, -1, None]), ["5", "-1", ""]),
    "float to text": (TEXT, pl.Series([5.0, math.nan, None, 2.5]), ["5.0", "", "", "2.5"]),
    "boolean to text": (TEXT, pl.Series([True, False, None]), ["true", "false", ""]),
    "category to text": (TEXT, pl.Series(["a", None], dtype=pl.Categorical()), ["a", ""]),
    "enum to text": (TEXT, pl.Series(["a", None], dtype=pl.Enum(["b", "a"])), ["a", ""]),
    "date to text": (TEXT, pl.Series([datetime.date(2024, 2, 29), None]), ["2024-02-29", ""]),
    "nulls to text": (TEXT, pl.Series([None, None]), ["", ""]),
    "int": (INT, pl.Series([2**31 + 1, None, -(2**63)]), [2**31 + 1, MISSING_INT, MISSING_INT]),
    "small int": (INT, pl.Series([255, None], dtype=pl.UInt8), [255, MISSING_INT]),
    "float to int": (INT, pl.Series([5.0, math.nan, None, -0.0, 2.0**53]), [5, MISSING_INT, MISSING_INT, 0, 2**53]),
    "decimal to int": (INT, pl.Series([Decimal("5.00"), None]), [5, MISSING_INT]),
    "text to int": (INT, pl.Series([" 5", "+7", "-3.0", "", "  ", None]), [5, 7, -3, MISSING_INT, MISSING_INT, MISSING_INT]),
    "long text to int": (INT, pl.Series(["9007199254740993", "9223372036854775807"]), [2**53 + 1, 2**63 - 1]),
    "boolean to int": (INT, pl.Series([True, False, None]), [1, 0, MISSING_INT]),
    "nulls to int": (INT, pl.Series([None]), [MISSING_INT]),
    "number": (NUMBER, pl.Series([1.5, math.inf, -math.inf, None, math.nan]), [1.5, math.nan, math.nan, math.nan, math.nan]),
    "int to number": (NUMBER, pl.Series([3, None]), [3.0, math.nan]),
    "decimal to number": (NUMBER, pl.Series([Decimal("0.25"), None]), [0.25, math.nan]),
    "boolean to number": (NUMBER, pl.Series([True, None]), [1.0, math.nan]),
    "text to number": (NUMBER, pl.Series([" 2.5\t", "-1e3", "", " ", None, "nan", "inf", "7"]), [2.5, -1e3] + [math.nan] * 5 + [7.0]),
    "nulls to number": (NUMBER, pl.Series([None]), [math.nan]),
    "text to bag": (BAG, pl.Series(["a|b", "", None, "|c|", "d"]), [["a", "b"], [""], [], ["", "c", ""], ["d"]]),
    "list to bag": (BAG, pl.Series([["a", None], [], None]), [["a", ""], [], []]),
    "int list to bag": (BAG, pl.Series([[5, None], []]), [["5", ""], []]),
    "array to bag": (BAG, pl.Series([["a", "b"], None], dtype=pl.Array(pl.String, 2)), [["a", "b"], []]),
    "scalars to bag": (BAG, pl.Series([5, None]), [["5"], []]),
    "category to bag": (BAG, pl.Series(["a|b", None], dtype=pl.Categorical()), [["a", "b"], []]),
    "empty lists to bag": (BAG, pl.Series([[], []]), [[], []]),
    "nulls to bag": (BAG, pl.Series([None]), [[]]),
    "text to int bag": (INT_BAG, pl.Series(["1, 2", "", None, "3"]), [[1, 2], [MISSING_INT], [], [3]]),
    "list to int bag": (INT_BAG, pl.Series([[2**31 + 1, None], None]), [[2**31 + 1, MISSING_INT], []]),
    "float list to int bag": (INT_BAG, pl.Series([[1.0, math.nan]]), [[1, MISSING_INT]]),
    "text list to int bag": (INT_BAG, pl.Series([[" 1", ""]]), [[1, MISSING_INT]]),
    "scalars to int bag": (INT_BAG, pl.Series([7, None]), [[7], []]),
    "floats to int bag": (INT_BAG, pl.Series([7.0, math.nan, None]), [[7], [], []]),
}


@pytest.mark.parametrize("case", CASES)
def test_canonical_values(case):
    feature, raw, expected = CASES[case]
    frame = pl.DataFrame({"x": raw, "other": raw})
    wanted = pl.Series("x", expected, dtype=canonical_dtype(feature))
    result = canonicalise(frame, [feature])
    assert result["x"].dtype == wanted.dtype
    assert result["x"].equals(wanted, null_equal=True)
    assert result["other"].equals(raw.alias("other"), null_equal=True), "other columns stay"
    for sliced in (frame.clear(), frame.slice(1)):
        assert canonicalise(sliced, [feature])["x"].equals(wanted.slice(1) if sliced.height else wanted.clear(), null_equal=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_expression_gives_the_same(case, engine):
    feature, raw, expected = CASES[case]
    result = pl.DataFrame({"x": raw}).lazy().select(canonical(feature)).collect(engine=engine)
    assert result["x"].equals(pl.Series("x", expected, dtype=canonical_dtype(feature)), null_equal=True)


@pytest.mark.parametrize("case", CASES)
def test_canonical_of_canonical_changes_nothing(case):
    feature, raw, _ = CASES[case]
    once = canonicalise(pl.DataFrame({"x": raw}), [feature])
    assert canonicalise(once, [feature]).equals(once, null_equal=True)


BAD = {
    "word in a number": (NUMBER, pl.Series(["1", "", "n/a", "x"]), "column 'x', row 103: 'n/a' is not a number .and 1 more"),
    "comma in a number": (NUMBER, pl.Series(["1,5"]), "row 101: '1,5' is not a number"),
    "word in an int": (INT, pl.Series(["1", "u7"]), "row 102: 'u7' is not a whole number"),
    "fraction in an int": (INT, pl.Series([1.0, None, 2.5]), "row 103: '2.5' is not a whole number"),
    "fraction text in an int": (INT, pl.Series(["2.5"]), "row 101: '2.5' is not a whole number"),
    "int too large": (INT, pl.Series([1, 2**63], dtype=pl.UInt64), "row 102: '9223372036854775808' is not a whole number"),
    "int text too large": (INT, pl.Series(["9223372036854775808"]), "row 101: '9223372036854775808'"),
    "float too large": (INT, pl.Series([1e19]), "row 101"),
    "infinite int": (INT, pl.Series([math.inf]), "row 101: 'inf'"),
    "word in a bag": (INT_BAG, pl.Series(["1", "", None, "2, x, y"]), "row 104: 'x' is not a whole number of 64 bits .and 1 more"),
    "fraction in a list": (INT_BAG, pl.Series([[], [1.0], [2.5]]), "row 103: '2.5'"),
    "list in a category": (TEXT, pl.Series([["a"]]), "column 'x' holds List.*text"),
    "list in a number": (NUMBER, pl.Series([[1.0]]), "column 'x' holds List.*numbers"),
    "date in a number": (NUMBER, pl.Series([datetime.date(2024, 1, 1)]), "column 'x' holds Date.*numbers"),
    "date in an int": (INT, pl.Series([datetime.date(2024, 1, 1)]), "column 'x' holds Date.*whole numbers"),
    "binary in a category": (TEXT, pl.Series([b"\xff"]), "column 'x' holds Binary"),
    "duration in a category": (TEXT, pl.Series([datetime.timedelta(1)]), "column 'x' holds Duration"),
    "lists in a bag": (BAG, pl.Series([[["a"]]]), "column 'x' holds List"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_cells_are_named(case):
    feature, raw, message = BAD[case]
    with pytest.raises(CtrkitError, match=message):
        canonicalise(pl.DataFrame({"x": raw}), [feature], first_row=100)


def test_missing_column_is_named():
    with pytest.raises(CtrkitError, match="no column 'x'.*Did you mean 'x1'"):
        canonicalise(pl.DataFrame({"x1": [1], "other": [2]}), [TEXT])


@given(st.lists(st.none() | st.integers(-(2**63) + 1, 2**63 - 1)))
@settings(max_examples=50)
def test_ints_survive_text(values):
    ints = pl.Series("x", values, dtype=pl.Int64)
    for feature in (INT, INT_BAG):
        columns = [canonicalise(s.to_frame(), [feature])["x"] for s in (ints, ints.cast(pl.String))]
        assert columns[0].equals(columns[1])


@given(st.lists(st.none() | st.floats(allow_infinity=False, allow_nan=False)))
@settings(max_examples=50)
def test_floats_survive_text(values):
    text = pl.Series("x", [None if v is None else repr(v) for v in values], dtype=pl.String)
    numbers = canonicalise(text.to_frame(), [NUMBER])["x"].to_numpy()
    np.testing.assert_array_equal(numbers, np.array([math.nan if v is None else v for v in values], dtype=float))


def test_import_needs_polars_only():
    code = (
        "import sys, ctrkit.transforms, ctrkit.transforms.canonical\n"
        "print(*({'torch', 'torchrec', 'onnx', 'onnxruntime', 'polars_hash'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_expression_names_column_and_value():
    with pytest.raises(CtrkitError, match="column 'x': 'n/a' is not a number"):
        pl.DataFrame({"x": ["1", "n/a"]}).lazy().select(canonical(NUMBER)).collect()
