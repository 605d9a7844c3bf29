"""All compression methods by name."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

import ctrkit.embeddings.compression as here
from ctrkit.config import Compression
from ctrkit.config_errors import explain
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.errors import CtrkitError, nearest


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method.

    Attributes:
        kind: its place in the taxonomy of Zhang et al. (VLDB 2024), such as ``inter-feature: hashing``.
        paper: where it comes from.
        sharded: what of it TorchRec shards, in words.
        benchmarked: whether it is one of the 14 that they compare.
    """

    name: str
    kind: str
    paper: str
    sharded: str
    benchmarked: bool
    method: type[Method]


_ENTRIES: dict[str, MethodInfo] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str, *, kind: str, paper: str, sharded: str, benchmarked: bool = False) -> Callable[[M], M]:
    """Class decorator: makes a method known under ``name``. Arguments as of ``MethodInfo``."""

    def add(method: M) -> M:
        if name in _ENTRIES:
            raise ValueError(f"two compression methods are named '{name}'")
        method.name = name
        _ENTRIES[name] = MethodInfo(name, kind, paper, sharded, benchmarked, method)
        return method

    return add


def methods() -> list[MethodInfo]:
    """All methods, by name."""
    return [entry for _, entry in sorted(_entries().items())]


def check_compression(choice: Compression) -> tuple[type[Method], MethodSettings]:
    """The method and its checked settings.

    Raises:
        CtrkitError: no such method, no such setting, or a bad value.
    """
    entries = _entries()
    if choice.method not in entries:
        raise CtrkitError(f"unknown compression method '{choice.method}'", nearest(choice.method, list(entries)))
    method = entries[choice.method].method
    try:
        return method, method.Settings.model_validate({"budget": choice.budget, **choice.settings})
    except ValidationError as error:
        raise CtrkitError(f"embedding.compression, method '{choice.method}': {explain(error, method.Settings)}") from error


def plan_method(choice: Compression, space: IdSpace, dim: int) -> Method:
    """The method of a group of vectors ``dim`` wide, its sizes solved.

    Single numbers (first-order weights) are hashed into the budget, unless the method takes those too.

    Raises:
        CtrkitError: as ``check_compression``; or the budget cannot be reached.
    """
    method, settings = check_compression(choice)
    if dim == 1 and not method.takes_single(settings, space):
        hashing = _entries()["hash"].method
        return hashing(hashing.Settings(budget=choice.budget), space, dim)
    return method(settings, space, dim)


def _entries() -> dict[str, MethodInfo]:
    for module in pkgutil.iter_modules(here.__path__):
        importlib.import_module(f"{here.__name__}.{module.name}")
    return _ENTRIES


def settings_of(info: MethodInfo) -> dict[str, tuple[Any, str]]:
    """Name -> default and description of a method's own settings."""
    fields = info.method.Settings.model_fields
    return {
        name: (field.get_default(call_default_factory=True), field.description or "") for name, field in fields.items() if name != "budget"
    }
