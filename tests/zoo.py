"""What tests over all models of the registry need, so that a new model is tested as soon as it is registered."""

from typing import Any

from ctrkit.models.registry import ModelInfo, build_search, models
from ctrkit.schema import IdField, Inputs

SMALL: dict[str, Any] = {
    "hidden": (8, 6),
    "hidden1": (8, 6),
    "hidden2": (10,),
    "bottom_hidden": (8,),
    "gate_hidden": (8,),
    "expert_hidden": (8,),
    "attention_hidden": (5,),
    "channels": (3, 2),
    "kernel": 3,
    "maps": (3, 2),
    "attention_dim": 8,
}
"""In place of a model's defaults, where it has such a setting: for tests of its form, not of its size."""


def info_of(model: str) -> ModelInfo:
    (info,) = (m for m in models() if m.name == model)
    return info


def small_settings(model: str) -> dict[str, Any]:
    return {setting.name: SMALL[setting.name] for setting in info_of(model).settings if setting.name in SMALL}


def has_search(model: str) -> bool:
    """Whether a search decides on its form. Such a model takes no unified embedding."""
    fields = tuple(IdField(name=name, rows=5) for name in "ab")
    inputs = Inputs(id_fields=fields, numeric_fields=())
    return info_of(model).kind == "ranking" and build_search(model, inputs, 4, {}) is not None
