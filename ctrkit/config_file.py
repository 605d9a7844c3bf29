"""Settings in a YAML file, with overrides and environment variables: read, checked and written."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ctrkit.config import Experiment, expand_features
from ctrkit.config_errors import explain
from ctrkit.errors import CtrkitError, nearest

S = TypeVar("S", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: only true and false are booleans (``on:`` is a key), 1e-3 is a number, dates are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A key that is there twice is an error: YAML's own loader would quietly take the second value."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what ``_Loader`` would not read as text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _kind, _pattern, _first in (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"(0|[-+]?[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"[-+]?((\.\d+|\d+\.\d*)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$", list("-+0123456789.")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _first)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment from YAML and applies ``key.sub=value`` overrides.

    A list's entry is named by its number or by its ``name``: ``features.price.transform.kind=log1p``.
    Relative paths inside are relative to the working directory; ``${NAME}`` is read from the environment.

    Raises:
        CtrkitError: no such file, no YAML, an unknown key, a wrong value, an environment variable not set, or an experiment of another task.
    """
    if (task := task_of(path)) is not None:
        raise CtrkitError(f"'{path}' is of task: {task}, and this is for experiments that predict clicks", "Give one without 'task'")
    return load_settings(path, overrides, Experiment)


def task_of(path: str | Path) -> str | None:
    """The ``task`` that a config names, such as ``retrieval``; None for one that predicts clicks. Raises as ``read_tree``."""
    task = read_tree(path).get("task")
    return None if task is None else str(task)


def load_settings(path: str | Path, overrides: Sequence[str], kind: type[S], feature_lists: Sequence[str] = ("features",)) -> S:
    """Reads settings of a kind, as ``load_config`` does.

    Args:
        feature_lists: keys that hold lists of features; ``key.sub`` below another one.
    """
    tree = read_tree(path)
    for name in feature_lists:
        *above, last = name.split(".")
        node: Any = tree
        for part in above:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(last), list):
            node[last] = expand_features(node[last])
    for override in overrides:
        _apply(tree, override)
    tree = _expand_environment(tree)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        place = f"'{path}'" + "".join(f" --set {override}" for override in overrides)
        raise CtrkitError(f"in {place}: {explain(error, kind, tree)}") from error


def read_tree(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings, not yet checked.

    Raises:
        CtrkitError: no such file, one that cannot be read, no YAML, or no settings in it.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf8"), _Loader)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CtrkitError(f"no config file at '{path}'", "Give the path of a YAML file, such as configs/simulated.yaml") from error
    except OSError as error:
        raise CtrkitError(f"the config file '{path}' cannot be read: {error.strerror}", "Check the path and its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CtrkitError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}", "Mend it and try again") from error
    if not isinstance(tree, dict):
        raise CtrkitError(f"'{path}' does not hold settings", "It must start with keys such as 'name:', 'data:' and 'features:'")
    return tree


def to_yaml(settings: BaseModel) -> str:
    """The experiment, or other settings, with every one spelt out; ``load_config`` reads an experiment back to an equal one."""
    return dump_yaml(settings.model_dump(mode="json"))


def dump_yaml(tree: object) -> str:
    """YAML that ``load_config`` reads as the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_pair(text: str, option: str, example: str) -> tuple[str, Any]:
    """Key and value of ``key=value`` on the command line, the value as YAML has it.

    Args:
        option: that it was given with.
        example: of a pair, for who wrote something else.

    Raises:
        CtrkitError: no key, no value, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise CtrkitError(f"{option} {text} has no value", f"Write {option} {example}")
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise CtrkitError(f"the value of {option} {text} cannot be read as YAML", "Quote it") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, value = read_pair(override, "--set", "key.sub=value, such as --set training.epochs=3")
    parts = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parts[:-1]):
        node = _child(node, part, ".".join(parts[: depth + 1]))
    if isinstance(node, list):
        node[_index(node, parts[-1], key)] = value
    else:
        node[parts[-1]] = value


def _child(node: Any, part: str, path: str) -> Any:
    """The group of settings (or list) below ``part``; made if there is none yet."""
    if isinstance(node, list):
        child = node[_index(node, part, path)]
    else:
        if node.get(part) is None:
            node[part] = {}
        child = node[part]
    if not isinstance(child, dict | list):
        raise CtrkitError(f"--set {path}: '{part}' is a single value, not a group of settings", f"Write --set {path}=value")
    return child


def _index(node: list[Any], part: str, path: str) -> int:
    """A list entry by its ``name`` or by its number, from 0."""
    names = [str(entry["name"]) if isinstance(entry, dict) and "name" in entry else "" for entry in node]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    raise CtrkitError(
        f"--set {path}: no entry '{part}'", nearest(part, [n for n in names if n]) if any(names) else f"There are {len(node)}"
    )


def _expand_environment(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _expand_environment(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand_environment(value) for value in node]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise CtrkitError(f"'{node}' needs the environment variable {match[1]}, which is not set", f"export {match[1]}=<folder>")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value_of, node)
