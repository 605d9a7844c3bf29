"""Negatives are drawn as often as is said, and only of what training knows."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ctrkit.retrieval.negatives import Negatives, NegativeSettings

COUNTS = np.array([8, 0, 4, 2, 2, 0])


def settings(**changes: object) -> NegativeSettings:
    return NegativeSettings.model_validate({"in_batch": False, **changes})


@pytest.mark.parametrize("kinds", [{"uniform": 50}, {"popularity": 50}, {"uniform": 20, "popularity": 30, "power": 0.5}])
def test_items_are_drawn_as_often_as_expected(kinds: dict[str, object]) -> None:
    negatives, random = Negatives(settings(**kinds), COUNTS, 8), np.random.default_rng(0)
    drawn = np.bincount(np.concatenate([negatives.draw(np.array([0]), random) for _ in range(400)]), minlength=6) / 400
    trained = COUNTS > 0
    assert drawn[~trained].sum() == 0, "never one without training events"
    np.testing.assert_allclose(drawn[trained], np.exp(negatives.log_expected(np.flatnonzero(trained)).numpy()), rtol=0.05)


def test_expectations_of_kinds_add_up() -> None:
    negatives = Negatives(settings(in_batch=True, uniform=8), COUNTS, 4)
    for _ in range(300):
        negatives.draw(np.array([0, 2]), np.random.default_rng(0))
    np.testing.assert_allclose(np.exp(negatives.log_expected(np.array([0, 2])).numpy()), 1 + 8 / 4, rtol=1e-4)


def test_sampled_sums_are_those_of_the_catalogue() -> None:
    """``E[sum over candidates of exp(s - log expected)]`` is the softmax's denominator, with popular items several times in a batch too."""
    counts, random = np.array([600, 200, 100, 60, 30, 10]), np.random.default_rng(0)
    events = np.repeat(np.arange(6), counts)
    negatives = Negatives(settings(in_batch=True, frequency={"learning_rate": 0.001}), counts, 8)
    vectors = torch.tensor([0.5, 2.0, 1.0, 3.0, 1.5, 2.5])[:, None]
    found = []
    for _ in range(6000):
        positives = random.choice(events, 8)
        drawn = negatives.draw(positives, random)
        candidates = negatives.candidates(positives, vectors[positives], drawn, vectors[drawn])
        found.append(float((candidates.vectors[:, 0].exp() * (-negatives.log_expected(candidates.items)).exp()).sum()))
    assert np.mean(found[2000:]) == pytest.approx(float(vectors.exp().sum()), rel=0.03)


def test_the_memory_holds_the_batches_before() -> None:
    negatives, random = Negatives(settings(in_batch=True, memory=2, memory_warmup=1), COUNTS, 2), np.random.default_rng(0)
    sizes = []
    for step in range(5):
        vectors = torch.full((2, 3), float(step), requires_grad=True)
        positives = np.array([0, 2])
        drawn = negatives.draw(positives, random)
        found = negatives.candidates(positives, vectors, drawn, torch.zeros(0, 3))
        sizes.append(len(found.items))
        negatives.remember(positives, vectors)
    assert sizes == [2, 2, 4, 6, 6], "its own batch; none is kept in the warm-up; two at most"
    assert found.vectors[:, 0].tolist() == [4, 4, 2, 2, 3, 3]
    assert torch.autograd.grad(found.vectors.sum(), vectors)[0].sum() == 6, "what is remembered gets no gradient"
    other = Negatives(settings(in_batch=True, memory=2, memory_warmup=1), COUNTS, 2)
    other.load(negatives.state())
    np.testing.assert_array_equal(other.log_expected(np.array([0])), negatives.log_expected(np.array([0])))


def test_the_expectation_counts_the_batches_that_are_candidates() -> None:
    """With a memory that is not full yet too; both items are in every batch."""
    negatives, random = Negatives(settings(in_batch=True, memory=3, memory_warmup=1), COUNTS, 2), np.random.default_rng(0)
    positives, vectors, counts = np.array([0, 2]), torch.zeros(2, 3), []
    for _ in range(300):
        negatives.draw(positives, random)
    for _ in range(5):
        drawn = negatives.draw(positives, random)
        candidates = negatives.candidates(positives, vectors, drawn, torch.zeros(0, 3))
        np.testing.assert_allclose(negatives.log_expected(positives).exp(), np.bincount(candidates.items)[positives], rtol=1e-3)
        counts.append(len(candidates.items))
        negatives.remember(positives, vectors)
    assert counts == [2, 4, 6, 8, 8]


def test_none_at_all_is_refused_and_so_is_a_memory_alone() -> None:
    for none in ({}, {"memory": 3}):
        with pytest.raises(ValidationError, match="one kind of negatives"):
            settings(**none)
