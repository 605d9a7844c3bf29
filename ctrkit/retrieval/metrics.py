"""Metrics of recommended lists, exact, of each query. NumPy only.

A list holds item numbers, the best first, and -1 where there are no more, ``[queries, length]``. ``found`` says which of them are targets,
bool of that shape, and ``targets`` how many targets a query has, ``[queries]``, one at least. Each metric is ``[queries]``; a mean over queries is the figure.
"""

import numpy as np


def recall(found: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Share of the targets among the first k."""
    return np.asarray(found[:, :k].sum(1) / targets)


def hit(found: np.ndarray, k: int) -> np.ndarray:
    """1 if a target is among the first k."""
    return np.asarray(found[:, :k].any(1), np.float64)


def ndcg(found: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """``sum over found ranks of 1 / log2(rank + 1)``, over the same with all targets first (Jarvelin & Kekalainen, 2002)."""
    gains = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0], np.cumsum(gains)])[np.minimum(targets, k)]
    return found[:, :k] @ gains[: found.shape[1]] / ideal


def reciprocal_rank(best: np.ndarray) -> np.ndarray:
    """``1 / rank`` of the target that comes first, over the whole catalogue; ranks count from 1."""
    return 1 / best


def novelty(lists: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Mean self-information of the first k in bits, ``-log2 p(item)`` (Zhou et al., 2010; Vargas & Castells, 2011).

    ``p = (count + 1) / (all counts + items)``: add-one smoothing, so that an item never seen in training has a p.
    """
    bits = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    first = lists[:, :k]
    return np.where(first >= 0, bits[first], 0).sum(1) / (first >= 0).sum(1)


def coverage(lists: np.ndarray, items: int, k: int) -> float:
    """Share of the catalogue that is among the first k of any query (Ge et al., 2010)."""
    first = lists[:, :k]
    return len(np.unique(first[first >= 0])) / items


def popularity_bias(lists: np.ndarray, targets: np.ndarray, counts: np.ndarray, k: int) -> float:
    """Mean training count of the first k of all lists (Yin et al., 2012), over that of the targets.

    1 recommends items as popular as those that are wanted, above 1 more popular ones. NaN if no target was ever trained on.

    Args:
        targets: items, of all queries.
    """
    first, wanted = lists[:, :k], counts[targets].mean()
    return float(counts[first[first >= 0]].mean() / wanted) if wanted > 0 else float("nan")
