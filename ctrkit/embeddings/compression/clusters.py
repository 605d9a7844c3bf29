"""Codewords of a trained table: k-means."""

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 1 << 16
_CHUNK = 1 << 14
_STEPS = 25


def cluster(points: Tensor, counts: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """The codewords, and each point's nearest.

    Each point weighs as much as it is counted, at least once: what is made small is the squared error of what is looked up. Of more than
    65,536 points those that are counted most are clustered. As many codewords as there are different points are those.

    Args:
        points: ``[n, width]``.
        counts: of each, int64 ``[n]``.
        words: how many.

    Returns:
        ``[words, width]``, and int64 ``[n]``.
    """
    chosen = counts.argsort(descending=True, stable=True)[:_SAMPLE]
    sample, weights = points[chosen].double().numpy(), counts[chosen].clamp(min=1).double().numpy()
    found = np.unique(sample, axis=0)
    if len(found) > words:
        found = _k_means(sample, weights, words)
    centres = torch.from_numpy(found).to(points.dtype)
    centres = torch.cat([centres, centres[:1].expand(words - len(centres), -1)])
    nearest = [torch.cdist(some, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1) for some in points.split(_CHUNK)]
    return centres, torch.cat(nearest)


def _k_means(points: np.ndarray, weights: np.ndarray, words: int) -> np.ndarray:
    from sklearn.cluster import KMeans  # takes a second to import, which nothing else of a training does

    return KMeans(words, n_init="auto", max_iter=_STEPS, random_state=0).fit(points, sample_weight=weights).cluster_centers_
