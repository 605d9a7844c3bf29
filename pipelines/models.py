"""``ctrkit models``: what can be put behind ``model: {name: ..}``."""

from typing import Any

from ctrkit.models.registry import models
from pipelines.terminal import Terminal


def list_models(screen: Terminal) -> list[dict[str, Any]]:
    """Returns a list of ``{name, kind, paper, settings: [{name, default, description}]}``."""
    known = models()
    rows = [(m.name, m.kind, m.paper, "\n".join(f"{s.name}: {_shown(s.default)}" for s in m.settings)) for m in known]
    screen.table(("name", "kind", "paper", "settings and their defaults"), rows)
    screen.console.print("In a config:  model: {name: autoint, <setting>: <value>}", markup=False)
    return [
        {
            "name": model.name,
            "kind": model.kind,
            "paper": model.paper,
            "settings": [{"name": s.name, "default": s.default, "description": s.description} for s in model.settings],
        }
        for model in known
    ]


def _shown(default: Any) -> str:
    return str(list(default)) if isinstance(default, tuple) else str(default)
