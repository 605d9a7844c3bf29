"""How a column's values fall into bins: what training saw, and how far what came later is from it.

Of a text its CRC-32 stands in for it, so that a profile names no value of the log.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from ctrkit.known import codes_of
from ctrkit.schema import MISSING_INT, Feature, Settings

QUANTILES = 10
OWN_BINS = 10
"""Values of a categorical feature that have a bin of their own: the most frequent ones."""

SMALLEST_SHARE = 1e-4
"""An empty bin counts as one with this share: its logarithm would be infinite."""


class Bins(Settings):
    """Bins of one column, and the shares of the training data in them. The first bin is that of missing values.

    Numbers: then a bin up to each edge, and one above the last. Categorical values: then one for each of ``codes``, one for all others that
    the model knows, and one for those it does not know where the model has a vocabulary.
    """

    edges: tuple[float, ...] | None = Field(default=None, description="upper ends of the numbers' bins")
    codes: tuple[int, ...] = Field(default=(), description="ascending; of values with a bin of their own")
    unknown: bool = Field(default=False, description="whether the last bin holds the values that the model does not know")
    shares: tuple[float, ...] = Field(description="of the training data")

    def count_numbers(self, values: np.ndarray) -> np.ndarray:
        """Of numbers ``[any]``, NaN where missing, how many fall into each bin: int64 ``[bins]``."""
        return _count_numbers(values, np.array(self.edges))

    def count_codes(self, codes: np.ndarray, missing: int, unknown: int) -> np.ndarray:
        """Of values' codes ``[present]`` how many fall into each bin: int64 ``[bins]``.

        Args:
            missing: values that are not there.
            unknown: of the codes, how many the model does not know.
        """
        return _count_codes(codes, missing, np.array(self.codes, np.int64), unknown if self.unknown else None)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)

    def without_unknown(self) -> "Bins":
        """The same bins where unknown values are among the others."""
        if not self.unknown:
            return self
        *rest, others, unknown = self.shares
        return Bins(codes=self.codes, shares=(*rest, others + unknown))


def bins_of_numbers(values: np.ndarray) -> Bins:
    """Deciles of training values ``[any]``, NaN where missing; fewer where many values are equal."""
    present = values[np.isfinite(values)]
    edges = np.unique(np.quantile(present, np.arange(1, QUANTILES) / QUANTILES, method="lower")) if len(present) else np.empty(0)
    return Bins(edges=tuple(edges.tolist()), shares=_shares(_count_numbers(values, edges)))


def bins_of_codes(codes: np.ndarray, missing: int, known: np.ndarray | None) -> Bins:
    """The most frequent values, the others, and those that the model will not know.

    Args:
        codes: of training values ``[present]``.
        missing: values that are not there.
        known: ascending; codes of the vocabulary. None: the feature has none.
    """
    is_known = np.ones(len(codes), bool) if known is None else np.isin(codes, known)
    values, counts = np.unique(codes[is_known], return_counts=True)
    own = np.sort(values[np.argsort(-counts, kind="stable")[:OWN_BINS]]).astype(np.int64)
    unknown = None if known is None else int((~is_known).sum())
    return Bins(codes=tuple(own.tolist()), unknown=known is not None, shares=_shares(_count_codes(codes, missing, own, unknown)))


def present_codes(feature: Feature, values: np.ndarray, lengths: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Codes of a categorical feature's canonical values that are there, int64 ``[present]``, and how many are missing.

    Args:
        values: strings as objects, or int64: one a row, or those of all bags.
        lengths: of the bags; an empty one is a missing value.
    """
    present = values[values != ("" if feature.dtype == "string" else MISSING_INT)]
    missing = len(values) - len(present) + (0 if lengths is None else int((lengths == 0).sum()))
    return codes_of(present.tolist()).astype(np.int64), missing


def population_stability(shares: Sequence[float], counts: np.ndarray) -> float:
    """The population stability index: sum over bins of (q - p) ln(q / p), p in training and q now.

    Equal shares give 0. By custom below 0.1 is taken for no change, above 0.25 for one that matters (Siddiqi, Credit Risk Scorecards, 2006).
    """
    before = np.maximum(shares, SMALLEST_SHARE)
    now = np.maximum(counts / counts.sum(), SMALLEST_SHARE)
    return float(((now - before) * np.log(now / before)).sum())


def feature_bins(profile: dict[str, Any], feature: Feature) -> Bins | None:
    """A feature's bins out of a bundle's profile; None in bundles that were written without."""
    found = profile.get("features", {}).get(feature.name, {}).get("bins")
    return None if found is None else Bins.model_validate(found)


def narrowed_profile(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile for a model that knows fewer values than ``prepare`` did."""
    bins = {name: Bins.model_validate(about["bins"]).without_unknown() for name, about in profile["features"].items() if "bins" in about}
    features = {name: about | ({"bins": bins[name].to_json()} if name in bins else {}) for name, about in profile["features"].items()}
    return {**profile, "features": features}


def score_bins(profile: dict[str, Any], output: str) -> Bins | None:
    """Bins of the probabilities under an output of the graph; None in bundles that were written without."""
    found = profile.get("scores", {}).get(output)
    return None if found is None else Bins.model_validate(found)


def _count_numbers(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    missing = np.isnan(values)
    places = np.where(missing, 0, 1 + edges.searchsorted(values))
    return np.bincount(places, minlength=len(edges) + 2)


def _count_codes(codes: np.ndarray, missing: int, own: np.ndarray, unknown: int | None) -> np.ndarray:
    places = np.minimum(own.searchsorted(codes), max(len(own) - 1, 0))
    found = own[places] == codes if len(own) else np.zeros(len(codes), bool)
    counts = np.bincount(places[found], minlength=len(own))
    others = len(codes) - int(found.sum()) - (unknown or 0)
    return np.array([missing, *counts, others, *([] if unknown is None else [unknown])], np.int64)


def _shares(counts: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(counts / max(counts.sum(), 1), 6).tolist())
