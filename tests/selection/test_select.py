"""An experiment cut down to the best of a ranking."""

from pathlib import Path

import polars as pl
import pytest

from ctrkit.config import Experiment, UnifiedEmbedding
from ctrkit.errors import CtrkitError
from ctrkit.selection.select import read_ranking, select_features

NAMES = ["user", "item", "price", "past"]


def experiment(**changes: object) -> Experiment:
    features = [
        {"name": "user", "kind": "categorical"},
        {"name": "item", "kind": "categorical"},
        {"name": "price", "kind": "numeric"},
        {"name": "past", "kind": "sequence", "of": "item"},
    ]
    return Experiment.model_validate({"name": "e", "data": {"path": "log.csv"}, "label": "click", "features": features, **changes})


def ranking(folder: Path, names: list[str], suffix: str = ".parquet") -> Path:
    path = folder / f"ranking{suffix}"
    frame = pl.DataFrame({"feature": names, "score": [float(-i) for i in range(len(names))]})
    {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".json": frame.write_json}[suffix](path)
    return path


def names(experiment: Experiment) -> list[str]:
    return [feature.name for feature in experiment.features]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_keeps_the_best_in_the_order_of_the_config(tmp_path: Path, suffix: str) -> None:
    path = ranking(tmp_path, ["price", "user", "past", "item"], suffix)
    assert names(select_features(experiment(), path, 2)) == ["user", "price"]
    assert names(select_features(experiment(), path, 9)) == NAMES


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_a_feature_may_be_named_by_a_number(tmp_path: Path, suffix: str) -> None:
    assert read_ranking(ranking(tmp_path, ["01", "1", "2.50"], suffix)) == ["01", "1", "2.50"]


def test_takes_the_folder_of_a_ranking(tmp_path: Path) -> None:
    ranking(tmp_path, ["price", "user", "past", "item"])
    assert names(select_features(experiment(), tmp_path, 1)) == ["price"]


def test_a_sequence_brings_the_feature_it_is_a_history_of(tmp_path: Path) -> None:
    path = ranking(tmp_path, ["past", "price", "user", "item"])
    assert names(select_features(experiment(), path, 2)) == ["item", "price", "past"]


def test_lookups_of_dropped_features_go_with_them(tmp_path: Path) -> None:
    path = ranking(tmp_path, ["user", "price", "item", "past"])
    unified = experiment(embedding={"kind": "unified", "rows": 100, "feature_lookups": {"user": 2, "item": 3}})
    chosen = select_features(unified, path, 2)
    assert isinstance(chosen.embedding, UnifiedEmbedding)
    assert chosen.embedding.feature_lookups == {"user": 2}
    assert Experiment.model_validate(chosen.model_dump()) == chosen


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["user", "itm", "price", "past"], "names 'itm', which is no feature of 'e'. Did you mean 'item'?"),
        (["user", "item", "price"], "does not name the feature 'past'"),
        (["user", "user", "price", "past"], "names a feature twice"),
        ([], "holds no ranking"),
    ],
)
def test_a_ranking_of_other_features_is_refused(tmp_path: Path, listed: list[str], message: str) -> None:
    with pytest.raises(CtrkitError, match=message.replace("?", r"\?")):
        select_features(experiment(), ranking(tmp_path, listed), 2)


def test_what_is_no_ranking_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="no ranking at"):
        select_features(experiment(), tmp_path, 2)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CtrkitError, match="is no ranking"):
        select_features(experiment(), tmp_path / "notes.txt", 2)
    (tmp_path / "ranking.csv").write_text("name,score\na,1\n")
    with pytest.raises(CtrkitError, match="needs a column 'feature'"):
        select_features(experiment(), tmp_path / "ranking.csv", 2)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(CtrkitError, match="cannot be read"):
        select_features(experiment(), tmp_path / "broken.parquet", 2)
    with pytest.raises(CtrkitError, match="top 0"):
        select_features(experiment(), tmp_path, 0)
