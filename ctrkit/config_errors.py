"""What pydantic found wrong with settings, in one line that names the key and the nearest known one."""

import re
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from ctrkit.errors import nearest


def explain(error: ValidationError, root: type[BaseModel], tree: object = None) -> str:
    """pydantic's findings in one line, with the nearest known key for an unknown one.

    Args:
        root: the model that was validated.
        tree: what was validated; entries of its lists are then called by their ``name``.
    """
    lines = []
    findings = error.errors()
    for finding in findings:
        location = finding["loc"]
        where = _where(location, tree)
        below = [f for f in findings if f["loc"][: len(location)] == location and f is not finding]
        if finding["type"] == "too_short" and below:
            continue  # entries with errors of their own are not counted as entries
        if finding["type"] == "extra_forbidden":
            lines.append(f"unknown key '{where}'. {nearest(str(location[-1]), _known_keys(root, location[:-1]))}")
        elif finding["type"] == "missing":
            lines.append(f"'{where}' is required")
        elif finding["type"] in ("model_type", "model_attributes_type"):
            keys = _known_keys(root, location)
            such = f", such as {{{keys[0]}: ..}}" if keys else ""
            lines.append(f"'{where}' is a group of settings, not {finding['input']!r}: give its keys{such}")
        elif finding["type"] == "union_tag_invalid":
            context = finding.get("ctx", {})
            tags = re.findall(r"'([^']*)'", context["expected_tags"])
            lines.append(f"{where}: unknown kind '{context['tag']}'. {nearest(context['tag'], tags)}")
        else:
            message = finding["msg"].removeprefix("Value error, ").replace("Tuple", "List").replace("a valid tuple", "a list")
            given = f", not {finding['input']!r}" if isinstance(finding["input"], str | int | float | bool) else ""
            lines.append(f"{where}: {message}{given}" if where else message)
    return "; ".join(dict.fromkeys(lines))


def _where(location: tuple[int | str, ...], tree: object) -> str:
    """``features.price.transform.min_count``: list entries by name, without the tags of unions."""
    parts: list[str] = []
    node: Any = tree
    for depth, part in enumerate(location):
        if isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
            parts.append(str(node["name"]) if isinstance(node, dict) and "name" in node else str(part))
        elif isinstance(node, dict) and (part in node or depth == len(location) - 1):
            node = node.get(part)
            parts.append(str(part))
        elif not isinstance(node, dict):
            parts.append(str(part))
    return ".".join(parts)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at a place in the tree of settings."""
    for part in location:
        if isinstance(part, int):
            continue
        if part in model.model_fields:
            found = _models_in(model.model_fields[part].annotation)
        else:  # a discriminated union's tag, such as 'vocabulary'
            continue
        if len(found) > 1:
            tags = {cast(Any, m.model_fields["kind"].default): m for m in found if "kind" in m.model_fields}
            following = [p for p in location if p in tags]
            found = [tags[following[-1]]] if following else found
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
