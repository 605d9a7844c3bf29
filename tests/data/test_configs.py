"""Every shipped config loads, and the logs at hand are prepared with it."""

import os
from pathlib import Path
from typing import Any

import pytest

from ctrkit.config import Experiment
from ctrkit.config_file import load_config, task_of
from ctrkit.data.known import KNOWN_LOGS, KnownLog
from ctrkit.data.prepare import check_columns, prepare
from ctrkit.retrieval.config import load_retrieval
from ctrkit.retrieval.funnel import load_funnel
from ctrkit.retrieval.prepare import check_columns as check_retrieval_columns

CONFIGS = sorted(Path("configs").glob("*.yaml"))
RETRIEVAL = [path for path in CONFIGS if task_of(path) == "retrieval"]
FUNNELS = [path for path in CONFIGS if task_of(path) == "funnel"]
CLICKS = [path for path in CONFIGS if path not in (*RETRIEVAL, *FUNNELS)]
REAL = [known for known in KNOWN_LOGS if known.files and Path(known.config) in CLICKS]


@pytest.mark.parametrize("path", CLICKS, ids=lambda path: path.stem)
def test_every_config_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRKIT_DATA", "data")
    experiment = load_config(path)
    assert experiment.name == path.stem
    assert experiment.model.name == ("din" if path.stem == "kuairand-history" else "mmoe" if experiment.tasks else "autoint")


def test_every_config_is_listed_with_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {known.config for known in KNOWN_LOGS} == {str(path) for path in CONFIGS}
    for known in REAL:
        monkeypatch.setenv("CTRKIT_DATA", str(tmp_path / known.name))
        assert not known.found
        data = load_config(known.config).data
        paths: list[Any] = [data.path, data.train, data.valid, data.test, *(join.path for join in data.joins)]
        files = [tmp_path / known.name / file for file in known.files]
        assert {str(file) for file in files} == {path for path in paths if path}
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        assert known.found
    monkeypatch.delenv("CTRKIT_DATA")
    assert [known.name for known in KNOWN_LOGS if known.found] == ["simulated"]


@pytest.fixture(params=REAL, ids=lambda known: known.name)
def real(request: pytest.FixtureRequest) -> tuple[KnownLog, Experiment]:
    known: KnownLog = request.param
    if not known.found:
        pytest.skip(f"needs the log '{known.name}' under $CTRKIT_DATA")
    return known, load_config(known.config)


def test_configs_fit_the_headers_of_their_logs(real: tuple[KnownLog, Experiment]) -> None:
    assert check_columns(real[1])


SPLITS = {
    "criteo": {"train": 64_000, "valid": 8_000, "test": 8_000},
    "avazu": {"train": 7_999, "valid": 1_000, "test": 1_000},
    "frappe": {"train": 51_950, "valid": 5_772, "test": 28_860},
    "movielens-tag": {"train": 140_480, "valid": 40_137, "test": 20_069},
    "kuairand": {"train": 33_462, "valid": 4_183, "test": 4_183},
    "kuairand-history": {"train": 33_462, "valid": 4_183, "test": 4_183},
    "kuairand-multitask": {"train": 33_462, "valid": 4_183, "test": 4_183},
    "census-income": {"train": 69_834, "valid": 14_964, "test": 14_964},
    "adult": {"train": 22_793, "valid": 4_884, "test": 4_884},
}


@pytest.mark.parametrize("name", SPLITS)
def test_real_logs_are_prepared(name: str, tmp_path: Path) -> None:
    if not os.environ.get("CTRKIT_DATA"):
        pytest.skip("needs real logs: set CTRKIT_DATA")
    known = next(known for known in KNOWN_LOGS if known.name == name)
    if not known.found:
        pytest.skip(f"needs the log '{name}' under $CTRKIT_DATA")
    dataset = prepare(load_config(known.config), tmp_path / name)
    assert dataset.rows == SPLITS[name]
    rates = [rate for split in dataset.profile["splits"].values() for rate in split.get("rates", {"click": split["ctr"]}).values()]
    assert all(0.05 < rate < 0.75 for rate in rates)


def test_movielens_ratings_are_joined_with_users_and_films(tmp_path: Path) -> None:
    if not os.environ.get("CTRKIT_DATA"):
        pytest.skip("needs real logs: set CTRKIT_DATA")
    from ctrkit.data.readers import open_log

    experiment = load_config("configs/movielens-1m.yaml")
    first = next(iter(open_log(experiment.data))).row(0, named=True)
    assert first == {
        "user": "1",
        "movie": "1193",
        "rating": "5",
        "gender": "F",
        "age": "1",
        "occupation": "10",
        "zip": "48067",
        "title": "One Flew Over the Cuckoo's Nest (1975)",
        "genres": "Drama",
    }


@pytest.mark.parametrize("path", RETRIEVAL, ids=lambda path: path.stem)
def test_every_retrieval_config_fits_its_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = next(known for known in KNOWN_LOGS if known.config == str(path))
    if not known.found:
        monkeypatch.setenv("CTRKIT_DATA", "data")
    experiment = load_retrieval(path)
    assert experiment.name == path.stem
    tables = [table.path for table in (experiment.users, experiment.items) if table is not None]
    assert {str(Path(os.environ["CTRKIT_DATA"]) / file) for file in known.files} == {experiment.data.path, *tables}
    if known.found:
        assert check_retrieval_columns(experiment)


@pytest.mark.parametrize("path", FUNNELS, ids=lambda path: path.stem)
def test_every_funnel_fits_its_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = next(known for known in KNOWN_LOGS if known.config == str(path))
    if not known.found:
        monkeypatch.setenv("CTRKIT_DATA", "data")
    funnel = load_funnel(path)
    assert funnel.name == path.stem
    if known.found:
        assert check_retrieval_columns(funnel.retrieval) and check_columns(funnel.ranking)
