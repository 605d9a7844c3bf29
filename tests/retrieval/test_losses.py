"""Losses against closed forms."""

import math

import torch
from torch.nn import functional

from ctrkit.retrieval.losses import besides_the_hardest, bpr, contrastive, sampled_softmax


def test_with_every_item_once_it_is_the_full_softmax() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([1, 4, 0])
    same = functional.one_hot(target, 5).bool()
    own = scores[torch.arange(3), target]
    torch.testing.assert_close(sampled_softmax(own, scores, same), functional.cross_entropy(scores, target))


def test_the_correction_undoes_how_often_candidates_are_there() -> None:
    """Items repeated as often as expected weigh as if each were there once."""
    catalogue = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    target, times = torch.tensor([2, 0]), torch.tensor([1, 3, 2, 5])
    items = torch.repeat_interleave(torch.arange(4), times)
    same = items.unsqueeze(0) == target.unsqueeze(1)
    own = catalogue[torch.arange(2), target]
    found = sampled_softmax(own, catalogue[:, items], same, times[items].log(), torch.zeros(2))
    torch.testing.assert_close(found, functional.cross_entropy(catalogue, target))
    uncorrected = sampled_softmax(own, catalogue[:, items], same)
    assert not torch.isclose(uncorrected, found)


def test_the_positive_is_corrected_too() -> None:
    own, scores, same = torch.tensor([1.0]), torch.tensor([[0.5, -1.0]]), torch.zeros(1, 2, dtype=torch.bool)
    shifted = sampled_softmax(own, scores, same, torch.full((2,), 3.0), torch.full((1,), 3.0))
    torch.testing.assert_close(shifted, sampled_softmax(own, scores, same))


def test_the_positive_among_the_candidates_is_no_negative() -> None:
    own, scores = torch.tensor([2.0]), torch.tensor([[2.0, 1.0]])
    same = torch.tensor([[True, False]])
    torch.testing.assert_close(sampled_softmax(own, scores, same), sampled_softmax(own, scores[:, 1:], same[:, 1:]))
    torch.testing.assert_close(bpr(own, scores, same), bpr(own, scores[:, 1:], same[:, 1:]))


def test_bpr_is_the_mean_over_pairs() -> None:
    own, scores = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    same = torch.tensor([[False, False], [False, True]])
    expected = sum(math.log1p(math.exp(x)) for x in (-1.0, 2.0, 1.0)) / 3
    torch.testing.assert_close(bpr(own, scores, same), torch.tensor(expected))


def test_of_the_candidates_the_hardest_count() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.0, 4.0, 1.0, 2.0]])
    same = torch.tensor([[False, False, False, True], [False, False, False, False]])
    positive = torch.tensor([5.0, 1.0])
    for hard, kept in ((1, [[3.0], [4.0]]), (2, [[3.0, 2.0], [4.0, 2.0]])):
        left_out = besides_the_hardest(scores, same, hard)
        others = torch.tensor(kept)
        alone = torch.zeros(others.shape, dtype=torch.bool)
        torch.testing.assert_close(bpr(positive, scores, left_out), bpr(positive, others, alone))
        torch.testing.assert_close(sampled_softmax(positive, scores, left_out), sampled_softmax(positive, others, alone))
    assert besides_the_hardest(scores, same, 4) is same


def test_contrastive_of_orthogonal_vectors() -> None:
    n, temperature = 4, 0.5
    expected = math.log(math.exp(1 / temperature) + (n - 1)) - 1 / temperature
    torch.testing.assert_close(contrastive(torch.eye(n) * 3, torch.eye(n), temperature), torch.tensor(expected))
    torch.testing.assert_close(contrastive(torch.ones(n, 2), torch.ones(n, 2), temperature), torch.tensor(math.log(n)))


def test_contrastive_rows_of_the_same_one_are_no_negatives() -> None:
    """A popular item is in a batch many times; it is not to be pushed away from itself."""
    vectors = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    scores = functional.normalize(vectors[0], dim=1) @ functional.normalize(vectors[1], dim=1).t() / 0.2
    of_others = ([0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3])
    expected = torch.stack([scores[row, allowed].logsumexp(0) - scores[row, row] for row, allowed in enumerate(of_others)]).mean()
    torch.testing.assert_close(contrastive(vectors[0], vectors[1], 0.2, torch.tensor([7, 8, 7, 9])), expected)
