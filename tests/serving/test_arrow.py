import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from ctrkit.bundle import Bundle, open_bundle
from serving.app import create_app
from serving.problems import InvalidBody, TooLarge
from serving.wire.arrow import read_score
from serving.wire.ask import ARROW, Limits
from tests.handmade import make_bundle, probability
from tests.serving.live import wait_until

LIMITS = Limits(rows=10, depth=16, bytes=100_000)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    make_bundle(repo)
    return repo


@pytest.fixture(scope="module")
def bundle(repo: Path) -> Bundle:
    return open_bundle(repo / "clicks")


@pytest.fixture(scope="module")
def client(repo: Path) -> Iterator[TestClient]:
    with TestClient(create_app(repo)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def stream(table: pa.Table, compression: str | None = None, chunk: int | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return sink.getvalue().to_pybytes()


ROWS = [
    {"user": "u1", "age": 40, "price": 2.5, "tags": ["a", "b"]},
    {"user": None, "age": None, "price": None, "tags": None},
    {"user": "x"},
]
EXPECTED = [probability(row) for row in ROWS]
LISTS = pa.DictionaryArray.from_arrays(pa.array([0] * 10, pa.int8()), pa.array([["a"] * 1000]))
"""Rows that name one list again and again: they have no bound."""


def scored(bundle: Bundle, body: bytes) -> np.ndarray:
    return bundle.predict(read_score(bundle, body, LIMITS).feed)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("many", [pa.list_, pa.large_list])
def test_types_that_arrow_has_for_the_same_values_score_the_same(bundle: Bundle, text: pa.DataType, many, chunk: int | None) -> None:
    table = pa.table(
        {
            "user": pa.array([row.get("user") for row in ROWS]).cast(pa.string()).cast(text),
            "age": pa.array([row.get("age") for row in ROWS], pa.int16()),
            "price": pa.array([row.get("price") for row in ROWS], pa.float32()),
            "tags": pa.array([row.get("tags") for row in ROWS], many(pa.string())).cast(
                many(text if text != pa.large_string() else pa.string())
            ),
        }
    )
    np.testing.assert_allclose(scored(bundle, stream(table, chunk=chunk)), EXPECTED, rtol=1e-5)


def test_numbers_text_and_columns_left_out(bundle: Bundle) -> None:
    got = scored(bundle, stream(pa.table({"price": pa.array([3, 0], pa.uint8()), "tags": ["a|b", ""], "user": pa.array([7, None])})))
    np.testing.assert_allclose(got, [probability({"user": "7", "price": 3, "tags": ["a", "b"]}), probability({"price": 0})], rtol=1e-5)
    assert scored(bundle, stream(pa.table({"price": pa.array([], pa.float64())}))).shape == (0,)
    nothing = pa.table({name: pa.nulls(2) for name in ("user", "age", "price", "tags")})
    np.testing.assert_allclose(scored(bundle, stream(nothing)), [probability({})] * 2, rtol=1e-5)


def test_what_polars_writes_is_read(bundle: Bundle) -> None:
    file = io.BytesIO()
    pl.DataFrame(ROWS, schema={"user": pl.String, "age": pl.Int64, "price": pl.Float64, "tags": pl.List(pl.String)}).write_ipc_stream(file)
    np.testing.assert_allclose(scored(bundle, file.getvalue()), EXPECTED, rtol=1e-5)


def test_what_polars_encodes_as_a_dictionary_is_read(bundle: Bundle) -> None:
    rows = [{"user": "u1", "tags": ["a", "b"]}, {"user": "u2", "tags": ["b"]}, {"user": "u1", "tags": []}, {"tags": ["a" * 40]}]
    for kind in (pl.Categorical(), pl.Enum(["u1", "u2", "a", "b", "a" * 40])):
        file = io.BytesIO()
        pl.DataFrame(rows, schema={"user": kind, "tags": pl.List(kind)}).write_ipc_stream(file)
        np.testing.assert_allclose(scored(bundle, file.getvalue()), [probability(row) for row in rows], rtol=1e-5)
        file = io.BytesIO()
        pl.DataFrame({"tags": ["a|b", None, "b"]}, schema={"tags": pl.Categorical()}).write_ipc_stream(file)
        np.testing.assert_allclose(scored(bundle, file.getvalue()), [probability({"tags": t}) for t in (["a", "b"], [], ["b"])], rtol=1e-5)


@pytest.mark.parametrize(
    ("table", "location", "message"),
    [
        ({"usr": ["u1"]}, ("usr",), "column 'usr': unknown feature. Did you mean 'user'?"),
        ({"price": ["5"]}, ("price",), "column 'price': expected integers or floats, got string"),
        ({"price": [True]}, ("price",), "expected integers or floats, got bool"),
        ({"age": [1.0]}, ("age",), "column 'age': expected integers, got double"),
        ({"age": pa.array([2**63], pa.uint64())}, ("age",), "column 'age': Integer value 9223372036854775808 not in range"),
        ({"user": [["u1"]]}, ("user",), "column 'user': expected strings, got list<"),
        ({"tags": [[1.5]]}, ("tags",), "column 'tags': expected strings, got double"),
        ({"tags": [3]}, ("tags",), "expected a list, or text separated by '|', got int64"),
        ({"tags": [[["a"]]]}, ("tags",), "expected strings, got list<"),
        ({"tags": LISTS}, ("tags",), "expected lists as they are, not encoded as a dictionary, got dictionary<values=list<"),
    ],
)
def test_a_column_that_does_not_fit_is_named(bundle: Bundle, table: dict, location: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidBody) as refused:
        read_score(bundle, stream(pa.table(table)), LIMITS)
    assert refused.value.location == location and message in str(refused.value)


def test_no_stream_a_cut_one_and_a_compressed_one_are_refused(bundle: Bundle) -> None:
    whole = stream(pa.table({"user": ["u1"] * 3, "tags": [["a"]] * 3}))
    for body in (b"", b"{}", b"ARROW1\0\0" + whole, whole[:100], whole[:-40], whole[:300] + b"\xff" * 60 + whole[360:]):
        with pytest.raises(InvalidBody):
            ask = read_score(bundle, body, LIMITS)
            assert ask.rows < 3, "a stream may end after any batch, but not inside one"
            raise InvalidBody((), "ended early")
    with pytest.raises(InvalidBody, match="compressed"):
        read_score(bundle, stream(pa.table({"user": ["u1"]}), "zstd"), LIMITS)
    columns = pa.table([["a"], ["b"]], names=["user", "user"])
    with pytest.raises(InvalidBody, match="same name"):
        read_score(bundle, stream(columns), LIMITS)


def test_what_is_short_on_the_wire_and_long_unfolded_is_refused(bundle: Bundle) -> None:
    with pytest.raises(TooLarge, match="11 rows in one request, 10 are allowed"):
        read_score(bundle, stream(pa.table({"price": range(11)}), chunk=4), LIMITS)
    with pytest.raises(TooLarge, match=r"1,000,000,000,000 rows"):
        read_score(bundle, forged(pa.table({"user": pa.nulls(7777)}), "<q", 10**12), LIMITS)
    word = pa.array(["x" * 90_000])
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int8()), word)
    loose = Limits(rows=1000, depth=16, bytes=100_000)
    with pytest.raises(TooLarge, match="unfolds"):
        read_score(bundle, stream(pa.table({"user": many})), loose)
    view = struct.pack("<i4sii", 90_000, b"xxxx", 0, 0)
    views = pa.Array.from_buffers(pa.string_view(), 200, [None, pa.py_buffer(view * 200), pa.py_buffer(b"x" * 90_000)])
    with pytest.raises(TooLarge, match="unfolds"):
        read_score(bundle, stream(pa.table({"user": views})), loose)
    nulls = pa.table({"tags": pa.ListArray.from_arrays(pa.array([0, 7777], pa.int32()), pa.nulls(7777))})
    with pytest.raises(TooLarge, match="the lists hold 2,147,483,646 values"):
        read_score(bundle, forged(nulls, "<i", 2**31 - 2), loose)


def forged(table: pa.Table, kind: str, number: int) -> bytes:
    """A stream that says ``number`` wherever that of the table says 7777."""
    return stream(table).replace(struct.pack(kind, 7777), struct.pack(kind, number))


def test_each_side_chooses_its_format(client: TestClient) -> None:
    body = stream(pa.table({"user": ["u1", "u2"]}))
    url, arrow = "/v1/models/clicks:score", {"Content-Type": ARROW}
    in_json = client.post(url, content=body, headers=arrow)
    assert in_json.headers["content-type"] == "application/json"
    answer = client.post(url, content=body, headers={**arrow, "Accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.schema.metadata == {b"model": b"clicks", b"version": b"1"}
    assert table["probability"].type == pa.float32() and table["probability"].to_pylist() == in_json.json()["probabilities"]
    rows = {"rows": [{"user": "u1"}, {"user": "u2"}]}
    assert client.post(url, json=rows, headers={"Accept": f"text/html;q=0.9, {ARROW}"}).content == answer.content
    assert client.post(url, json=rows, headers={"Accept": "text/html"}).status_code == 406
    assert client.post(url, content=body, headers={"Content-Type": "text/csv"}).status_code == 415
    assert client.post("/v1/models/clicks:rank", content=body, headers=arrow).status_code == 415


def test_columns_in_json(client: TestClient) -> None:
    url = "/v1/models/clicks:score"
    columns = {"user": ["u1", None], "tags": [["a"], "b|c"], "price": [1, 2.5]}
    rows = [{name: values[i] for name, values in columns.items()} for i in (0, 1)]
    by_columns, by_rows = client.post(url, json={"columns": columns}), client.post(url, json={"rows": rows})
    assert by_columns.status_code == 200 and by_columns.content == by_rows.content
    assert client.post(url, json={"columns": {}}).json()["probabilities"] == []
    for columns, loc, message in (
        ({"usr": ["u1"]}, ["usr"], "field 'usr': unknown feature. Did you mean 'user'?"),
        ({"user": "u1"}, ["user"], "field 'user': expected a list of values, got 'u1' (string)"),
        ({"user": ["u1", "u2"], "price": [1]}, ["price"], "field 'price': 1 values where 'user' has 2"),
        ({"price": [1, "x"]}, ["price", 1], "row 1, field 'price': expected a number, got 'x' (string)"),
    ):
        (problem,) = client.post(url, json={"columns": columns}).json()["detail"]
        assert problem["loc"] == ["body", "columns", *loc] and problem["msg"] == message
    assert client.post(url, json={"columns": {}, "rows": []}).status_code == 422
    assert client.post(url, json={"columns": []}).status_code == 422
