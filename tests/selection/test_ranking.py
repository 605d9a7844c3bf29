"""Pairs, clusters, 3MR, crosses and the ranking made of them."""

import itertools

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from ctrkit.selection import pairs as pairs_module
from ctrkit.selection.coded import CodedLog
from ctrkit.selection.ranking import MEASURES, Ranking, rank_log
from tests.selection.conftest import Code, labels

ROWS = 12_000


@pytest.fixture
def log(code: Code) -> CodedLog:
    """``city`` matters, ``country`` is of it, ``copy`` is ``city`` by other names; ``left`` and ``right`` matter together; the rest is noise."""
    random = np.random.default_rng(11)
    city = random.integers(0, 60, ROWS)
    left, right = random.integers(0, 2, (2, ROWS))
    logits = random.normal(0, 0.8, 60)[city] + np.where(left == right, 0.8, -0.8) - 1
    columns = {
        "city": city.astype(str),
        "copy": np.char.add("c", (59 - city).astype(str)),
        "country": (city // 6).astype(str),
        "left": left.astype(str),
        "right": right.astype(str),
        "wide": random.integers(0, 5000, ROWS).astype(str),
        "wider": random.integers(0, 9000, ROWS).astype(str),
    }
    return code(columns | {"label": labels(random, logits)})


def named(ranking: Ranking) -> dict[tuple[str, str], object]:
    names = [score.name for score in ranking.scores]
    return {(names[pair.first], names[pair.second]): pair for pair in ranking.pairs}


def test_pairs(log: CodedLog) -> None:
    found = named(rank_log(log))
    assert len(found) == 7 * 6 // 2
    copies, country, both, wide = (found[key] for key in (("city", "copy"), ("city", "country"), ("left", "right"), ("wide", "wider")))
    assert (copies.similarity, copies.first_told, copies.second_told) == (1, 1, 1)
    assert country.second_told == 1 and country.first_told == pytest.approx(np.log(10) / np.log(60), abs=0.02)
    assert both.synergy > 0.05 and both.z > 10
    assert abs(wide.similarity) < 0.03 and wide.information > 5  # nearly all of it chance
    assert copies.synergy == pytest.approx(-copies.score)


def test_similarity_is_adjusted_mutual_information(log: CodedLog) -> None:
    found = named(rank_log(log))
    codes = {column.name: column.codes for column in log.columns}
    for key in (("city", "country"), ("country", "wide"), ("left", "wide")):
        assert found[key].similarity == pytest.approx(
            adjusted_mutual_info_score(codes[key[0]], codes[key[1]], average_method="max"), rel=1e-4, abs=1e-7
        )


def test_columns_of_equal_sums_are_not_the_same_column(code: Code) -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 50, 5000)
    second = random.permutation(first)
    log = code({"first": first.astype(str), "second": second.astype(str), "label": random.integers(0, 2, 5000)})
    (pair,) = rank_log(log).pairs
    assert abs(pair.similarity) < 0.01
    assert not rank_log(log).anomalies


def test_processes_count_as_one_does(log: CodedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = rank_log(log)
    monkeypatch.setattr(pairs_module, "_FEW_CELLS", 0)
    assert rank_log(log).pairs == alone.pairs


def test_copies_are_redundant_and_of_one_cluster(log: CodedLog) -> None:
    table = {row["feature"]: row for row in rank_log(log).table().iter_rows(named=True)}
    assert table["city"]["cluster"] == table["copy"]["cluster"] == 1
    assert len({row["cluster"] for row in table.values()}) == 6
    assert {name: row["redundant_with"] for name, row in table.items() if row["redundant_with"]} == {"copy": "city"}
    assert {name: row["told_by"] for name, row in table.items() if row["told_by"]} == {"copy": "city", "country": "city"}
    assert table["copy"]["faults"] == "duplicate"


def test_what_is_recommended(log: CodedLog) -> None:
    ranking = rank_log(log)
    assert [ranking.scores[place].name for place in ranking.recommended()] == ["city", "country"]  # left and right say nothing alone


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_copies_one_is_recommended(code: Code, names: tuple[str, str], pairs: bool) -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 9, 3000)
    log = code({names[0]: first.astype(str), names[1]: (8 - first).astype(str), "label": labels(random, first / 3 - 1)})
    ranking = rank_log(log, pairs=pairs)
    assert len(ranking.recommended()) == 1


def test_3mr_leaves_copies_for_the_end_and_finds_what_belongs_together(log: CodedLog) -> None:
    table = rank_log(log, by="3mr").table()
    order = table["feature"].to_list()
    assert order[0] == "city"
    assert max(order.index("left"), order.index("right")) < min(order.index(name) for name in ("copy", "wide", "wider"))
    alone = rank_log(log, by="information").table()["feature"].to_list()
    assert set(alone[:3]) == {"city", "copy", "country"}
    assert table["rank_3mr"].to_list() == list(range(1, 8))


def test_what_does_not_stand_out_scores_0_and_goes_by_z(log: CodedLog) -> None:
    table = rank_log(log).table()
    far = table["z"] > 3
    assert far.to_list() == [True] * 3 + [False] * 4
    assert table.filter(far)["score"].equals(table.filter(far)["information"])
    assert (table.filter(~far)["score"] == 0).all() and table.filter(~far)["z"].is_sorted(descending=True)


@pytest.mark.parametrize("by", MEASURES)
def test_every_measure_ranks(log: CodedLog, by) -> None:
    table = rank_log(log, by=by).table()
    assert table["score"].is_sorted(descending=True) and table["score"].is_not_nan().all()
    assert set(table["feature"]) == {column.name for column in log.columns}
    if by not in ("mi", "correlation", "nmi"):  # those take the number of values for information
        assert table["feature"].to_list().index("city") < table["feature"].to_list().index("wider")


def test_surrogates_tell_nothing_of_noise(log: CodedLog) -> None:
    for by in ("logistic", "trees"):
        table = {row["feature"]: row["score"] for row in rank_log(log, by=by, pairs=False).table().iter_rows(named=True)}
        assert table["city"] > 0.04 and abs(table["left"]) < 0.01 and table["wider"] < 0.001
        assert table["copy"] == pytest.approx(table["city"], abs=0.01)


def test_a_number_of_the_row_tells_nothing_of_other_features_and_is_told_by_its_copy(code: Code) -> None:
    random = np.random.default_rng(3)
    first, row = random.integers(0, 9, 3000), np.arange(3000)
    columns = {"first": first.astype(str), "row": row.astype(str), "again": np.char.add("r", (2999 - row).astype(str))}
    ranking = rank_log(code(columns | {"label": labels(random, first / 3 - 1)}))
    told = {frozenset(key): (pair.similarity, pair.first_told, pair.second_told) for key, pair in named(ranking).items()}
    for other in ("row", "again"):
        assert told[frozenset(("first", other))] == pytest.approx((0, 0, 0), abs=1e-6)
    assert told[frozenset(("row", "again"))] == (1, 1, 1)
    table = ranking.table()
    assert table.filter(pl.col("feature") == "first")["told_by"].to_list() == [None]


@pytest.mark.parametrize("most", [1, 3, 6])
def test_of_copies_one_is_recommended_when_not_all_are_paired(code: Code, most: int) -> None:
    random = np.random.default_rng(0)
    strong, weak = random.integers(0, 9, (2, 3000))
    columns = {"d": weak.astype(str), "c": (8 - weak).astype(str), "b": strong.astype(str), "a": (8 - strong).astype(str)}
    log = code(columns | {"label": labels(random, strong / 2 + weak / 4 - 3)})
    ranking = rank_log(log, most_pairs=most)
    assert [ranking.scores[place].name for place in ranking.recommended()] == ["a", "c"]


def test_the_best_features_only_are_paired(log: CodedLog) -> None:
    ranking = rank_log(log, most_pairs=4)
    assert (len(ranking.pairs), ranking.paired) == (3, 3)
    assert {name for key in named(ranking) for name in key} == {"city", "copy", "country"}


def test_crosses_of_three(code: Code) -> None:
    random = np.random.default_rng(4)
    bits = random.integers(0, 2, (5, 20_000))
    label = labels(random, np.where(bits[:3].sum(0) % 2 == 1, 1.0, -1.0))
    log = code({f"bit{i}": bits[i].astype(str) for i in range(5)} | {"label": label})
    ranking = rank_log(log, order=4, crosses=10)
    best = ranking.crosses[0]
    assert best.places[:3] == (0, 1, 2)
    triples = {cross.places: cross for cross in ranking.crosses if len(cross.places) == 3}
    assert set(triples) == set(itertools.combinations(range(5), 3))
    assert triples[0, 1, 2].gain > 0.1 and triples[0, 1, 2].values == 8
    assert all(abs(cross.gain) < 0.01 for places, cross in triples.items() if places != (0, 1, 2))
    assert len(ranking.crosses) <= 20 and any(len(cross.places) == 4 for cross in ranking.crosses)


def test_one_feature(code: Code) -> None:
    ranking = rank_log(code({"x": ["a", "b"] * 50, "label": [0, 1, 1, 0, 1] * 20}), by="3mr")
    assert (ranking.order, len(ranking.pairs), ranking.clusters.of) == ((0,), 0, (1,))
