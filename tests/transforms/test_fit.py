"""Closed forms: which value gets which id, and what the numbers are scaled by."""

import math
import subprocess
import sys

import mmh3
import numpy as np
import polars as pl
import pytest

from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT, Feature, Kind
from ctrkit.transforms import FittedTransforms, canonical_dtype, fitter_for
from ctrkit.transforms.buckets import BucketsFitter


def text(**transform) -> Feature:
    return Feature(name="x", kind=Kind.CATEGORICAL, transform=transform)


def ints(**transform) -> Feature:
    return Feature(name="x", kind=Kind.CATEGORICAL, dtype="int", transform=transform)


def number(kind, **settings) -> Feature:
    return Feature(name="x", kind=Kind.NUMERIC, transform={"kind": kind, **settings})


@pytest.fixture
def ids(column):
    return lambda transform, values: column(transform.feature, values).select(transform.to_polars()).to_series().to_list()


def test_vocabulary_ids_are_by_frequency_then_value(fit, ids):
    transform = fit(text(kind="vocabulary"), ["b", "c", "c", "a", "é", None, None])
    assert transform.lookup.vocabulary().to_list() == ["", "c", "a", "b", "é"]
    assert ids(transform, [None, "", "c", "a", "b", "é", "never"]) == [2, 2, 3, 4, 5, 6, 1]
    assert transform.rows == 7


def test_vocabulary_of_ints_ties_by_number(fit, ids):
    transform = fit(ints(kind="vocabulary"), [10, 9, -3, None, 7, 7])
    assert ids(transform, [7, None, -3, 9, 10, 8]) == [2, 3, 4, 5, 6, 1]


def test_min_count_and_max_size(fit, ids):
    values = ["a"] * 3 + ["b"] * 2 + ["c"] * 2 + ["d"]
    assert ids(fit(text(kind="vocabulary", min_count=2), values), ["a", "b", "c", "d"]) == [2, 3, 4, 1]
    capped = fit(text(kind="vocabulary", max_size=2), values)
    assert ids(capped, ["a", "b", "c", "d"]) == [2, 3, 1, 1] and capped.rows == 4


def test_unknown_values_are_hashed_to_the_oov_ids(fit, ids):
    transform = fit(text(kind="vocabulary", oov_buckets=5), ["a", "a", "b"])
    unknown = [f"u{i}" for i in range(50)]
    assert ids(transform, ["a", "b"]) == [6, 7] and transform.rows == 8
    assert ids(transform, unknown) == [1 + mmh3.hash(u, 0, signed=False) % 5 for u in unknown]


def test_unknown_ints_hash_as_their_decimal_text(fit, ids):
    transform = fit(ints(kind="vocabulary", oov_buckets=100), [1])
    unknown = [-5, 2**62, MISSING_INT]
    assert ids(transform, unknown) == [1 + mmh3.hash(str(u), 0, signed=False) % 100 for u in unknown]


@pytest.mark.parametrize("salt", [0, 1, 2**31, 2**32 - 1])
def test_hash_is_murmur3(fit, ids, salt):
    values = ["", "a", "ab", "abc", "abcd", "日本語", "😀" * 9, "a\0b", "\0"]
    transform = fit(text(kind="hash", buckets=1_000_003, salt=salt), values)
    assert ids(transform, values) == [1 + mmh3.hash(v.encode(), salt, signed=False) % 1_000_003 for v in values]
    assert transform.rows == 1_000_004


def test_hash_of_an_int_is_that_of_its_text(fit, ids):
    numbers = [0, -1, 2**24 + 1, 2**63 - 1]
    as_ints = fit(ints(kind="hash", buckets=997), numbers)
    as_text = fit(text(kind="hash", buckets=997), [str(n) for n in numbers])
    assert ids(as_ints, numbers) == ids(as_text, [str(n) for n in numbers])
    assert ids(as_ints, [2**24 + 1]) == [1 + mmh3.hash("16777217", 0, signed=False) % 997]


def test_known_murmur3_values(fit, ids):
    """The published test vectors of MurmurHash3_x86_32."""
    transform = fit(text(kind="hash", buckets=2**32), ["x"])
    assert ids(transform, ["", "hello", "The quick brown fox jumps over the lazy dog"]) == [1, 1 + 0x248BFA47, 1 + 0x2E4FF723]


@pytest.mark.parametrize("base", [2**24, 2**31, 2**53, 2**62])
def test_neighbouring_large_ids_stay_distinct(fit, ids, feed, session, column, base):
    values = [base - 1, base, base + 1, base + 2]
    transform = fit(ints(kind="vocabulary"), values)
    assert ids(transform, values) == [2, 3, 4, 5]
    (output,) = session([transform.to_onnx()]).run(None, feed([transform.feature], column(transform.feature, values)))
    assert output.tolist() == [2, 3, 4, 5]


def test_bags_drop_missing_elements_then_cut(fit, ids):
    feature = Feature(name="x", kind=Kind.MULTI_VALUED, max_length=2)
    transform = fit(feature, [["a", "", "a", "late"], ["b", None], None, []])
    assert transform.lookup.vocabulary().to_list() == ["a", "b"], "'late' is beyond max_length"
    assert ids(transform, [["", "b", None, "a", "a"], ["zz"], [""], [], None]) == [[3, 2], [1], [], [], []]


def test_bags_of_ints_drop_the_missing_int(fit, ids):
    transform = fit(Feature(name="x", kind=Kind.MULTI_VALUED, dtype="int"), [[5, MISSING_INT], [5, 6]])
    assert ids(transform, [[MISSING_INT, 6, None, 5], [7]]) == [[3, 2], [1]]


def test_standardise_closed_form(fit, column):
    values = [1.0, 2.0, None, 6.0, math.inf]
    transform = fit(number("standardise"), values)
    assert transform.mean == 3.0 and transform.std == pytest.approx(np.std([1, 2, 6]), rel=1e-15)
    dense = column(transform.feature, values).select(transform.to_polars()).to_series()
    std = math.sqrt(14 / 3)
    assert dense.to_list() == pytest.approx([-2 / std, -1 / std, math.nan, 3 / std, math.nan], nan_ok=True)
    assert transform.rows is None


def test_log1p_is_odd_and_standardised(fit, column):
    values = [-100.0, 0.0, 3.0, 1e300]
    transform = fit(number("log1p"), values)
    logs = np.sign(values) * np.log1p(np.abs(values))
    assert (transform.mean, transform.std) == pytest.approx((logs.mean(), logs.std()))
    dense = column(transform.feature, values).select(transform.to_polars()).to_series()
    assert dense.to_list() == pytest.approx((logs - logs.mean()) / logs.std(), rel=1e-6)


@pytest.mark.parametrize("kind", ["standardise", "log1p"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e9, 1e-300])
def test_constant_column_is_zero(fit, column, kind, value):
    transform = fit(number(kind), [value] * 1000, chunk=7)
    assert transform.std == 1.0
    dense = column(transform.feature, [value]).select(transform.to_polars()).item()
    assert abs(dense) < 1e-12


def test_offset_does_not_spoil_the_variance(fit):
    values = 1e9 + np.random.default_rng(0).normal(size=10_000)
    transform = fit(number("standardise"), values, chunk=99)
    assert transform.mean == pytest.approx(values.mean(), rel=1e-14)
    assert transform.std == pytest.approx(values.std(), rel=1e-9)


def test_numbers_too_large_to_standardise(fit):
    with pytest.raises(CtrkitError, match="'x' holds numbers too large.*log1p"):
        fit(number("standardise"), [1e300, -1e300])


def test_result_beyond_float32_is_missing(fit, column):
    transform = fit(number("standardise"), [0.0, 1.0])
    assert math.isnan(column(transform.feature, [1e300]).select(transform.to_polars()).item())


def test_quantile_boundaries(fit, ids):
    transform = fit(number("buckets", count=4), [float(i) for i in range(100)][::-1])
    assert transform.boundaries == [25.0, 50.0, 75.0] and transform.rows == 6
    assert ids(transform, [-9.0, 0.0, 24.9, 25.0, 50.0, 75.0, 1e9, None, math.inf]) == [2, 2, 2, 3, 4, 5, 5, 1, 1]


def test_repeated_quantiles_collapse(fit, ids):
    transform = fit(number("buckets", count=10), [0.0] * 90 + [float(i) for i in range(1, 11)])
    assert transform.boundaries[0] > 0 and len(set(transform.boundaries)) == len(transform.boundaries)
    assert ids(transform, [0.0, 10.0]) == [2, transform.rows - 1]


def test_constant_column_has_one_bucket(fit, ids):
    transform = fit(number("buckets", count=10), [4.0] * 20)
    assert transform.boundaries == [] and transform.rows == 3
    assert ids(transform, [4.0, -1.0, None]) == [2, 2, 1]


def test_quantiles_are_exact_while_the_rows_fit(fit):
    values = np.random.default_rng(1).lognormal(size=50_000)
    transform = fit(number("buckets", count=64), values, chunk=1999)
    assert transform.boundaries == np.quantile(values, np.arange(1, 64) / 64, method="higher").tolist()


def test_quantiles_of_a_sample_are_close(monkeypatch):
    monkeypatch.setattr(BucketsFitter, "SAMPLE", 20_000)
    values = np.random.default_rng(2).normal(size=400_000)
    values.sort()  # the hardest order for a sampler
    fitter = fitter_for(number("buckets", count=10))
    for chunk in np.array_split(values, 37):
        fitter.update(pl.DataFrame({"x": chunk}))
    assert len(fitter._values) == 20_000, "memory is bounded"
    shares = [float((values < b).mean()) for b in fitter.finish().boundaries]
    assert shares == pytest.approx(np.arange(1, 10) / 10, abs=4 * math.sqrt(0.25 / 20_000))


STREAMED = {
    "vocabulary": (text(kind="vocabulary", min_count=2), lambda r: r.zipf(1.3, 5000).astype(str).tolist()),
    "int vocabulary": (ints(kind="vocabulary", max_size=50), lambda r: (r.zipf(1.3, 5000) % 2**40).tolist()),
    "hash": (text(kind="hash", buckets=10), lambda r: r.zipf(1.3, 5000).astype(str).tolist()),
    "buckets": (number("buckets", count=16), lambda r: r.normal(size=5000)),
    "bag": (Feature(name="x", kind=Kind.MULTI_VALUED), lambda r: np.split((r.zipf(1.5, 9000) % 999).astype(str), 3000)),
}


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("chunk", [1, 777])
def test_fit_over_chunks_is_fit_at_once(fit, kind, chunk, monkeypatch):
    monkeypatch.setattr("ctrkit.transforms.vocabulary.VocabularyFitter._PENDING_ROWS", 100)
    monkeypatch.setattr(BucketsFitter, "SAMPLE", 1000)
    feature, draw = STREAMED[kind]
    values = list(draw(np.random.default_rng(3)))[: 600 if chunk == 1 else None]
    streamed, at_once = fit(feature, values, chunk), fit(feature, values)
    assert streamed.state() == at_once.state() and streamed.rows == at_once.rows
    if at_once.vocabulary() is not None:
        assert streamed.vocabulary().to_list() == at_once.vocabulary().to_list()


@pytest.mark.parametrize("kind", ["standardise", "log1p"])
def test_moments_over_chunks(fit, kind):
    values = np.random.default_rng(4).lognormal(3, 2, size=3000)
    streamed, at_once = fit(number(kind), values, 7), fit(number(kind), values)
    assert (streamed.mean, streamed.std) == pytest.approx((at_once.mean, at_once.std), rel=1e-12)


COUNTING = """
import resource
import polars as pl
from ctrkit.schema import Feature
from ctrkit.transforms import fitter_for

fitter = fitter_for(Feature(name="x", kind="categorical"))
values = pl.Series(["v" * 100 + str(i) for i in range(1000)])
for number in range(35):
    if number == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = values.gather(pl.int_range(0, 200_000, eager=True) % 1000)
    fitter.update(pl.DataFrame({"x": pl.from_arrow(rows.to_arrow(compat_level=pl.CompatLevel.oldest()))}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_counting_keeps_no_chunk_in_memory():
    """Strings that Polars gathers are views into their chunk, of 20 MB here: the counts must not hold on to 30 of them."""
    grown = int(subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True).stdout)
    assert grown / 1024 < 200


@pytest.mark.parametrize(
    "feature",
    [
        text(kind="vocabulary"),
        ints(kind="vocabulary"),
        text(kind="hash", buckets=5),
        ints(kind="hash", buckets=5),
        number("standardise"),
        number("log1p"),
        number("buckets"),
        Feature(name="x", kind=Kind.MULTI_VALUED),
        Feature(name="x", kind=Kind.MULTI_VALUED, dtype="int", transform={"kind": "hash", "buckets": 5}),
    ],
    ids=lambda f: f"{f.kind}-{f.dtype}-{f.transform.kind}",
)
@pytest.mark.parametrize("rows", [0, 3])
def test_feature_without_any_value_is_named(fit, feature, rows):
    with pytest.raises(CtrkitError, match="feature 'x' has no value in the training split.*drop it from features"):
        fit(feature, [None] * rows)


def test_missing_cells_are_no_value_that_is_frequent(fit):
    with pytest.raises(CtrkitError, match="'x' has no value seen 3 times.*most frequent is seen 2 times"):
        fit(text(kind="vocabulary", min_count=3), ["a", "a", "b", None, None, None])


def test_min_count_above_every_value_is_named(fit):
    with pytest.raises(CtrkitError, match="'x' has no value seen 3 times.*most frequent is seen 2 times.*min_count"):
        fit(text(kind="vocabulary", min_count=3), ["a", "a", "b"])


def test_inputs_follow_the_features_order(fit):
    features = [
        Feature(name="n", kind=Kind.NUMERIC),
        Feature(name="bag", kind=Kind.MULTI_VALUED, pooling="sum"),
        Feature(name="b", kind=Kind.NUMERIC, transform={"kind": "buckets", "count": 2}),
        Feature(name="c", kind=Kind.CATEGORICAL, transform={"kind": "hash", "buckets": 9}),
    ]
    values = {"n": [1.0, 2.0], "b": [1.0, 2.0], "bag": [["a"]], "c": ["a"]}
    inputs = FittedTransforms([fit(f, values[f.name]) for f in features]).inputs
    assert [(f.name, f.rows, f.multi_valued, f.pooling) for f in inputs.id_fields] == [
        ("bag", 3, True, "sum"),
        ("b", 4, False, "mean"),
        ("c", 10, False, "mean"),
    ]
    assert inputs.numeric_fields == ("n",)


def test_features_that_share_a_model_input_are_refused(fit):
    bag = fit(Feature(name="a", kind=Kind.MULTI_VALUED), [["x"]])
    other = fit(Feature(name="a.values", kind=Kind.CATEGORICAL), ["x"])
    with pytest.raises(CtrkitError, match="'a' and 'a.values' both need the model input 'a.values'"):
        FittedTransforms([bag, other])


@pytest.mark.parametrize("transform", [{"kind": "vocabulary"}, {"kind": "vocabulary", "oov_buckets": 9}, {"kind": "hash", "buckets": 99}])
def test_null_is_the_missing_value(fit, transform):
    for feature, values, missing in ((text(**transform), ["a", None], ""), (ints(**transform), [1, None], MISSING_INT)):
        fitted = fit(feature, values)
        raw = pl.DataFrame({"x": pl.Series([None, missing], dtype=canonical_dtype(feature))})
        ids = raw.select(fitted.to_polars()).to_series()
        assert ids[0] == ids[1] and ids.null_count() == 0


@pytest.mark.parametrize("feature", [text(kind="vocabulary", min_count=2), ints(kind="vocabulary"), ints(kind="hash", buckets=9)])
def test_counted_values_fit_as_the_values_do(fit, feature):
    values = ["a", "b", "b", "", "a", "b"] if feature.dtype == "string" else [1, 2, 2, MISSING_INT, 1, 2]
    fitter = fitter_for(feature)
    for piece in (values[:3], values[3:]):
        fitter.update_counts(pl.Series("value", piece).value_counts())
    counted, at_once = fitter.finish(), fit(feature, values)
    assert counted.rows == at_once.rows
    if at_once.vocabulary() is not None:
        assert counted.vocabulary().to_list() == at_once.vocabulary().to_list()
