"""Every model of the registry, trained for some steps and explained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ctrkit.data.dataset import Dataset
from ctrkit.explain.explainer import open_run
from ctrkit.models.registry import models

DATA = {"ranking": "fields", "multi-task": "labels", "sequence": "histories"}
SMALL = {
    "optinter": {"method": "memorised", "min_count": 2, "hidden": [16]},
    "bst": {"hidden": [16]},
    "esmm": {"hidden": [16]},
    "optfs": {"search_epochs": 2, "rewind_epoch": 0},
}


@pytest.mark.parametrize("name,data", [(info.name, DATA[info.kind]) for info in models()])
def test_every_model_is_explained(name: str, data: str, datasets: dict[str, Dataset], train: Callable[..., Path]) -> None:
    run = train({"name": name, **SMALL.get(name, {})}, data, steps=8)
    with open_run(run) as opened:
        explanation = opened.explain_split("test", rows=40, repeats=2, seed=0)
        about = opened.about()
    assert {score.field for score in explanation.fields} == {feature.name for feature in datasets[data].features}
    assert max(score.attribution for score in explanation.fields) > 0
    for row in explanation.examples:
        assert row.gap < 1e-3 + 0.01 * abs(row.logit - row.base_logit)
        assert row.base_logit + sum(share.contribution for share in row.fields) == pytest.approx(row.logit, abs=row.gap + 1e-5)
    assert about.model == name and about.paper and about.label == "click"
