"""Labels, times and groups from the columns of a log."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrkit.config import Data
from ctrkit.data.labels import LabelRule, TimeRule, group_ids
from ctrkit.data.readers import Chunk, open_log
from ctrkit.errors import CtrkitError
from ctrkit.schema import NO_GROUP


def rule_for(tmp_path: Path, text: str, **columns: Sequence[Any] | pl.Series) -> tuple[LabelRule, Chunk]:
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame(columns)
    frame.write_parquet(path)
    return LabelRule(text, open_log(Data(path=str(path)))), Chunk(frame, str(path), 11)


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 1],
        [0.0, 1.0, 1.0],
        [False, True, True],
        ["0", "1", "1"],
        ["0.0", " 1", "1.0"],
        ["false", "True", "TRUE"],
        pl.Series([0, 1, 1], dtype=pl.Int8),
    ],
    ids=str,
)
def test_a_column_of_zeros_and_ones(tmp_path: Path, values: Any) -> None:
    rule, chunk = rule_for(tmp_path, "click", click=values)
    labels = rule.values(chunk)
    assert labels.to_list() == [0.0, 1.0, 1.0] and labels.dtype == pl.Float32


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("rating >= 4", {"rating": [3, 4, 5]}, [0, 1, 1]),
        ("rating >= 4", {"rating": ["3", "4", "10"]}, [0, 1, 1]),
        ("country = 'US'", {"country": ["US", "DE", "US"]}, [1, 0, 1]),
        (
            "seconds / length > 0.5 AND kind <> 'ad'",
            {"seconds": ["9", "9", "1"], "length": [10, 10, 10], "kind": ["ad", "tv", "tv"]},
            [0, 1, 0],
        ),
        ('"is clicked" = 1', {"is clicked": [1, 0, 2]}, [1, 0, 0]),
        ("code IN (1, 7)", {"code": ["7", "007", "2"]}, [1, 1, 0]),
    ],
)
def test_an_expression_over_columns(tmp_path: Path, text: str, columns: dict[str, list[Any]], expected: list[int]) -> None:
    rule, chunk = rule_for(tmp_path, text, **columns)
    assert sorted(rule.columns) == sorted(columns)
    assert rule.values(chunk).to_list() == expected


@pytest.mark.parametrize(
    ("text", "columns", "problem"),
    [
        ("click", {"click": [0, 1, 2]}, r"'click' is 2 in row 13 of '.*log.parquet'. It must be 0 or 1.*'click >= 1'"),
        ("click", {"click": ["1", "yes", "0"]}, r"'click' is 'yes' in row 12 of .* expression"),
        ("click", {"click": [1, 0, None]}, r"'click' is missing in row 13 of .* remove those rows"),
        ("click", {"click": ["1", "", "0"]}, r"'click' is '' in row 12"),
        ("click", {"click": [0.0, float("nan"), 1.0]}, r"'click' is nan in row 12"),
        ("rating >= 4", {"rating": [5, None, 1]}, r"'rating >= 4' is missing in row 12"),
        ("rating + 1", {"rating": [0, 1, 2]}, r"'rating \+ 1' is 2 in row 12"),
        ("name >= 4", {"name": ["a", "5", "6"]}, r"cannot be computed: .* Compare numbers with numbers"),
        ("tags", {"tags": [[1], [0], [1]]}, r"'tags' is of type List\(Int64\)"),
    ],
)
def test_what_is_no_label(tmp_path: Path, text: str, columns: dict[str, list[Any]], problem: str) -> None:
    rule, chunk = rule_for(tmp_path, text, **columns)
    with pytest.raises(CtrkitError, match=problem):
        rule.values(chunk)


def test_text_that_was_numbers_so_far_must_stay_numbers(tmp_path: Path) -> None:
    rule, chunk = rule_for(tmp_path, "rating >= 4", rating=["3", "4"])
    rule.values(chunk)
    with pytest.raises(CtrkitError, match="'rating' is 'n/a' in row 3 of 'b.csv'"):
        rule.values(Chunk(pl.DataFrame({"rating": ["1", "n/a"]}), "b.csv", 2))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("clik", "no column 'clik' in .* Did you mean 'click'"),
        ("click >", "neither a column nor an expression"),
        ("1 > 0", "names no column"),
    ],
)
def test_a_label_that_names_nothing(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(CtrkitError, match=problem):
        rule_for(tmp_path, text, click=[0, 1])


@pytest.mark.parametrize(
    "text",
    [
        "rating >= AVG(rating)",
        "MAX(click)",
        "COUNT(*) > 1",
        "rating > MEDIAN(rating) AND click = 1",
        "QUANTILE_CONT(rating, 0.5) > 1",
        "CORR(rating, click) > 0",
        "RANK() OVER (ORDER BY rating) > 1",
        "SUM(click) OVER (PARTITION BY rating) > 1",
        "LAG(click) OVER (ORDER BY rating) = 1",
        "CASE WHEN rating > 1 THEN 0 ELSE FIRST(click) END",
        "UNNEST(tags) > 1",
        "COLUMNS('r.*') > 1",
    ],
)
def test_a_label_is_of_its_own_row(tmp_path: Path, text: str) -> None:
    with pytest.raises(CtrkitError, match="label: '.*' is computed over several rows.* Write an expression of a row's own columns"):
        rule_for(tmp_path, text, click=[0, 1], rating=[1.0, 2.0], tags=[[1], [2]])


def test_columns_and_texts_may_have_the_names_of_operations(tmp_path: Path) -> None:
    rule, chunk = rule_for(
        tmp_path, "Len >= 2 AND \"Agg\" <> 'Rank' AND LOWER(Over) IN ('a', 'Len')", Len=[1, 2], Agg=["x", "y"], Over=["A", "A"]
    )
    assert rule.values(chunk).to_list() == [0, 1]


@pytest.mark.parametrize(
    "times",
    [
        [3, 1, 2],
        [0.3, -0.1, 0.2],
        ["30", "4", "5.5"],
        ["2022-04-10 08:59:09", "2022-04-08 00:00:00", "2022-04-09 23:00:00"],
        ["2022-04-10T08:59:09Z", "2022-04-08T00:00:00Z", "2022-04-09T23:00:00Z"],
        ["2022-12-01", "2022-02-03", "2022-10-01"],
        [date(2022, 12, 1), date(2022, 2, 3), date(2022, 10, 1)],
        [datetime(2022, 12, 1, 5), datetime(2022, 12, 1, 3), datetime(2022, 12, 1, 4)],
    ],
    ids=lambda times: str(times[0]),
)
def test_times_of_any_type_order_the_rows(times: list[Any]) -> None:
    values = TimeRule("t").values(Chunk(pl.DataFrame({"t": times}), "log", 1))
    assert values.dtype == pl.Float64
    assert values.arg_sort().to_list() == [1, 2, 0]


@pytest.mark.parametrize(
    ("times", "problem"),
    [
        ([1, None], "'t' is missing in row 8 of 'log'"),
        ([1.0, float("nan")], "'t' is nan in row 8"),
        (["yesterday", "today"], "'t' is 'yesterday' in row 7 .* a date and time"),
        (["2022-04-10", "soon"], "'t' is 'soon' in row 8"),
        ([True, False], "'t' is of type Boolean"),
    ],
)
def test_what_is_no_time(times: list[Any], problem: str) -> None:
    with pytest.raises(CtrkitError, match=problem):
        TimeRule("t").values(Chunk(pl.DataFrame({"t": times}), "log", 7))


def test_groups_are_equal_where_values_are() -> None:
    ids = group_ids(pl.Series(["a", "b", "a", None, None, "c"]))
    assert ids.dtype == pl.Int64 and ids.null_count() == 0
    assert (ids[0] == ids[2]) and ids.n_unique() == 4
    assert ids[3] == ids[4] == group_ids(pl.Series([""]))[0] == NO_GROUP
    assert group_ids(pl.Series([5, 2**40])).to_list() == group_ids(pl.Series(["5", str(2**40)])).to_list()


def test_a_number_is_one_group_whatever_its_type() -> None:
    whole = [5, 2**40]
    assert group_ids(pl.Series("g", whole, pl.Float64)).to_list() == group_ids(pl.Series("g", whole)).to_list()
    assert group_ids(pl.Series("g", [5.5, 5.0, float("nan"), float("inf"), None])).n_unique() == 5


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([[1]], r"List\(Int64\)"), ([b"\xff"], "Binary"), ([timedelta(1)], "Duration")],
    ids=["list", "binary", "duration"],
)
def test_what_cannot_be_grouped_by(values: list[Any], dtype: str) -> None:
    with pytest.raises(CtrkitError, match=f"group: 'g' is of type {dtype}.* It must be text, numbers or dates"):
        group_ids(pl.Series("g", values))
