"""Losses of a user's positive item against candidates. Scores are divided by the temperature already.

``positive`` is ``[batch]``, ``scores`` ``[batch, candidates]``; a candidate where ``same`` (bool of that shape) is true is the row's own
positive item again, and no negative.
"""

import torch
from torch import Tensor
from torch.nn import functional


def sampled_softmax(
    positive: Tensor, scores: Tensor, same: Tensor, log_expected: Tensor | None = None, positive_log_expected: Tensor | None = None
) -> Tensor:
    """``-log(exp(p) / (exp(p) + sum over candidates of exp(s)))``, mean over the batch: InfoNCE (van den Oord et al., 2018).

    With the logarithm of how often each item is expected among the candidates taken off its score it estimates the softmax over the whole
    catalogue (Bengio & Senecal, 2008; logQ correction of Yi et al., RecSys 2019, which corrects the positive too).

    Args:
        log_expected: of the candidates, ``[candidates]``.
        positive_log_expected: of the positive items, ``[batch]``.
    """
    if log_expected is not None and positive_log_expected is not None:
        positive, scores = positive - positive_log_expected, scores - log_expected
    others = scores.masked_fill(same, -torch.inf).logsumexp(1)
    return (torch.logaddexp(positive, others) - positive).mean()


def besides_the_hardest(scores: Tensor, same: Tensor, hard: int) -> Tensor:
    """``same``, and true of all candidates but the row's ``hard`` ones of the highest scores; with equal scores at the end all of them stay."""
    if hard >= scores.shape[1]:
        return same
    least = scores.detach().masked_fill(same, -torch.inf).topk(hard, dim=1).values[:, -1:]
    return same | (scores < least)


def bpr(positive: Tensor, scores: Tensor, same: Tensor) -> Tensor:
    """``-log sigmoid(p - s)``, mean over all pairs (Rendle et al., UAI 2009)."""
    losses = functional.softplus(scores - positive.unsqueeze(1))
    return losses.masked_fill(same, 0).sum() / (~same).sum().clamp(min=1)


def contrastive(first: Tensor, second: Tensor, temperature: float, numbers: Tensor | None = None) -> Tensor:
    """Batch softmax over cosines: each row of ``first`` finds its own row of ``second`` among all of them (Yao et al., CIKM 2021, eq. 1).

    ``-1/N sum_i log(exp(cos(z_i, z'_i) / t) / sum_j exp(cos(z_i, z'_j) / t))``. Both ``[N, width]``.

    Args:
        numbers: who the rows are of, ``[N]``: others of the same one are no negatives. None: all are of different ones.
    """
    scores = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).t() / temperature
    if numbers is not None:
        same = numbers.unsqueeze(1) == numbers
        scores = scores.masked_fill(same.fill_diagonal_(False), -torch.inf)
    return functional.cross_entropy(scores, torch.arange(len(first), device=first.device))
