"""``ctrkit explain``: its JSON, its files, and a page that needs nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ctrkit.bundle import open_bundle
from tests.pages import Page, parsed


def read(path: str | Path) -> Page:
    return parsed(Path(path).read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def whole(journey, ctrkit: Callable):
    return ctrkit("explain", journey.run, "--rows", 200, "--repeats", 2)


def test_a_split_is_explained_in_the_run_s_folder(journey, whole) -> None:
    assert whole.status == 0 and len(whole.stdout.splitlines()) == 1
    said = whole.json
    assert {"html", "json", "pictures", "rows", "fields", "agreement", "seconds"} <= set(said)
    assert said["rows"] == 200
    assert Path(said["html"]) == journey.run / "explain/explain.html"
    assert len(said["fields"]) == 8
    for picture in said["pictures"]:
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert not [path for path in (journey.run / "explain").iterdir() if path.name.startswith(".")]


def test_the_json_holds_what_the_page_shows(journey, whole) -> None:
    content = json.loads(Path(whole.json["json"]).read_text())
    assert content["about"]["model"] == "dlrm"
    assert content["about"]["metrics"]["test"]["auc"] == journey.train.json["test"]["auc"]
    assert [score["field"] for score in content["fields"]] == list(whole.json["fields"])
    drops = [score["auc_drop"]["mean"] for score in content["fields"]]
    assert drops == sorted(drops, reverse=True)
    assert content["sections"] == []
    page = read(whole.json["html"])
    for score in content["fields"]:
        assert f"{score['attribution']:.4f}" in page.words and score["field"] in page.words
    for example in content["examples"]:
        assert f"{example['probability']:.2%}" in page.words


def test_a_row_is_explained_as_it_is_scored(journey, ctrkit: Callable, tmp_path: Path) -> None:
    golden = open_bundle(journey.bundle).golden()
    said = ctrkit("explain", journey.run, "--row", 3, "--out", tmp_path / "new" / "folder").json
    assert said["probability"] == pytest.approx(golden.probabilities[3], abs=1e-5)
    assert said["base_logit"] + sum(said["contributions"].values()) == pytest.approx(said["logit"], abs=5e-3)
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == ["row-3.html", "row-3.json", "row-3.png"]
    given = ctrkit("explain", journey.run, "--row-json", json.dumps(golden.rows[3]), "--out", tmp_path).json
    assert given["contributions"] == said["contributions"]
    content = json.loads(Path(given["json"]).read_text())
    assert {share["field"]: share["value"] for share in content["fields"]} == golden.rows[3]


def test_values_are_shown_as_text_whatever_they_hold(journey, ctrkit: Callable, tmp_path: Path) -> None:
    row = {"user_id": "<script>alert(1)</script>", "item_id": "a $x^2$ & b", "category": "日本", "tags": []}
    said = ctrkit("explain", journey.run, "--row-json", json.dumps(row), "--out", tmp_path).json
    words = read(said["html"]).words
    assert "<script>alert(1)</script> (unseen in training)" in words
    assert "a $x^2$ & b" in words and "日本" in words
    assert "price is missing" in words or "missing" in words


def test_people_get_a_table(journey, ctrkit: Callable, tmp_path: Path) -> None:
    said = ctrkit("explain", journey.run, "--row", 0, "--out", tmp_path, as_json=False)
    assert said.status == 0
    raw = pl.read_parquet(journey.run / "dataset/golden.parquet")[0].to_dicts()[0]
    assert "contribution" in said.stdout and str(raw["user_id"]) in said.stdout
    assert "row-0.html" in said.stdout


@pytest.mark.parametrize("text", ["{", '{"price": ' + "9" * 5000 + "}", "[" * 100_000])
def test_what_is_no_json_is_refused(journey, ctrkit: Callable, tmp_path: Path, text: str) -> None:
    said = ctrkit("explain", journey.run, "--row-json", text, "--out", tmp_path)
    assert said.status == 2 and "--row-json is not JSON" in said.stderr and not list(tmp_path.iterdir())


def test_one_label_is_no_task(journey, ctrkit: Callable, tmp_path: Path) -> None:
    said = ctrkit("explain", journey.run, "--task", "click", "--out", tmp_path)
    assert said.status == 2 and "predicts one label, so there is no task 'click'" in said.stderr
