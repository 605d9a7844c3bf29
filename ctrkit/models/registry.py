"""All models by name. ``python -c "from ctrkit.models.registry import models; print(models())"`` lists them."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import ctrkit.models
from ctrkit.config import AnyEmbedding, AutoDis, Embedding, Numeric, UnifiedEmbedding
from ctrkit.config_errors import explain
from ctrkit.embeddings.compression.registry import check_compression
from ctrkit.embeddings.unified import JoinLookups, plan_lookups
from ctrkit.errors import CtrkitError, nearest
from ctrkit.layers import numeric as numeric_layers
from ctrkit.models.base import Decision, RankingModel
from ctrkit.models.compressed import CompressionSearch, compress
from ctrkit.models.search import Search
from ctrkit.schema import Inputs


@dataclass(frozen=True)
class Setting:
    """One setting of a model."""

    name: str
    default: Any
    description: str


@dataclass(frozen=True)
class ModelInfo:
    """What ``ctrkit models`` lists; ``kind`` is ``ranking``, or ``multi-task`` of a model that predicts several labels."""

    name: str
    kind: str
    paper: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class _Entry:
    model: type[RankingModel]
    kind: str
    paper: str


_ENTRIES: dict[str, _Entry] = {}
M = TypeVar("M", bound=type[RankingModel])


def register(name: str, *, kind: str, paper: str) -> Callable[[M], M]:
    """Class decorator: makes a model known under ``name``."""

    def add(model: M) -> M:
        if name in _ENTRIES:
            raise ValueError(f"two models are named '{name}'")
        _ENTRIES[name] = _Entry(model, kind, paper)
        return model

    return add


def models() -> list[ModelInfo]:
    """All models, by name."""
    return [ModelInfo(name, entry.kind, entry.paper, _settings(entry.model)) for name, entry in sorted(_entries().items())]


def build(
    name: str, inputs: Inputs, dim: int, settings: dict[str, Any], numeric: Numeric | None = None, decision: Decision | None = None
) -> RankingModel:
    """The model's dense arch with fresh weights.

    Args:
        dim: width of the fields' vectors.
        settings: the model's own.
        numeric: how numbers become vectors, whatever the model; as it is written with ``scale`` if not given.
        decision: of the model's search; None before it, and for models that have none.

    Raises:
        CtrkitError: no such model, no such setting, a bad value, or fields or labels the model cannot work on.
    """
    model, checked = _checked(name, settings)
    _check_tasks(name, inputs.tasks)
    if inputs.count == 0:
        raise CtrkitError(f"model '{name}' has no fields to work on", "List at least one feature in the config")
    decided: dict[str, Any] = {} if decision is None else {"decision": decision}
    return _with_numeric(model(inputs, dim, checked, **decided), numeric)


def build_search(name: str, inputs: Inputs, dim: int, settings: dict[str, Any], numeric: Numeric | None = None) -> Search | None:
    """What decides on the form of this model, with fresh weights; None if it has one form only. Raises as ``build``."""
    model, checked = _checked(name, settings)
    search = model.search(inputs, dim, checked)
    if search is not None:
        _with_numeric(search.model, numeric)
    return search


def _with_numeric(model: RankingModel, numeric: Numeric | None) -> RankingModel:
    if isinstance(numeric, AutoDis):
        numeric_layers.replace_numeric(model, partial(numeric_layers.AutoDis, **numeric.model_dump(exclude={"kind"})))
    return model


def build_for(embedding: Embedding, name: str, inputs: Inputs, settings: dict[str, Any], decision: Decision | None = None) -> RankingModel:
    """``build`` with the width of vectors, the treatment of numbers and the look-ups that ``embedding`` says.

    Args:
        decision: of ``build_search_for``'s; compressed embeddings need one to have a form, and without it there are none yet.

    Raises:
        CtrkitError: as ``build``; or a unified or compressed embedding, with a model that a search decides on.
    """
    if embedding.compression is not None:
        _refuse_own_search(name, inputs, embedding, settings, "compression", "a compression changes those")
        if embedding.l2 > 0 and not check_compression(embedding.compression)[0].has_rows:
            raise CtrkitError(
                f"embedding.l2 holds down rows of tables, and compression method '{embedding.compression.method}' has none",
                "Leave embedding.l2 out; training.weight_decay holds down its weights, with all others",
            )
        dense_arch = build(name, inputs, embedding.width, settings, embedding.numeric)
        if decision is not None:
            compress(dense_arch, embedding, embedding.compression, decision)
        return dense_arch
    dense_arch = build(name, inputs, embedding.width, settings, embedding.numeric, decision)
    if isinstance(embedding, UnifiedEmbedding):
        _refuse_own_search(name, inputs, embedding, settings, "kind", "a unified embedding has none that are one field's")
        groups = dense_arch.groups(embedding.width)
        dense_arch.join = JoinLookups(inputs, plan_lookups(inputs, groups, embedding))
    return dense_arch


def build_search_for(embedding: Embedding, name: str, inputs: Inputs, settings: dict[str, Any]) -> Search | None:
    """What decides on the form of this model, or of its compressed embeddings; None if there is nothing to decide. Raises as ``build_for``,
    and if a compression's budget cannot be reached."""
    if embedding.compression is None:
        return build_search(name, inputs, embedding.width, settings, embedding.numeric)
    return CompressionSearch(build_for(embedding, name, inputs, settings), embedding, embedding.compression)


def _refuse_own_search(name: str, inputs: Inputs, embedding: Embedding, settings: dict[str, Any], key: str, but: str) -> None:
    if build_search(name, inputs, embedding.width, settings) is not None:
        raise CtrkitError(
            f"model '{name}' decides on single fields' tables, and {but}",
            f"Leave embedding.{key} out, or choose another model",
        )


def stored_form(dense_arch: RankingModel, tables: Mapping[str, Tensor]) -> nn.ModuleDict | None:
    """Takes the trained codecs out of a model, and gives each group's stored form, on the CPU; None for a model that has no codecs.

    Args:
        tables: full weights, ``"<group>/<part>" -> [rows, width]``.
    """
    codecs, dense_arch.codecs = dense_arch.codecs, None
    return codecs.cpu().stored(tables).eval() if codecs is not None else None


def rebuild(weights: Mapping[str, Any], inputs: Inputs) -> RankingModel:
    """The trained dense arch from a run's weights, see ``ctrkit.training.run.load_run``."""
    embedding = TypeAdapter[AnyEmbedding](AnyEmbedding).validate_python(weights["embedding"])
    dense_arch = build_for(embedding, weights["model"], inputs, weights["settings"], weights["decision"])
    dense_arch.load_state_dict(weights["dense_arch"])
    return dense_arch


def check_settings(name: str, settings: dict[str, Any]) -> None:
    """Raises what ``build`` would raise about the name and the settings of a model for one label."""
    _checked(name, settings)
    _check_tasks(name, ())


def _check_tasks(name: str, tasks: Sequence[str]) -> None:
    entry = _entries()[name]
    if entry.kind == "multi-task" and not tasks:
        raise CtrkitError(
            f"model '{name}' predicts several labels, and there is one",
            "Name them: label: {click: is_click, like: is_like}, the main one first",
        )
    if entry.kind != "multi-task" and tasks:
        able = ", ".join(other for other, e in sorted(_entries().items()) if e.kind == "multi-task")
        raise CtrkitError(
            f"model '{name}' predicts one label, and there are {len(tasks)}: {', '.join(tasks)}",
            f"Give one label, or use a model for several: {able}",
        )


def _checked(name: str, settings: dict[str, Any]) -> tuple[type[RankingModel], Any]:
    entries = _entries()
    if name not in entries:
        raise CtrkitError(f"unknown model '{name}'", nearest(name, list(entries)))
    model = entries[name].model
    try:
        return model, model.Settings.model_validate(settings)
    except ValidationError as error:
        unknown = any(finding["type"] == "extra_forbidden" for finding in error.errors())
        whole = "Settings of another model go if the model is given whole: --set 'model={name: ...}'" if unknown else ""
        raise CtrkitError(f"model '{name}': {explain(error, model.Settings)}", whole) from error


def _entries() -> dict[str, _Entry]:
    for module in pkgutil.iter_modules(ctrkit.models.__path__):
        importlib.import_module(f"ctrkit.models.{module.name}")
    return _ENTRIES


def _settings(model: type[RankingModel]) -> tuple[Setting, ...]:
    return tuple(
        Setting(name, field.get_default(call_default_factory=True), field.description or "")
        for name, field in model.Settings.model_fields.items()
    )
