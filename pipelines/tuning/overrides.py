"""An experiment with other settings."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ctrkit.config import Experiment
from ctrkit.config_errors import explain
from ctrkit.errors import CtrkitError


def overridden(experiment: Experiment, model: str, settings: Mapping[str, Any], features: tuple[str, ...] | None = None) -> Experiment:
    """The experiment with another model, other settings and fewer features.

    Args:
        model: the config's own keeps the settings it has there; another one starts from its defaults.
        settings: by ``group.key``.
        features: names of those to keep; None keeps all.

    Raises:
        CtrkitError: a setting that there is not, or a value it does not take.
    """
    tree = experiment.model_dump(mode="json")
    if model != experiment.model.name:
        tree["model"] = {"name": model}
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node[group] = node.get(group) or {}
            node = node[group]
        node[last] = value
    if features is not None:
        tree["features"] = [feature for feature in tree["features"] if feature["name"] in features]
        lookups = tree["embedding"].get("feature_lookups", {})
        tree["embedding"] |= {"feature_lookups": {n: count for n, count in lookups.items() if n in features}} if lookups else {}
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise CtrkitError(explain(error, Experiment, tree), "Change the search space") from error


def setting_of(experiment: Experiment, key: str) -> Any:
    """The value at ``group.key``; None if there is no such setting."""
    node: Any = experiment.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
