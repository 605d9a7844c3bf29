"""What a search decided: OptFS's kept values, of all and of a row; and a decision that has no picture of its own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ctrkit.data.dataset import Dataset
from ctrkit.explain.decisions import decision_view
from ctrkit.explain.explainer import Explainer, open_run
from ctrkit.explain.page import row_page, split_page
from ctrkit.explain.raw import RawRow
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs
from ctrkit.training.run import load_run, read_result
from tests.pages import parsed

SEARCH = {"name": "optfs", "base": "lr", "l1": 2e-3, "gate_learning_rate": 0.03, "search_epochs": 6}


@pytest.fixture(scope="module")
def run(train: Callable[..., Path]) -> Path:
    return train(SEARCH)


@pytest.fixture(scope="module")
def explainer(run: Path) -> Iterator[Explainer]:
    with open_run(run) as opened:
        yield opened


@pytest.fixture(scope="module")
def decision(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run)[2]["decision"]


def test_the_section_is_the_run_s_decision(run: Path, explainer: Explainer) -> None:
    explanation = explainer.explain_split("test", 100, 2, seed=0)
    (section,) = explanation.sections
    said, result = section.to_json(), read_result(run)
    assert result is not None and result.decision is not None
    assert said["title"] == "What the search decided" and said["summary"] == result.decision["summary"]
    of_features = {f["feature"]: {key: f[key] for key in ("values", "kept", "ratio")} for f in said["features"]}
    assert of_features == result.decision["fields"]
    ratios = [feature["ratio"] for feature in said["features"]]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > ratios[-1]
    assert of_features["city"]["ratio"] > of_features["colour"]["ratio"]
    assert of_features["price"]["kept"] == 1 and of_features["weight"]["kept"] == 0

    page, drawn = split_page(explainer.about(), explanation)
    words = parsed(page).words
    assert result.decision["summary"] in words and "what-the-search-decided" in [picture.name for picture in drawn]
    city = of_features["city"]
    assert f"{city['kept']} of {city['values']}" in words


def test_a_row_s_values_are_kept_or_pruned(explainer: Explainer, decision: dict[str, torch.Tensor], datasets: dict[str, Dataset]) -> None:
    raw = datasets["fields"].golden()
    encoded = explainer.transforms.encode(raw)
    seen = set()
    for number in range(8):
        (section,) = explainer.explain_golden(number).sections
        said = [(v["feature"], v["value"], v["kept"]) for v in section.to_json()["values"]]
        row = raw.row(number, named=True)
        expected = []
        for name in raw.columns:
            if name == "tags":
                expected += [(name, v, bool(decision[name][i])) for v, i in zip(row[name], encoded[name][number], strict=True)]
            elif name in ("weight", "price"):
                value = None if row[name] != row[name] else row[name]
                expected.append((name, value, bool(decision[name])))
            else:
                expected.append((name, row[name], bool(decision[name][encoded[name][number]])))
        assert sorted(said, key=str) == sorted(expected, key=str)
        seen |= {kept for _, _, kept in said}
    assert seen == {True, False}


def test_a_pruned_value_has_no_influence(explainer: Explainer) -> None:
    """Two pruned colours in each other's place, and two numbers of a feature that was pruned as a whole; a kept number counts."""
    colours = [f"k{k}" for k in range(8)]
    rows = {colour: explainer.explain_json({"city": "c1", "colour": colour, "price": 0.5}) for colour in colours}
    pruned = [c for c, row in rows.items() if {s.field: s for s in row.fields}["colour"].pruned]
    assert len(pruned) >= 2
    for colour in pruned:
        values = {v["feature"]: v["kept"] for v in rows[colour].sections[0].to_json()["values"]}
        assert values["colour"] is False
        assert rows[colour].logit == pytest.approx(rows[pruned[0]].logit, abs=1e-6)

    plain = explainer.explain_json({"city": "c1", "weight": 0.0, "price": 0.5})
    heavy = explainer.explain_json({"city": "c1", "weight": 3.0, "price": 0.5})
    assert heavy.logit == pytest.approx(plain.logit, abs=1e-6)
    shares = {share.field: share for share in heavy.fields}
    assert shares["weight"].pruned and shares["weight"].contribution == 0
    assert not shares["price"].pruned
    assert abs(explainer.explain_json({"city": "c1", "price": 3.0}).logit - plain.logit) > 0.3


def test_the_page_of_a_row_strikes_out_what_was_pruned(explainer: Explainer) -> None:
    page, _ = row_page(explainer.about(), explainer.explain_json({"city": "c1", "weight": 3.0}), "row")
    assert "3 (pruned)" in parsed(page).words
    assert '<span class="chip pruned">weight = 3</span>' in page
    assert '<span class="chip">price = missing</span>' in page


def test_a_decision_without_a_picture_has_its_sentence() -> None:
    inputs = Inputs(id_fields=(IdField(name="a", rows=4),), numeric_fields=("n",))
    decision = {"a": torch.tensor([False, True, False, True]), "n": torch.tensor(True)}
    model = build("optfs", inputs, 4, {"base": "lr"}, decision=decision)
    view = decision_view("a model yet to come", model)
    assert view is not None and view.of_row(RawRow({}, {})) is None and view.pruned(RawRow({}, {})) == set()
    section = view.whole()
    assert "The search kept 3 of 4 feature values (75.0%)" in section.show("x").html
    assert json.loads(json.dumps(section.to_json()))["kept"] == 3
    assert decision_view("lr", build("lr", inputs, 4, {})) is None
