"""Lists whose items are not all alike: maximal marginal relevance, Carbonell & Goldstein, SIGIR 1998."""

import numpy as np


def diversified(scores: np.ndarray, vectors: np.ndarray, weight: float, count: int) -> np.ndarray:
    """Places of the items of a list, chosen one after the other: ``argmax weight * relevance - (1 - weight) * similarity``.

    The paper leaves both measures open. Here relevance is the score, stretched over [0, 1] within the list, so that inner products and
    probabilities weigh alike; similarity is the largest cosine with an item chosen before. Of equal values the first place is chosen.

    Args:
        scores: ``[items]``.
        vectors: ``[items, width]``.
        weight: lambda; 1 orders by score, 0 by difference alone after the best item.
        count: how many are chosen.
    """
    if not len(scores):
        return np.empty(0, np.int64)
    low, high = float(scores.min()), float(scores.max())
    relevance = (scores - low) / (high - low) if high > low else np.zeros(len(scores))
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    left = np.ones(len(scores), bool)
    closest = np.full(len(scores), -np.inf)
    chosen = [int(np.argmax(scores))]
    while len(chosen) < min(count, len(scores)):
        left[chosen[-1]] = False
        closest = np.maximum(closest, units @ units[chosen[-1]])
        chosen.append(int(np.argmax(np.where(left, weight * relevance - (1 - weight) * closest, -np.inf))))
    return np.array(chosen[:count])
