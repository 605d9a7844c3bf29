"""Settings that make any model of the registry small: for tests of its form, not of its size."""

from typing import Any

from ctrkit.models.registry import models

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
"""In place of a model's defaults, where it has such a setting."""


def small_settings(model: str) -> dict[str, Any]:
    (info,) = (m for m in models() if m.name == model)
    return {setting.name: SMALL[setting.name] for setting in info.settings if setting.name in SMALL}
