import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.errors import CtrkitError
from ctrkit.feeds import RowError, columns_to_feed, frame_to_columns, input_names, rows_to_columns
from ctrkit.schema import MISSING_INT, Feature
from ctrkit.transforms import canonicalise
from tests.handmade import FEATURES

INT_TAGS = Feature.model_validate({"name": "visited", "kind": "multi_valued", "dtype": "int", "separator": ","})


def column(value: object, feature: str) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    return rows_to_columns([{feature: value}], [*FEATURES, INT_TAGS])[feature]


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        ("user", "u1", "u1"),
        ("user", "", ""),
        ("user", None, ""),
        ("user", 5, "5"),
        ("user", -(2**63) - 1, "-9223372036854775809"),
        ("age", 2**63 - 1, 2**63 - 1),
        ("age", -(2**63), MISSING_INT),
        ("age", None, MISSING_INT),
        ("price", 3, 3.0),
        ("price", 1.5, 1.5),
    ],
)
def test_a_scalar_becomes_its_canonical_value(feature: str, value: object, expected: object) -> None:
    (got,) = column(value, feature)
    assert got == expected and type(got) in (type(expected), np.int64, np.float64)


def test_a_number_that_is_missing_is_nan() -> None:
    assert math.isnan(column(None, "price")[0])
    assert math.isnan(rows_to_columns([{}], FEATURES)["price"][0])


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        ("tags", ["a", "b"], ["a", "b"]),
        ("tags", "a|b", ["a", "b"]),
        ("tags", "a||b", ["a", "", "b"]),
        ("tags", ["a|b", None, 7], ["a|b", "", "7"]),
        ("tags", "", []),
        ("tags", None, []),
        ("tags", [], []),
        ("visited", [3, None], [3, MISSING_INT]),
        ("visited", "3, -4,,+5", [3, -4, MISSING_INT, 5]),
    ],
)
def test_a_bag_becomes_values_and_a_length(feature: str, value: object, expected: list[object]) -> None:
    values, lengths = column(value, feature)
    assert values.tolist() == expected and lengths.tolist() == [len(expected)]
    assert lengths.dtype == np.int64 and values.dtype == (np.int64 if feature == "visited" else object)


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        ("user", 1.5, r"expected a string, got 1.5 \(number\)"),
        ("user", True, r"expected a string, got True \(boolean\)"),
        ("user", {"id": 1}, r"expected a string, got .* \(object\)"),
        ("user", "\ud800", "not valid Unicode"),
        ("age", "5", r"expected an integer, got '5' \(string\)"),
        ("age", 5.0, r"expected an integer, got 5.0 \(number\)"),
        ("age", False, r"got False \(boolean\)"),
        ("age", 2**63, "expected an integer of 64 bits, got 9223372036854775808"),
        ("price", "5", r"expected a number, got '5' \(string\)"),
        ("price", "NaN", r"expected a number, got 'NaN' \(string\)"),
        ("price", True, r"expected a number, got True \(boolean\)"),
        ("price", 10**400, "beyond 64-bit floats"),
        ("tags", 7, r"expected a list, or text separated by '\|', got 7 \(integer\)"),
        ("tags", ["a", ["b"]], r"expected a string, got \['b'\] \(list\)"),
        ("visited", "3,x", r"expected integers, got 'x' \(string\)"),
        ("visited", "1_000", "expected integers"),
        ("visited", [2**64], "64 bits"),
    ],
)
def test_a_wrong_type_is_refused_naming_row_and_field(feature: str, value: object, message: str) -> None:
    with pytest.raises(RowError, match=f"row 2, field '{feature}': .*{message}") as refused:
        rows_to_columns([{}, {feature: None}, {feature: value}], [*FEATURES, INT_TAGS])
    assert (refused.value.row, refused.value.field) == (2, feature)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(RowError) as refused:
        column("9" * 5000, "price")
    assert len(str(refused.value)) < 200


def test_an_unknown_feature_names_the_nearest_one() -> None:
    with pytest.raises(RowError, match="row 1, field 'pryce': unknown feature. Did you mean 'price'?"):
        rows_to_columns([{}, {"pryce": 1}], FEATURES)
    with pytest.raises(RowError, match="Did you mean 'price'?"):
        rows_to_columns([{"PRICE": 1}], FEATURES)


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(RowError, match=r"row 0: expected an object, got \['u1'\] \(list\)"):
        rows_to_columns([["u1"]], FEATURES)


def test_no_rows_give_empty_columns_of_the_right_types() -> None:
    feed = columns_to_feed(rows_to_columns([], FEATURES), FEATURES)
    assert list(feed) == [name for feature in FEATURES for name in input_names(feature)]
    assert {name: (array.shape, array.dtype.kind) for name, array in feed.items()} == {
        "user": ((0,), "O"),
        "age": ((0,), "i"),
        "price": ((0,), "f"),
        "tags.values": ((0,), "O"),
        "tags.lengths": ((0,), "i"),
    }


def test_a_feature_without_a_column_is_named() -> None:
    columns = rows_to_columns([{}], FEATURES)
    del columns["age"]
    with pytest.raises(CtrkitError, match="no column for the feature 'age'"):
        columns_to_feed(columns, FEATURES)


texts = st.text(st.characters(codec="utf-8", exclude_characters="|"), max_size=5)
ints = st.integers(-(2**63), 2**63 - 1)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.none() | texts,
            "age": st.none() | ints,
            "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "tags": st.none() | st.lists(texts, max_size=3),
            "visited": st.none() | st.lists(ints, max_size=3),
        }
    ),
    max_size=6,
)


@given(rows)
def test_rows_of_the_service_and_of_a_file_feed_the_same(rows: list[dict[str, object]]) -> None:
    features = [*FEATURES, INT_TAGS]
    dtypes = {"user": pl.String, "age": pl.Int64, "price": pl.Float64, "tags": pl.List(pl.String), "visited": pl.List(pl.Int64)}
    frame = pl.DataFrame(rows, schema=dtypes)
    served = columns_to_feed(rows_to_columns(rows, features), features)
    scored = columns_to_feed(frame_to_columns(canonicalise(frame, features), features), features)
    assert list(served) == list(scored)
    for name, array in served.items():
        assert array.dtype == scored[name].dtype, name
        np.testing.assert_array_equal(array, scored[name], name)
