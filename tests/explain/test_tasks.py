"""Several labels: one of them is explained, and it is the one that was asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctrkit.data.dataset import Dataset
from ctrkit.errors import CtrkitError
from ctrkit.explain.explainer import open_run
from ctrkit.training.evaluate import predict_split
from pipelines.explain import explain_run
from pipelines.terminal import Terminal
from tests.pages import parsed

CAUSES = {"click": {"city", "tags", "price"}, "buy": {"price"}}


@pytest.fixture(scope="module")
def run(train: Callable[..., Path]) -> Path:
    return train({"name": "mmoe", "experts": 2, "expert_hidden": [32], "hidden": [16]}, "labels")


@pytest.mark.parametrize("task", ["click", "buy"])
def test_what_makes_a_label_is_ranked_first(task: str, run: Path) -> None:
    with open_run(run, task) as opened:
        explanation = opened.explain_split("test", rows=1000, repeats=2, seed=0)
    causes = CAUSES[task]
    by_attribution = sorted(explanation.fields, key=lambda score: -score.attribution)
    for order in (explanation.fields, by_attribution):
        assert {score.field for score in order[: len(causes)]} == causes
    assert all((score.auc_drop.mean > 0.03) == (score.field in causes) for score in explanation.fields)


@pytest.mark.parametrize("task", ["click", "buy"])
def test_figures_are_those_of_the_label(task: str, run: Path, datasets: dict[str, Dataset]) -> None:
    predictions = predict_split(run, "test")
    number = predictions.tasks.index(task)
    with open_run(run, task) as opened:
        explanation = opened.explain_split("test", 10**6, 2, seed=0)
        row, about = opened.explain_golden(7), opened.about()
    assert about.label == task and about.tasks == ("click", "buy")
    metrics = predictions.metrics()
    assert explanation.auc == pytest.approx(metrics[f"{task}/auc"], abs=1e-6)
    assert explanation.logloss == pytest.approx(metrics[f"{task}/logloss"], abs=1e-6)
    assert about.metrics["test"]["auc"] == pytest.approx(metrics[f"{task}/auc"], abs=1e-6)
    assert row.probability == pytest.approx(predictions.probabilities[7, number], abs=1e-6)
    assert row.label == predictions.labels[7, number]
    assert row.base_logit + sum(share.contribution for share in row.fields) == pytest.approx(row.logit, abs=2e-3)


def test_the_main_label_is_explained_unless_another_is_named(run: Path) -> None:
    with open_run(run) as opened:
        unnamed = opened.explain_golden(1)
    with open_run(run, "click") as opened:
        assert opened.explain_golden(1) == unnamed
        assert opened.task == "click"


def test_an_unknown_task_is_told_the_nearest(run: Path) -> None:
    with pytest.raises(CtrkitError, match="predicts no label 'by'. Did you mean 'buy'?"), open_run(run, "by"):
        pass


def test_esmm_s_second_label_is_click_and_purchase(train: Callable[..., Path]) -> None:
    run = train({"name": "esmm", "hidden": [16]}, "labels", steps=8)
    expected = predict_split(run, "test")
    with open_run(run, "buy") as opened:
        found = [opened.explain_golden(k) for k in range(12)]
        explanation = opened.explain_split("test", 10**6, 2, seed=0)
    np.testing.assert_array_equal([row.label for row in found], expected.labels[:12, 1])
    assert explanation.auc == pytest.approx(expected.metrics()["buy/auc"], abs=1e-6)


def test_each_label_has_a_folder_of_its_own(run: Path) -> None:
    screen = Terminal(as_json=True)
    for task in (None, "buy"):
        written = explain_run(run, screen, row=0, task=task)
        assert Path(written["html"]) == run / "explain" / (task or "click") / "row-0.html"
        page = parsed(Path(written["html"]).read_text(encoding="utf8"))
        assert f"predicts {task or 'click'}, one of the labels click, buy" in page.words
        assert json.loads(Path(written["json"]).read_text())["about"]["label"] == (task or "click")
