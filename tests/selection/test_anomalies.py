"""What is planted is found, and a clean log is left in peace."""

import numpy as np
import polars as pl
import pytest

from ctrkit.selection.anomalies import Anomaly, Fault
from ctrkit.selection.ranking import rank_log
from ctrkit.selection.transformations import COUNTS
from tests.selection.conftest import Code, labels

ROWS = 6000


@pytest.fixture
def clean() -> dict[str, np.ndarray]:
    random = np.random.default_rng(9)
    few, many = random.integers(0, 7, ROWS), random.integers(0, 500, ROWS)
    return {"few": few.astype(str), "many": many.astype(str), "label": labels(random, random.normal(0, 1, 7)[few])}


def found(code: Code, columns: dict[str, object]) -> dict[str, list[Anomaly]]:
    names: dict[str, list[Anomaly]] = {}
    for anomaly in rank_log(code(pl.DataFrame(columns)), pairs=False).anomalies:
        names.setdefault(anomaly.feature, []).append(anomaly)
    return names


def test_a_clean_log_has_none(code: Code, clean: dict[str, np.ndarray]) -> None:
    assert found(code, clean) == {}


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("leak", Fault.LEAKAGE, "tells 100.0% of the label"),
        ("nearly leak", Fault.LEAKAGE, "of the label"),
        ("constant", Fault.CONSTANT, "has the same value in all rows"),
        ("empty", Fault.CONSTANT, "has no value in any row"),
        ("nearly constant", Fault.CONSTANT, "has one value in 99.95% of the rows"),
        ("copy", Fault.DUPLICATE, "tells the same rows apart as 'many'"),
        ("identifier", Fault.EXPLOSION, "has 6,000 values in 6,000 rows"),
        ("rare", Fault.RARE, "only once in 25.0% of the rows"),
        ("day", Fault.DRIFT, "of which tenth of the log a row is in"),
        ("begun late", Fault.MISSING, "is missing in 0.0% to 100.0%"),
    ],
)
def test_what_is_planted_is_found(code: Code, clean: dict[str, np.ndarray], name: str, fault: Fault, says: str) -> None:
    random = np.random.default_rng(1)
    place, label = np.arange(ROWS), clean["label"]
    planted = {
        "leak": np.where(label == 1, "x", "y"),
        "nearly leak": np.where(random.random(ROWS) < 0.005, 1 - label, label).astype(str),
        "constant": np.full(ROWS, "x"),
        "empty": pl.Series([None] * ROWS, dtype=pl.String),
        "nearly constant": np.where(place % 2000 == 0, "a", "b"),
        "copy": np.char.add("m", clean["many"][::1]),
        "identifier": place.astype(str),
        "rare": np.where(place % 4 == 0, place, place % 5 + 10_001).astype(str),
        "day": (place // 1000).astype(str),
        "begun late": pl.Series([None if i < 3000 else "on" for i in place]),
    }[name]
    faults = found(code, clean | {name: planted})
    assert set(faults) == {name}
    (anomaly,) = [anomaly for anomaly in faults[name] if anomaly.fault is fault]
    assert says in anomaly.text
    others = {anomaly.fault for anomaly in faults[name]} - {fault}
    assert others <= ({Fault.DRIFT} if name == "begun late" else set())


def test_a_rate_that_jumps_is_found(code: Code, clean: dict[str, np.ndarray]) -> None:
    label = np.where(np.arange(ROWS) < 5400, clean["label"], 1)
    ((anomaly,),) = found(code, clean | {"label": label}).values()
    assert anomaly.fault is Fault.LABEL_DRIFT and "is 100.00% in tenth 10" in anomaly.text


def test_a_number_in_one_bucket_is_found(code: Code) -> None:
    wage = np.where(np.arange(ROWS) % 50 == 0, 7.0, 0.0)
    features = [{"name": "wage", "kind": "numeric", "transform": {"kind": "buckets", "count": 8}}]
    ((anomaly),) = rank_log(code({"wage": wage, "label": np.arange(ROWS) % 2}, features)).anomalies
    assert anomaly.fault is Fault.CONSTANT and "the same bucket in all rows" in anomaly.text


def test_the_best_way_for_a_number_is_found(code: Code) -> None:
    """The label depends on whether a number is among the lowest twelfth: 8 quantiles cannot say so, nor can equal widths."""
    random = np.random.default_rng(2)
    price, odd = random.lognormal(0, 3, 20_000), random.integers(0, 40, 20_000).astype(float)
    logits = np.where(price < np.quantile(price, 1 / 12), 2.0, -1.0) + np.where(odd % 2 == 1, 0.5, -0.5)
    odd[:500] = np.nan
    features = [{"name": name, "kind": "numeric"} for name in ("price", "odd", "none")]
    frame = pl.DataFrame({"price": price, "odd": odd, "none": [None] * 20_000, "label": labels(random, logits)}).cast({"none": pl.Float64})
    ways = {(way.feature, way.name): way for way in rank_log(code(frame, features)).transformations}
    assert ways["price", "quantiles of 128"].score > ways["price", "quantiles of 8"].score > 0
    assert ways["price", "equal widths of 32"].score < 0.5 * ways["price", "quantiles of 128"].score
    assert ways["price", "as it is"].score == pytest.approx(0, abs=1e-9)
    assert ways["odd", "as it is"].values == 41 and ways["odd", "quantiles of 8"].values <= 9
    assert ways["odd", "as it is"].score > 2 * ways["odd", "quantiles of 8"].score
    assert [name for feature, name in ways if feature == "none"] == sorted(f"quantiles of {count}" for count in COUNTS)
    assert all(way.score == 0 for (feature, _), way in ways.items() if feature == "none")
