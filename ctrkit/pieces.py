"""Many rows through a graph a few hundred at a time: faster than all at once, and the memory of a run has a limit."""

from collections.abc import Mapping, Sequence

import numpy as np

from ctrkit.feeds import input_names
from ctrkit.schema import Feature


def in_pieces(feed: dict[str, np.ndarray], features: Sequence[Feature], most: int) -> list[dict[str, np.ndarray]]:
    """The graph's inputs for the same rows, in their order, at most ``most`` at a time; the feed itself if it has no more."""
    rows = len(feed[input_names(features[0])[-1]])
    if rows <= most:
        return [feed]
    cuts = np.arange(most, rows, most)
    pieces: list[dict[str, np.ndarray]] = [{} for _ in range(len(cuts) + 1)]
    for feature in features:
        for name, places in _places(feed, feature, cuts).items():
            for piece, part in zip(pieces, np.split(feed[name], places), strict=True):
                piece[name] = part
    return pieces


def _places(feed: Mapping[str, np.ndarray], feature: Feature, cuts: np.ndarray) -> dict[str, np.ndarray]:
    """Where a feature's inputs are cut so that its rows are."""
    names = input_names(feature)
    if not feature.multi_valued:
        return {names[0]: cuts}
    values, lengths = names
    return {values: np.cumsum(feed[lengths])[cuts - 1], lengths: cuts}
