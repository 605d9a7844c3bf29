"""Whether a new version answers what the one before answers."""

from collections.abc import Iterable

from ctrkit.errors import CtrkitError
from ctrkit.schema import Feature


def check_features(new: int, has: Iterable[Feature], now: int, wants: Iterable[Feature]) -> None:
    """Raises CtrkitError when version ``new`` lacks a feature that version ``now`` is asked with, or takes it as another type."""
    features = {feature.name: feature for feature in has}
    for old in wants:
        found = features.get(old.name)
        if found is None or (found.kind, found.dtype) != (old.kind, old.dtype):
            what = "lacks" if found is None else "has another type of"
            raise CtrkitError(
                f"version {new} {what} the feature '{old.name}' that version {now} answers to",
                "Give it another name, or restart the service with it",
            )
