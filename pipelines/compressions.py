"""``ctrkit compressions``: what can be put behind ``embedding: {compression: {method: ..}}``."""

from typing import Any

from ctrkit.embeddings.compression.registry import methods, settings_of
from pipelines.terminal import Terminal


def list_compressions(screen: Terminal) -> list[dict[str, Any]]:
    """Returns a list of ``{name, kind, paper, sharded, benchmarked, settings: [{name, default, description}]}``."""
    known = methods()
    rows = [
        (m.name, m.kind, m.paper, m.sharded, "\n".join(f"{name}: {default}" for name, (default, _) in settings_of(m).items()))
        for m in known
    ]
    screen.table(("name", "kind", "paper", "what is sharded", "settings and their defaults"), rows)
    screen.console.print("In a config:  embedding: {compression: {method: hash, budget: 0.1, <setting>: <value>}}", markup=False)
    return [
        {
            "name": m.name,
            "kind": m.kind,
            "paper": m.paper,
            "sharded": m.sharded,
            "benchmarked": m.benchmarked,
            "settings": [
                {"name": name, "default": default, "description": description} for name, (default, description) in settings_of(m).items()
            ],
        }
        for m in known
    ]
