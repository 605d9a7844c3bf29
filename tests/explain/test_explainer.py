"""A planted log, where three features make the click and two are noise: both methods must say so."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ctrkit.data.batch import Batch
from ctrkit.data.dataset import Dataset
from ctrkit.errors import CtrkitError
from ctrkit.explain.explainer import Explainer, open_run
from ctrkit.explain.explanation import SplitExplanation, rank_correlation
from ctrkit.explain.maps import FieldMap, MapSection
from ctrkit.explain.markup import slugs
from ctrkit.explain.permutation import permuted
from ctrkit.export.selfcheck import to_batch
from ctrkit.export.writer import json_rows
from ctrkit.training.evaluate import Predictions, predict_split

CAUSES, NOISE = {"city", "tags", "price"}, {"colour", "weight"}


@pytest.fixture(scope="module")
def planted(datasets: dict[str, Dataset]) -> Dataset:
    return datasets["fields"]


@pytest.fixture(scope="module")
def run(train: Callable[..., Path]) -> Path:
    return train("autoint")


@pytest.fixture(scope="module")
def predictions(run: Path) -> Predictions:
    return predict_split(run, "test")


@pytest.fixture(scope="module")
def explainer(run: Path, predictions: Predictions) -> Iterator[Explainer]:
    with open_run(run) as opened:
        yield opened


@pytest.fixture(scope="module")
def explanation(explainer: Explainer) -> SplitExplanation:
    return explainer.explain_split("test", rows=1200, repeats=3, seed=0)


def test_what_makes_the_click_is_ranked_first_by_both_and_noise_is_near_zero(explanation: SplitExplanation) -> None:
    by_drop = [score.field for score in explanation.fields]
    by_attribution = [score.field for score in sorted(explanation.fields, key=lambda s: -s.attribution)]
    assert set(by_drop[:3]) == set(by_attribution[:3]) == CAUSES
    for score in explanation.fields:
        if score.field in CAUSES:
            assert score.auc_drop.mean > 0.03 and score.logloss_rise.mean > 0.02
            assert score.auc_drop.mean > 4 * score.auc_drop.std
            assert score.attribution > 0.3
        else:
            assert abs(score.auc_drop.mean) < 0.005 and abs(score.logloss_rise.mean) < 0.005
            assert score.attribution < 0.1
    assert explanation.agreement > 0.6
    assert {score.kind for score in explanation.fields} == {"categorical", "multi_valued", "numeric"}


def test_a_seed_gives_the_same_figures(explainer: Explainer) -> None:
    first, again, other = (explainer.explain_split("valid", 100, 2, seed).to_json() for seed in (1, 1, 2))
    assert first == again != other


def test_the_sample_s_metrics_are_those_of_the_split_when_it_is_all_of_it(explainer: Explainer, planted: Dataset) -> None:
    explanation = explainer.explain_split("test", 10**6, 2, seed=0)
    assert explanation.rows == explanation.of_rows == planted.rows["test"]
    metrics = explainer.about().metrics["test"]
    assert explanation.auc == pytest.approx(metrics["auc"], abs=1e-6)
    assert explanation.logloss == pytest.approx(metrics["logloss"], abs=1e-6)


def test_rows_are_the_first_of_the_test_split(explainer: Explainer, predictions: Predictions) -> None:
    for number in (0, 7):
        row = explainer.explain_golden(number)
        assert row.probability == pytest.approx(predictions.probabilities[number], abs=1e-6)
        assert row.label == predictions.labels[number]
        assert row.base_logit + sum(share.contribution for share in row.fields) == pytest.approx(row.logit, abs=2e-3)


def test_a_row_given_as_json_is_the_row_that_was_kept(explainer: Explainer, planted: Dataset) -> None:
    raw = json_rows(planted.golden())
    kept, given = explainer.explain_golden(5), explainer.explain_json(raw[5])
    assert {share.field: share.value for share in kept.fields} == raw[5]
    assert given.fields == kept.fields
    assert given.label is None


def test_unseen_and_missing_values_are_named(explainer: Explainer) -> None:
    row = explainer.explain_json({"city": "atlantis", "colour": "k1", "tags": ["t1", "t9"]})
    shares = {share.field: share for share in row.fields}
    assert shares["city"].unseen and not shares["colour"].unseen
    assert shares["price"].value is None and not shares["price"].unseen
    assert row.base_logit + sum(share.contribution for share in row.fields) == pytest.approx(row.logit, abs=2e-3)


def test_a_row_that_the_model_cannot_score_is_refused(explainer: Explainer) -> None:
    with pytest.raises(CtrkitError, match="field 'price': the model makes no finite number of this row"):
        explainer.explain_json({"city": "atlantis", "price": 3e38})


def test_a_missing_text_is_null(explainer: Explainer) -> None:
    row = explainer.explain_json({"price": 1.0})
    assert {share.field: share.value for share in row.fields}["city"] is None


def test_sections_have_pictures_of_their_own() -> None:
    assert slugs(["Attention to 历史", "Attention to 兴趣", "a b", "a_b"]) == ["attention-to", "attention-to_1", "a-b", "a-b_3"]


def test_examples_are_the_surest_and_the_most_surprising_rows(
    explanation: SplitExplanation, planted: Dataset, predictions: Predictions
) -> None:
    golden = planted.golden().height
    p, y = predictions.probabilities[:golden], predictions.labels[:golden]
    by_name = {example.name.partition(", the ")[2]: example.probability for example in explanation.examples}
    assert by_name["highest prediction"] == pytest.approx(p.max(), abs=1e-6)
    assert by_name["lowest prediction"] == pytest.approx(p.min(), abs=1e-6)
    if "greatest surprise" in by_name:
        assert abs(by_name["greatest surprise"] - p[np.abs(y - p).argmax()]) < 1e-6


def test_attention_maps_are_means_of_rows_that_sum_to_one(explanation: SplitExplanation, explainer: Explainer) -> None:
    (section,) = explanation.sections
    assert [m.name for m in section.maps] == [f"layer {layer}, head {head}" for layer in (1, 2, 3) for head in (1, 2)]
    assert section.fields == ["colour", "city", "tags", "weight", "price"]
    for one in section.maps:
        np.testing.assert_allclose(one.values.sum(1), 1, atol=1e-5)
    (of_a_row,) = explainer.explain_golden(0).sections
    assert len(of_a_row.maps) == 6
    assert not np.allclose(of_a_row.mean, section.mean, atol=1e-4)


def test_shuffling_a_batch_is_shuffling_the_log(explainer: Explainer, planted: Dataset) -> None:
    raw = planted.golden()
    order = torch.randperm(raw.height, generator=torch.Generator().manual_seed(0))

    def batch_of(frame: pl.DataFrame) -> Batch:
        return to_batch(explainer.transforms.encode(frame), planted.inputs)

    for name in planted.inputs.numeric_fields + tuple(field.name for field in planted.inputs.id_fields):
        shuffled = batch_of(raw.with_columns(raw[name].gather(order.numpy())))
        changed = permuted(batch_of(raw), planted.inputs, name, order)
        assert changed.sparse.keys() == shuffled.sparse.keys()
        torch.testing.assert_close(changed.sparse.values(), shuffled.sparse.values())
        torch.testing.assert_close(changed.sparse.lengths(), shuffled.sparse.lengths())
        torch.testing.assert_close(changed.dense, shuffled.dense, rtol=0, atol=0, equal_nan=True)


def test_there_is_no_task_to_name(run: Path) -> None:
    with pytest.raises(CtrkitError, match="predicts one label, so there is no task 'click'"), open_run(run, "click"):
        pass


def test_a_sample_of_one_class_is_refused(explainer: Explainer) -> None:
    with pytest.raises(CtrkitError, match="all of one class"):
        explainer.explain_split("test", 1, 2, seed=0)


def test_pairs_are_the_largest_off_the_diagonal() -> None:
    values = np.array([[9.0, 1.0, 2.0], [5.0, 9.0, 0.0], [3.0, 4.0, 9.0]])
    section = MapSection("Choices", "", 0.0, ["a", "b", "c"], [FieldMap("one", values), FieldMap("other", values)], rows=1)
    assert section.strongest_pairs(3) == [("b", "a", 5.0), ("c", "b", 4.0), ("c", "a", 3.0)]
    assert len(section.strongest_pairs(99)) == 6


def test_rank_correlation_is_spearman_s() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.normal(size=30)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
