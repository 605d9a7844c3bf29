"""Every model of the registry, trained for some steps and explained."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.explain.explainer import open_run
from ctrkit.models.registry import models
from ctrkit.training.trainer import train


@pytest.mark.parametrize("name", [info.name for info in models() if info.kind == "ranking"])
def test_every_model_is_explained(name: str, planted: Dataset, planted_experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    run = train(planted_experiment(name, steps=8), planted, run_dir=tmp_path / "run", console=Console(quiet=True)).run
    with open_run(run) as opened:
        explanation = opened.explain_split("test", rows=40, repeats=2, seed=0)
        row = opened.explain_golden(1)
        about = opened.about()
    assert {score.field for score in explanation.fields} == {feature.name for feature in planted.features}
    assert max(score.attribution for score in explanation.fields) > 0
    assert row.gap < 1e-3 + 0.01 * abs(row.logit - row.base_logit)
    assert about.model == name and about.paper
