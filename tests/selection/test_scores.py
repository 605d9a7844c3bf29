"""What a feature scores: nothing for noise, whatever its number of values, and something for a needle in it."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score, normalized_mutual_info_score

from ctrkit.selection.coded import CodedLog
from ctrkit.selection.noise import Noise
from ctrkit.selection.scores import DriftNoise, Score, score_features
from tests.selection.conftest import Code, labels

ROWS = 200_000
CARDINALITIES = (2, 10, 100, 1000, 10_000, 100_000)


def scored(log: CodedLog) -> dict[str, Score]:
    noise = Noise(log.rows, int(log.label.sum()))
    return {score.name: score for score in score_features(log, noise, DriftNoise(log, noise))}


def test_needles_are_found_in_noise_of_every_cardinality(code: Code) -> None:
    random = np.random.default_rng(3)
    needles = {f"needle{v}": random.integers(0, v, ROWS) for v in CARDINALITIES}
    logits = np.full(ROWS, -1.0)
    for values, drawn in zip(CARDINALITIES, needles.values(), strict=True):
        effects = random.normal(0, 1, values)
        logits += 0.5 * ((effects - effects.mean()) / effects.std())[drawn]
    noise = {f"noise{v}": random.integers(0, v, ROWS) for v in (*CARDINALITIES, ROWS, 5 * ROWS)}
    unique = {"unique": np.arange(ROWS)}
    features = [{"name": name, "kind": "categorical", "dtype": "int"} for name in (*needles, *noise, *unique)]
    found = scored(code(needles | noise | unique | {"label": labels(random, logits)}, features))
    for name in needles:
        assert found[name].stands_out and found[name].z > 8, name
    worst = min(found[name].score for name in needles)
    for name in (*noise, *unique):
        assert abs(found[name].score) < 0.004 < worst, name
        assert abs(found[name].z) < 4
    assert found["unique"].score == pytest.approx(0, abs=1e-12) and found["unique"].mi > 0.3


def test_measures_are_scikit_learns(code: Code) -> None:
    random = np.random.default_rng(5)
    columns = {"small": random.integers(0, 4, 3000), "large": random.integers(0, 900, 3000)}
    label = labels(random, 0.6 * columns["small"] - 1)
    found = scored(code({name: values.astype(str) for name, values in columns.items()} | {"label": label}))
    for name, values in columns.items():
        assert found[name].mi == pytest.approx(mutual_info_score(label, values), rel=1e-10)
        assert found[name].nmi == pytest.approx(normalized_mutual_info_score(label, values), rel=1e-10)
        assert found[name].ami == pytest.approx(adjusted_mutual_info_score(label, values), rel=1e-6, abs=1e-9)


def test_correlations(code: Code) -> None:
    random = np.random.default_rng(1)
    number = random.normal(10, 3, 2000)
    label = labels(random, (number - 10) / 2)
    group = random.integers(0, 5, 2000)
    features = [{"name": "number", "kind": "numeric"}, {"name": "group", "kind": "categorical", "dtype": "int"}]
    found = scored(code({"number": number, "group": group, "label": label}, features))
    assert found["number"].correlation == pytest.approx(abs(np.corrcoef(number, label)[0, 1]), rel=1e-9)
    means = np.array([label[group == g].mean() for g in group])
    assert found["group"].correlation == pytest.approx(means.std() / label.std(), rel=1e-9)


def test_what_a_column_is_made_of(code: Code) -> None:
    values = ["a"] * 60 + ["b"] * 30 + ["c", "d", "e", "f", "g"] + [None] * 5
    found = scored(code(pl.DataFrame({"x": values, "label": [0, 1] * 50})))["x"]
    assert (found.values, found.missing, found.top, found.once) == (8, 0.05, 0.6, 0.05)
    assert found.covering == (1, 2, 7)
    assert found.by_batch == (0,) * 9 + (0.5,)
    assert found.fresh == pytest.approx(0.5)  # five of the last ten rows are c to g


def test_drift_is_information_on_the_tenth_of_the_log(code: Code) -> None:
    random = np.random.default_rng(2)
    label = random.integers(0, 2, 5000)
    found = scored(code({"day": (np.arange(5000) // 500).astype(str), "still": random.integers(0, 2000, 5000).astype(str), "label": label}))
    assert found["day"].drift == pytest.approx(1, abs=0.01)
    assert abs(found["still"].drift) < 0.02 and 0.1 < found["still"].fresh < 0.25


def test_a_copy_of_the_label_tells_all_of_it(code: Code) -> None:
    label = np.array([0, 1, 1, 0, 1] * 40)
    found = scored(code({"copy": np.where(label, "yes", "no"), "same": np.full(200, "x"), "label": label}))
    assert found["copy"].score == pytest.approx(1, abs=0.01) and found["copy"].nmi == pytest.approx(1)
    same = found["same"]
    assert (same.score, same.z, same.nmi, same.ami, same.correlation) == (0, 0, 0, 0, 0)
