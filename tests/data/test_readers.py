"""Logs of any layout come out as the same rows; broken ones with the file, the row and the remedy."""

import csv
import gzip
import json
from datetime import date, datetime
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.config import Data
from ctrkit.data import files
from ctrkit.data.readers import LogReader, open_log
from ctrkit.errors import CtrkitError

NAMES = ["id", "name", "score"]
ROWS = [("007", "Zoë", "1.5"), ("8", "O'Neil, Ann", "2"), ("9", None, "-3e2"), ("10", "x:y", None)]
TABLE = pl.DataFrame(ROWS, schema=NAMES, orient="row")


def lines(separator: str, *, header: bool = True, quote: bool = False, end: str = "\n") -> str:
    rows = [NAMES, *ROWS] if header else list(ROWS)
    cells = [["" if c is None else f'"{c}"' if quote and separator in c else c for c in row] for row in rows]
    return "".join(separator.join(row) + end for row in cells)


def write(path: Path, text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def read(needed: list[str] | None = None, chunk_rows: int = 100_000, **layout: object) -> pl.DataFrame:
    return pl.concat(open_log(Data.model_validate(layout), needed, chunk_rows=chunk_rows))


LAYOUTS = {
    "log.csv": (lines(",", quote=True), {}),
    "log.csv.gz": (lines(",", quote=True), {}),
    "crlf.csv": (lines(",", quote=True, end="\r\n"), {}),
    "bom.csv": (b"\xef\xbb\xbf" + lines(",", quote=True).encode(), {}),
    "no_end.csv": (lines(",", quote=True).rstrip("\n"), {}),
    "blank_end.csv": (lines(",", quote=True) + "\n\r\n\n", {}),
    "log.tsv": (lines("\t"), {}),
    "log.tsv.gz": (lines("\t"), {}),
    "semicolon.csv": (lines(";"), {"separator": ";"}),
    "double.dat": (lines("::"), {"separator": "::"}),
    "bare.dat": (lines("::", header=False), {"separator": "::", "header": False, "columns": NAMES}),
    "latin.csv": (lines(";").encode("latin-1"), {"separator": ";", "encoding": "latin-1"}),
    "log.txt": (lines("\t"), {"format": "tsv"}),
    "log.jsonl": ("".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS), {}),
    "latin.jsonl": (
        "".join(json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=False) + "\n" for row in ROWS).encode("latin-1"),
        {"encoding": "latin-1"},
    ),
    "log.jsonl.gz": ("".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS), {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    text, layout = LAYOUTS[name]
    path = write(tmp_path / name, text)
    assert open_log(Data.model_validate({"path": path, **layout})).columns() == NAMES
    assert read(path=path, **layout).equals(TABLE)
    assert read(["score", "id"], path=path, **layout).equals(TABLE.select("score", "id"))


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
def test_parquet_of_any_compression(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "log.parquet"
    TABLE.write_parquet(path, compression=compression)  # pyright: ignore[reportArgumentType]
    assert read(path=str(path)).equals(TABLE)
    assert read(["name"], path=str(path)).equals(TABLE.select("name"))


def test_parquet_keeps_types_and_spells_categories_out(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame({"tags": [["a", "b"], []], "n": [2**62, -1], "c": pl.Series(["x", "y"], dtype=pl.Categorical)})
    frame.write_parquet(path)
    assert read(path=str(path)).equals(frame.with_columns(pl.col("c").cast(pl.String)))


def test_rows_come_in_chunks_of_bounded_size_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    path = write(tmp_path / "log.csv", "n\n" + "".join(f"{i}\n" for i in range(5000)))
    chunks = list(LogReader(Data(path=path), [path], chunk_rows=70).chunks())
    assert max(chunk.frame.height for chunk in chunks) <= 70
    assert pl.concat(chunk.frame for chunk in chunks)["n"].to_list() == [str(i) for i in range(5000)]
    assert [chunk.first_row for chunk in chunks] == [int(chunk.frame["n"][0]) + 1 for chunk in chunks]


def test_globs_and_lists_of_files_with_columns_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", "y,x\n1,2\n")
    write(tmp_path / "a.csv", "x,y\n3,4\n")
    expected = pl.DataFrame({"x": ["3", "2"], "y": ["4", "1"]})
    assert read(path=str(tmp_path / "*.csv")).equals(expected)
    assert read(path=[str(tmp_path / "b.csv"), str(tmp_path / "a.csv")])["x"].to_list() == ["2", "3"]


CELL = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), min_size=1, max_size=12))


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=30), size=st.integers(1, 60))
def test_any_quoted_text_survives_wherever_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, ...]], size: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NOTNULL if hasattr(csv, "QUOTE_NOTNULL") else csv.QUOTE_MINIMAL, lineterminator="\n")
        writer.writerow(["a", "b", "c"])
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", size)
        frame = read(path=str(path))
    assert [tuple(cell or None for cell in row) for row in frame.rows()] == rows


def test_numbers_are_read_as_numbers_where_all_cells_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 8)
    path = write(tmp_path / "log.csv", "x,k\n1.5,007\n,008\n-2e3,009\n oops,010\n")
    frames = list(LogReader(Data(path=path), [path], numbers=["x"]))
    assert [x for f in frames for x in f["x"]] == [1.5, None, -2000.0, " oops"]
    assert {f["x"].dtype for f in frames[:-1]} == {pl.Float64()} and frames[-1]["x"].dtype == pl.String
    assert pl.concat(f.select("k") for f in frames)["k"].to_list() == ["007", "008", "009", "010"]


# --- side tables ---


def joined(tmp_path: Path, log: str, users: str, **side: object) -> Data:
    return Data.model_validate(
        {
            "path": write(tmp_path / "log.csv", log),
            "joins": [{"path": write(tmp_path / "users.csv", users), "on": "user", **side}],
        }
    )


def test_side_tables_are_joined_in_the_order_of_the_log(tmp_path: Path) -> None:
    data = joined(tmp_path, "user,y\nb,1\na,0\nghost,1\nb,0\n", "user,age,city\na,30,Rom\nb,40,Ulm\nc,50,Bern\n")
    reader = open_log(data)
    assert reader.columns() == ["user", "y", "age", "city"]
    assert pl.concat(reader).rows() == [
        ("b", "1", "40", "Ulm"),
        ("a", "0", "30", "Rom"),
        ("ghost", "1", None, None),
        ("b", "0", "40", "Ulm"),
    ]
    assert pl.concat(open_log(data, ["age", "y"])).rows() == [("40", "1"), ("30", "0"), (None, "1"), ("40", "0")]


def test_a_side_table_may_hang_on_another_and_keys_may_differ_in_type(tmp_path: Path) -> None:
    pl.DataFrame({"user": [2, 1], "y": [0, 1]}).write_parquet(tmp_path / "log.parquet")
    write(tmp_path / "users.csv", "user,city\n1,Rom\n2,Ulm\n")
    write(tmp_path / "cities.csv", "city,land\nUlm,DE\nRom,IT\n")
    data = {
        "path": str(tmp_path / "log.parquet"),
        "joins": [{"path": str(tmp_path / "users.csv"), "on": "user"}, {"path": str(tmp_path / "cities.csv"), "on": "city"}],
    }
    assert read(**data).rows() == [(2, 0, "Ulm", "DE"), (1, 1, "Rom", "IT")]
    assert read(["land"], **data).rows() == [("DE",), ("IT",)]


def test_numbers_and_dates_join_whatever_their_types(tmp_path: Path) -> None:
    """Such as a column of whole numbers with a hole in it, which pandas writes as 5.0."""
    day = date(2024, 1, 5)
    users = {"int": [5, 6], "float": [5.0, 6.5], "text": ["5", "6"], "day": [day, date(2024, 1, 6)]}
    logs = {"int": [7, 5], "float": [None, 5.0], "text": ["7", "5"], "day": [None, datetime(2024, 1, 5)]}
    for (mine, log), (its, keys) in product(logs.items(), users.items()):
        if (mine == "day") != (its == "day"):
            continue
        pl.DataFrame({"key": log}).write_parquet(tmp_path / "log.parquet")
        pl.DataFrame({"key": keys, "age": [30, 40]}).write_parquet(tmp_path / "users.parquet")
        data = {"path": str(tmp_path / "log.parquet"), "joins": [{"path": str(tmp_path / "users.parquet"), "on": "key"}]}
        assert read(["age"], **data)["age"].to_list() == [None, 30], (mine, its)


@pytest.mark.parametrize(
    ("log", "users", "problem"),
    [
        ({"user": [["a"]]}, {"user": ["a"], "age": [1]}, r"data.joins: the key 'user' in '.*log.parquet' is of type List\(String\)"),
        ({"user": ["a"]}, {"user": [["a"]], "age": [1]}, r"data.joins: the key 'user' in '.*users1.parquet' is of type List\(String\)"),
        ({"user": ["a"]}, {"user": [], "age": []}, "the side table '.*users1.parquet' has no rows. Mend the file, or leave it out"),
    ],
)
def test_side_tables_whose_keys_are_none(tmp_path: Path, log: dict[str, Any], users: dict[str, Any], problem: str) -> None:
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    pl.DataFrame(users).write_parquet(tmp_path / "users1.parquet")
    with pytest.raises(CtrkitError, match=problem):
        read(path=str(tmp_path / "log.parquet"), joins=[{"path": str(tmp_path / "users1.parquet"), "on": "user"}])


def test_a_side_table_of_files_that_differ_in_type(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["a"], "age": [1]}).write_parquet(tmp_path / "users1.parquet")
    pl.DataFrame({"user": ["b"], "age": [[1]]}).write_parquet(tmp_path / "users2.parquet")
    with pytest.raises(CtrkitError, match="columns of several types.* Write all its files alike"):
        read(path=write(tmp_path / "log.csv", "user\na\n"), joins=[{"path": str(tmp_path / "users?.parquet"), "on": "user"}])


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        ("user,age\na,1\nb,2\na,3\n", "holds the key user = 'a' more than once, first in row 1"),
        ("user,y\na,1\n", "the columns y are both in the log and in"),
        ("user,age\na,1\n,2\n", "row 2 of the side table"),
        ("usr,age\na,1\n", "no column 'user'"),
        ("user,age\n", "the side table '.*users.csv' has no rows"),
    ],
)
def test_side_tables_that_cannot_be_joined(tmp_path: Path, users: str, problem: str) -> None:
    with pytest.raises(CtrkitError, match=problem):
        pl.concat(open_log(joined(tmp_path, "user,y\na,1\n", users)))


# --- broken files ---


def test_the_header_is_found_without_reading_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "a,b\n1,2\n" * 200_000 + "1,2,3,4\n")
    assert open_log(Data(path=path)).columns() == ["a", "b"]


BROKEN = {
    "a row too short": ("log.csv", "a,b,c\n1,2,3\n4,5\n6,7,8\n", {}, "row 2 of '.*log.csv' has 2 fields instead of 3", "Mend or remove"),
    "a row too long": (
        "log.csv",
        "a,b,c\n1,2,3\n4,5,6\n6,7,8,9\n",
        {},
        "row 3 of '.*log.csv' has 4 fields instead of 3",
        "in double quotes",
    ),
    "too long, too short": ("log.csv", "a,b,c\n1,2,3,4\n4,5\n", {}, "row 1 of .* has 4 fields instead of 3", "Mend or remove"),
    "ragged among quotes": ("log.csv", 'a,b,c\n"1,\n1",2,3\n4,"5"\n', {}, "row 2 of .* has 2 fields instead of 3", "Mend or remove"),
    "an open quote": ("log.csv", 'a,b,c\n1,"2,3\n4,5,6\n', {}, "a quote opened near the end of .* is not closed", "double it"),
    "not UTF-8": ("log.csv", b"a,b,c\n1,2,3\nZo\xeb,2,3\n", {}, "row 2 of .* is not UTF-8", "data.encoding: latin-1"),
    "an empty file": ("log.csv", "", {}, "'.*log.csv' is empty", "the right file"),
    "a column twice": ("log.csv", "a,b,c,a\n1,2,3,4\n", {}, "names the column 'a' more than once", "one name each"),
    "a wrong separator": (
        "log.csv",
        "a;b;c\n1;2;3\n",
        {},
        "its first line reads as one column, 'a;b;c'",
        "set data.separator .it looks like ';'",
    ),
    "a wrong separator, no header": (
        "log.tsv",
        "1,2,3\n",
        {"header": False, "columns": ["a", "b", "c"]},
        "row 1 of .* has 1 fields and data.columns names 3",
        "set data.separator",
    ),
    "a misspelt column": ("log.csv", "a,bb,c\n1,2,3\n", {}, "no column 'b' in '.*log.csv'", "Did you mean 'bb'"),
    "a first field of no end": ("log.csv", "x" * 200_000 + "\n", {}, "the first line of '.*log.csv' cannot be read", "set data.format"),
    "JSON lines not in UTF-8": (
        "log.jsonl",
        b'{"a": "\xeb", "b": 2, "c": 3}\n',
        {},
        "row 1 of .* not valid UTF-8",
        "data.encoding: latin-1",
    ),
    "no parquet": ("log.parquet", "a,b,c\n", {}, "'.*log.parquet' is not a readable Parquet file", "data.format"),
    "a bad JSON line": (
        "log.jsonl",
        '{"a": 1, "b": 2, "c": 3}\n{"a": 1,\n',
        {},
        "row 2 of '.*log.jsonl' is not a JSON object",
        "one {...} a line",
    ),
    "JSON that is no object": ("log.jsonl", '{"a": 1, "b": 2, "c": 3}\n[1]\n', {}, "row 2 of .* it is not an object", "one {...} a line"),
    "an unknown suffix": ("log.xyz", "a,b,c\n", {}, "the name of '.*log.xyz' does not tell its format", "Set data.format"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_file_and_what_to_do(tmp_path: Path, case: str) -> None:
    name, text, layout, problem, remedy = BROKEN[case]
    path = write(tmp_path / name, text)
    with pytest.raises(CtrkitError, match=problem) as caught:
        read(["a", "b", "c"], path=path, **layout)
    assert remedy.replace(".it", "(it") in str(caught.value)


@pytest.mark.parametrize("needed", [["a"], ["c"], ["a", "b", "c"]])
def test_ragged_rows_are_found_whatever_columns_are_read(tmp_path: Path, needed: list[str]) -> None:
    path = write(tmp_path / "log.csv", "a,b,c\n1,2,3,4\n1,2\n1,2,3\n")
    with pytest.raises(CtrkitError, match="row 1 .* 4 fields"):
        read(needed, path=path)


def test_a_truncated_gzip(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "log.csv.gz", "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(100_000))))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CtrkitError, match="'.*log.csv.gz' is a broken gzip.*download it again"):
        read(path=str(path))


def test_a_damaged_gzip(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "log.csv.gz", "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(100_000))))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 50] = bytes(50)
    path.write_bytes(raw)
    with pytest.raises(CtrkitError, match="broken gzip"):
        read(path=str(path))


def test_a_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    TABLE.write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CtrkitError, match="not a readable Parquet file"):
        read(path=str(path))


def test_a_missing_column_in_a_later_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "a,b\n1,2\n")
    write(tmp_path / "2.csv", "a,c\n1,2\n")
    with pytest.raises(CtrkitError, match="no column 'b' in '.*2.csv'"):
        read(path=str(tmp_path / "*.csv"))


def test_a_parquet_column_that_is_there_twice_can_be_left_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1, 2], [3, 4], [0, 1]], names=["a", "a", "click"]), tmp_path / "log.parquet")
    assert read(["click"], path=str(tmp_path / "log.parquet"))["click"].to_list() == [0, 1]
    for needed in (["a", "click"], None):
        with pytest.raises(CtrkitError, match="'.*log.parquet' has the column 'a' more than once. Columns need one name each"):
            read(needed, path=str(tmp_path / "log.parquet"))


def test_a_json_key_may_appear_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrkit.data.readers._SAMPLE_BYTES", 20)
    monkeypatch.setattr(files, "BLOCK_BYTES", 20)
    first = write(tmp_path / "1.jsonl", '{"a": 1, "b": "promo"}\n{"a": 2, "b": "zoë"}\n{"a": 3, "promo": "x"}\n')
    second = write(tmp_path / "2.jsonl", '{"a": 4, "zo\\u00eb": 7}\n')
    reader = open_log(Data(path=(first, second)), ["a", "promo", "zoë"])
    expected = [(1, None, None), (2, None, None), (3, "x", None), (4, None, 7)]
    assert pl.concat(reader, how="vertical_relaxed").rows() == expected
    reader.require(["promo"])
    with pytest.raises(CtrkitError, match="no column 'prom' in '.*1.jsonl'. Did you mean 'promo'"):
        reader.require(["prom"])


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="no file at '.*none.csv'.*data.path"):
        open_log(Data(path=str(tmp_path / "none.csv")))
    with pytest.raises(CtrkitError, match=r"is a folder.*\*\.parquet"):
        open_log(Data(path=str(tmp_path)))
