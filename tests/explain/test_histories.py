"""Models that attend to a history: its importance, its contribution, and the weights of its places and values."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ctrkit.data.dataset import Dataset
from ctrkit.explain.explainer import Explainer, open_run
from ctrkit.explain.lookups import Lookups, look_up
from ctrkit.explain.page import row_page, split_page
from ctrkit.explain.permutation import permuted
from ctrkit.explain.places import HistorySection, PlaceSection
from ctrkit.explain.raw import Element
from ctrkit.export.selfcheck import to_batch
from ctrkit.models.base import PlaceWeights
from tests.pages import parsed

LENGTH = 6
MODELS = {"din": {"name": "din", "hidden": [16]}, "bst": {"name": "bst", "hidden": [16]}}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def explainer(name: str, train: Callable[..., Path]) -> Iterator[Explainer]:
    with open_run(train(MODELS[name], "histories", epochs=8, patience=8, batch_size=100)) as opened:
        yield opened


@pytest.fixture(scope="module")
def raw(datasets: dict[str, Dataset]) -> pl.DataFrame:
    return datasets["histories"].golden()


def of_log(explainer: Explainer, raw: pl.DataFrame) -> Lookups:
    batch = to_batch(explainer.transforms.encode(raw), explainer.dataset.inputs)
    return look_up(explainer._model, batch, torch.device("cpu"))


def test_what_makes_the_click_is_ranked_first(explainer: Explainer) -> None:
    explanation = explainer.explain_split("test", rows=800, repeats=2, seed=0)
    scores = {score.field: score for score in explanation.fields}
    assert scores["past"].kind == "sequence"
    for field in ("past", "category"):
        assert scores[field].auc_drop.mean > 0.1 > 20 * abs(scores["hour"].auc_drop.mean)
        assert scores[field].attribution > 3 * scores["hour"].attribution


def test_shuffling_histories_is_shuffling_the_log(explainer: Explainer, raw: pl.DataFrame) -> None:
    order = torch.randperm(raw.height, generator=torch.Generator().manual_seed(0))
    inputs = explainer.dataset.inputs
    for field in explainer._subject.fields:
        shuffled = of_log(explainer, raw.with_columns(raw[field].gather(order.numpy())))
        batch = permuted(to_batch(explainer.transforms.encode(raw), inputs), inputs, field, order)
        changed = look_up(explainer._model, batch, torch.device("cpu"))
        assert set(changed.embeddings) == {"embedding", "embedding/past", "mask/past"}
        for key in changed.embeddings:
            torch.testing.assert_close(changed.embeddings[key], shuffled.embeddings[key], rtol=0, atol=0)


def test_a_row_s_history_is_shown_value_by_value(explainer: Explainer, raw: pl.DataFrame) -> None:
    for number in range(12):
        row = explainer.explain_golden(number)
        (section,) = row.sections
        assert isinstance(section, HistorySection)
        last = [value for value in raw["past"][number] if value][-LENGTH:]
        assert [value.value for value in section.values] == last[::-1]
        assert [value.place for value in section.values] == list(range(1, len(last) + 1))
        assert row.base_logit + sum(share.contribution for share in row.fields) == pytest.approx(row.logit, abs=0.1)


def test_the_value_that_is_the_target_stands_out(explainer: Explainer) -> None:
    """The same history with the target in its middle, and with another value instead, for some targets."""
    own, others, moved = [], [], []
    for k in range(6):
        target = f"c{k}"
        with_it, without = (
            explainer.explain_json({"category": target, "hour": 4, "past": ["c11", "", "c12", middle, "c13", "c14"]})
            for middle in (target, "c15")
        )
        (section,) = with_it.sections
        assert isinstance(section, HistorySection)
        assert [value.value for value in section.values] == ["c14", "c13", target, "c12", "c11"]
        sizes = [abs(value.weight) for value in section.values]
        own.append(sizes.pop(2))
        others.append(np.mean(sizes))
        moved.append(with_it.logit - without.logit)
    assert np.mean(own) > 2 * np.mean(others)
    assert np.mean(moved) > 1, "it speaks for a click"


def test_unseen_values_and_an_empty_history(explainer: Explainer) -> None:
    row = explainer.explain_json({"category": "c3", "past": ["c1", "never seen"]})
    (section,) = row.sections
    assert isinstance(section, HistorySection)
    assert [(value.value, value.unseen) for value in section.values] == [("never seen", True), ("c1", False)]
    page, _ = row_page(explainer.about(), row, "row")
    assert "never seen (unseen in training)" in parsed(page).words
    nothing = explainer.explain_json({"category": "c3"})
    page, drawn = row_page(explainer.about(), nothing, "row")
    assert "This row has nothing in its past" in parsed(page).words and len(drawn) == 1


def test_places_are_means_of_rows(explainer: Explainer, name: str) -> None:
    """Of every history as many places as it has values: lengths are as likely from 0 to 8, and six are kept."""
    explanation = explainer.explain_split("test", 600, 2, seed=0)
    (section,) = explanation.sections
    assert isinstance(section, PlaceSection)
    assert section.rows == 600 and [place.place for place in section.places] == list(range(1, LENGTH + 1))
    reached = [place.rows / 600 for place in section.places]
    assert reached == pytest.approx([k / 9 for k in (8, 7, 6, 5, 4, 3)], abs=0.07)
    for place in section.places:
        assert place.weight == pytest.approx(np.mean(list(place.weights.values())))
        assert (place.even is None) == (name == "din")
    page, drawn = split_page(explainer.about(), explanation)
    assert "Attention to past" in parsed(page).words and "attention-to-past" in [picture.name for picture in drawn]


def test_places_from_a_sample_by_hand() -> None:
    """Three rows with histories of 2, 1 and none."""
    weights = {"a": torch.tensor([[0.4, 0.2], [0.0, 0.5], [0.0, 0.0]]), "b": torch.tensor([[0.1, 0.3], [0.0, 0.4], [0.0, 0.0]])}
    mask = np.array([[True, True], [False, True], [False, False]])
    latest, before = PlaceSection.of(PlaceWeights("past", "", weights, normalised=True), mask).places
    assert (latest.rows, before.rows) == (2, 1)
    assert latest.weights == pytest.approx({"a": 0.35, "b": 0.35}) and latest.weight == pytest.approx(0.35)
    assert before.weights == pytest.approx({"a": 0.4, "b": 0.1}) and before.weight == pytest.approx(0.25)
    assert latest.even == pytest.approx((1 / 3 + 1 / 2) / 2) and before.even == pytest.approx(1 / 3)
    nowhere = PlaceSection.of(PlaceWeights("past", "", weights, normalised=False), np.zeros_like(mask))
    assert [(place.rows, place.weight, place.even) for place in nowhere.places] == [(0, None, None)] * 2
    assert "None of the 3 rows" in nowhere.show("x").html


def test_a_long_history_is_drawn_in_part_and_listed_whole() -> None:
    history = [Element(f"v{k}", k, False) for k in range(60)]
    section = HistorySection.of(PlaceWeights("past", "", {"weight": torch.arange(60.0).unsqueeze(0)}, False), history)
    assert [(v.value, v.weight) for v in section.values[:2]] == [("v59", 59.0), ("v58", 58.0)]
    html = section.show("x").html
    assert "The 40 before them are in the table" in html and html.count("<tr>") == 61
