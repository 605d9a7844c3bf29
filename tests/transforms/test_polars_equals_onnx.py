"""No train/serve skew: whatever the raw value, the Polars expression and the ONNX graph give the same."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT, Feature, Kind
from ctrkit.transforms import FittedTransforms, with_sequences

STRINGS = st.one_of(st.none(), st.text(), st.sampled_from(["", "a", "b", "c", "5", "é", "日本", "😀", "a\0b", "\0", " ", "A"]))
INTS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, 5, -1, 2**24, 2**24 + 1, 2**31, 2**31 + 1, 2**63 - 1, -(2**63) + 1, MISSING_INT]),
)
FLOATS = st.one_of(
    st.none(),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -2.2e-308, 1.7e308, -1.7e308, 1.0, 2.0, 3.5]),
)
VALUES = {"string": STRINGS, "int": INTS}

LOOKUPS = [
    {"kind": "vocabulary"},
    {"kind": "vocabulary", "oov_buckets": 7, "max_size": 3},
    {"kind": "hash", "buckets": 1},
    {"kind": "hash", "buckets": 1000, "salt": 2**32 - 1},
]
CATEGORICAL = [Feature(name="x", kind=Kind.CATEGORICAL, dtype=d, transform=t) for d in ("string", "int") for t in LOOKUPS]
BAGS = [Feature(name="x", kind=Kind.MULTI_VALUED, dtype=d, transform=t, max_length=2) for d in ("string", "int") for t in LOOKUPS]


def label(feature: Feature) -> str:
    return f"{feature.dtype}-{'-'.join(str(v) for v in feature.transform.model_dump().values())}"


def both(transform, frame, feed, session) -> tuple[pl.Series, np.ndarray]:
    ids = frame.select(transform.to_polars()).to_series()
    (output,) = session([transform.to_onnx()]).run(None, feed([transform.feature], frame))
    return ids, output


@pytest.mark.parametrize("feature", CATEGORICAL, ids=label)
@given(data=st.data())
@settings(max_examples=60)
def test_categorical(feature, column, fit, feed, session, data):
    values = VALUES[feature.dtype]
    train = data.draw(st.lists(values, max_size=30)) + ["a" if feature.dtype == "string" else 5]
    rows = data.draw(st.lists(values | st.sampled_from(train), max_size=30))
    transform = fit(feature, train)
    ids, output = both(transform, column(feature, rows), feed, session)
    assert ids.dtype == pl.Int64 and output.dtype == np.int64
    assert ids.to_list() == output.tolist()
    assert all(1 <= i < transform.rows for i in ids)


@pytest.mark.parametrize("feature", BAGS, ids=label)
@given(data=st.data())
@settings(max_examples=60)
def test_bags(feature, column, fit, feed, session, data):
    values = VALUES[feature.dtype]
    bags = st.none() | st.lists(values, max_size=6)
    train = data.draw(st.lists(bags, max_size=10)) + [["a" if feature.dtype == "string" else 5]]
    rows = data.draw(st.lists(bags | st.sampled_from(train), max_size=12))
    transform = fit(feature, train)
    frame = column(feature, rows)
    ids, output = both(transform, frame, feed, session)
    assert ids.dtype == pl.List(pl.Int64) and output.dtype == np.int64
    ends = np.cumsum([len(bag) for bag in frame["x"]], dtype=int)
    per_bag = np.split(output, ends[:-1]) if len(ends) else []
    assert [[int(i) for i in bag if i != 0] for bag in per_bag] == ids.to_list()
    assert all(1 <= i < transform.rows for bag in ids for i in bag)


@pytest.mark.parametrize("target", CATEGORICAL, ids=label)
@given(data=st.data())
@settings(max_examples=60)
def test_sequences_keep_their_last_values_under_the_ids_of_their_target(target, column, fit, feed, session, data):
    values = VALUES[target.dtype]
    sequence = Feature(name="past", kind=Kind.SEQUENCE, of="x", dtype=target.dtype, transform=target.transform, max_length=2)
    train = data.draw(st.lists(values, max_size=10)) + ["a" if target.dtype == "string" else 5]
    rows = data.draw(st.lists(st.none() | st.lists(values | st.sampled_from(train), max_size=6), max_size=12))
    transforms = FittedTransforms(with_sequences([sequence, target], {"x": fit(target, train)}))
    frame = column(sequence, rows)
    ids, output = both(transforms["past"], frame, feed, session)

    missing = "" if target.dtype == "string" else MISSING_INT
    kept = [[v for v in row if v is not None and v != missing][-2:] for row in frame["past"]]
    as_target = column(target, [v for row in kept for v in row]).select(transforms["x"].to_polars()).to_series()
    assert ids.list.len().to_list() == [len(row) for row in kept]
    assert ids.explode(empty_as_null=False).to_list() == as_target.to_list()
    ends = np.cumsum([len(row) for row in frame["past"]], dtype=int)
    per_row = np.split(output, ends[:-1]) if len(ends) else []
    assert [[int(i) for i in row if i != 0] for row in per_row] == ids.to_list()
    field = transforms.inputs.id_fields[0]
    assert (field.rows, field.of, field.length, field.table) == (transforms["x"].rows, "x", 2, "x")


@pytest.mark.parametrize("kind", ["standardise", "log1p"])
@given(train=st.lists(FLOATS, max_size=30), rows=st.lists(FLOATS, max_size=30))
@example(train=[3.0, 3.0], rows=[3.0, 4.0])
@example(train=[0.1] * 9, rows=[0.1, None])
@settings(max_examples=120)
def test_numbers(kind, column, fit, feed, session, train, rows):
    feature = Feature(name="x", kind=Kind.NUMERIC, transform={"kind": kind})
    try:
        transform = fit(feature, [*train, 1.0])
    except CtrkitError as error:
        assert kind == "standardise" and "too large" in str(error)
        return
    dense, output = both(transform, column(feature, [*rows, *train]), feed, session)
    assert dense.dtype == pl.Float32 and output.dtype == np.float32
    np.testing.assert_allclose(dense.to_numpy(), output, rtol=1e-6, atol=1e-9)
    assert not np.isinf(output).any()


@pytest.mark.parametrize("count", [2, 5, 4096])
@given(train=st.lists(FLOATS, max_size=200), rows=st.lists(FLOATS, max_size=30))
@settings(max_examples=80)
def test_buckets(count, column, fit, feed, session, train, rows):
    feature = Feature(name="x", kind=Kind.NUMERIC, transform={"kind": "buckets", "count": count})
    transform = fit(feature, [*train, 1.0])
    ids, output = both(transform, column(feature, [*rows, *train]), feed, session)
    assert ids.dtype == pl.Int64 and output.dtype == np.int64
    assert ids.to_list() == output.tolist()
    assert all(1 <= i < transform.rows for i in ids)


@pytest.mark.parametrize("boundaries", [63, 64, 65, 128, 1000])
def test_buckets_of_several_blocks(boundaries, column, fit, feed, session):
    feature = Feature(name="x", kind=Kind.NUMERIC, transform={"kind": "buckets", "count": boundaries + 1})
    numbers = [float(i) for i in range(boundaries + 1)]
    transform = fit(feature, numbers)
    assert len(transform.boundaries) == boundaries
    near = [math.nextafter(x, side) for x in numbers for side in (-math.inf, math.inf)]
    ids, output = both(transform, column(feature, numbers + near), feed, session)
    assert ids.to_list() == output.tolist()
    assert ids[: boundaries + 1].to_list() == [2 + k for k in range(boundaries + 1)]


EVERY_KIND = (
    Feature(name="text", kind=Kind.CATEGORICAL, transform={"kind": "vocabulary", "oov_buckets": 3}),
    Feature(name="text 2/é", kind=Kind.CATEGORICAL, transform={"kind": "hash", "buckets": 9}),
    Feature(name="number", kind=Kind.CATEGORICAL, dtype="int"),
    Feature(name="bag", kind=Kind.MULTI_VALUED, transform={"kind": "vocabulary", "oov_buckets": 3}),
    Feature(name="bag_0", kind=Kind.MULTI_VALUED, dtype="int", transform={"kind": "hash", "buckets": 9}),
    Feature(name="x", kind=Kind.NUMERIC),
    Feature(name="x_1", kind=Kind.NUMERIC, transform={"kind": "log1p"}),
    Feature(name="rows", kind=Kind.NUMERIC, transform={"kind": "buckets", "count": 200}),
)


@pytest.fixture(scope="module")
def everything(fit):
    values = {"text": ["a", "b"], "text 2/é": ["a"], "number": [1, 2], "bag": [["a"]], "bag_0": [[1]]}
    numbers = [float(i) for i in range(500)]
    return FittedTransforms([fit(f, values.get(f.name, numbers)) for f in EVERY_KIND])


@pytest.mark.parametrize("opset", [None, 19, 23, 25])
def test_all_features_in_one_graph(everything, feed, session, opset):
    frame = pl.DataFrame(
        {
            "text": ["a", "zz", ""],
            "text 2/é": ["", "b", "c"],
            "number": [2, MISSING_INT, 7],
            "bag": [[], ["", "a", "zz"], []],
            "bag_0": [[MISSING_INT], [], [1, 5]],
            "x": [1.0, math.nan, 3.0],
            "x_1": [math.nan, -5.0, 3.0],
            "rows": [0.0, 250.0, math.nan],
        },
        schema_overrides={"bag": pl.List(pl.String)},
    )
    encoded = everything.encode(frame)
    run = session(everything.onnx_graph(), opset)
    outputs = dict(zip([o.name for o in run.get_outputs()], run.run(None, feed(EVERY_KIND, frame)), strict=True))
    for name in ("text", "text 2/é", "number", "rows"):
        assert outputs[f"{name}@id"].tolist() == encoded[name].to_list()
    for name in ("bag", "bag_0"):
        assert [i for i in outputs[f"{name}@ids"].tolist() if i] == [i for bag in encoded[name].to_list() for i in bag]
    for name in ("x", "x_1"):
        np.testing.assert_allclose(outputs[f"{name}@dense"], encoded[name].to_numpy(), rtol=1e-6)


def test_no_rows_and_no_elements(everything, feed, session):
    run = session(everything.onnx_graph())
    schema = {"text": pl.String, "text 2/é": pl.String, "number": pl.Int64, "bag": pl.List(pl.String), "bag_0": pl.List(pl.Int64)}
    empty = pl.DataFrame(schema=schema | {"x": pl.Float64, "x_1": pl.Float64, "rows": pl.Float64})
    assert [len(output) for output in run.run(None, feed(EVERY_KIND, empty))] == [0] * len(EVERY_KIND)
    encoded = everything.encode(empty)
    assert encoded.height == 0 and encoded.schema["bag"] == pl.List(pl.Int64) and encoded.schema["x"] == pl.Float32


def test_graph_holds_no_loop_and_no_repeated_name(everything):
    parts = everything.onnx_graph()
    assert all(node.op_type not in ("Loop", "Scan", "If") for part in parts for node in part.nodes)
    produced = [name for part in parts for node in part.nodes for name in node.output]
    constants = [tensor.name for part in parts for tensor in part.initializers]
    inputs = [value.name for part in parts for value in part.inputs]
    names = produced + constants + inputs
    assert len(set(names)) == len(names)
    assert len({node.name for part in parts for node in part.nodes}) == sum(len(part.nodes) for part in parts)
    for part in parts:
        assert all(name.startswith(f"{part.name}@") for node in part.nodes for name in node.output)
        assert {value.name for value in part.outputs} <= {name for node in part.nodes for name in node.output}
