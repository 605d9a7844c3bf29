"""What ``ctrkit tune`` searches: models, settings of theirs, of the embeddings and of training, and which features to keep."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ctrkit.config import Experiment
from ctrkit.config_errors import explain
from ctrkit.config_file import read_tree
from ctrkit.errors import CtrkitError, nearest
from ctrkit.models.registry import models
from ctrkit.schema import Settings
from ctrkit.training.check import check_experiment
from pipelines.tuning.overrides import overridden, setting_of

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

SEARCHED = ("model", "embedding", "training")
"""Groups of settings that leave the prepared dataset as it is."""


class Axis(Settings):
    """Values of one setting: a list of choices, or all numbers from ``low`` to ``high``; whole ones if both ends are."""

    choices: tuple[Any, ...] = Field(default=(), description="what a list is short for")
    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(default=False, description="every order of magnitude is as likely as another")

    @model_validator(mode="before")
    @classmethod
    def _list_alone(cls, given: object) -> object:
        if isinstance(given, list | tuple):
            return {"choices": given}
        if not isinstance(given, dict | Axis):
            raise ValueError("give a list of choices, or {low: .., high: ..}")
        return given

    @model_validator(mode="after")
    def _one_way(self) -> "Axis":
        numbers = self.low is not None and self.high is not None
        if numbers == bool(self.choices) or (self.choices and (self.low is not None or self.high is not None)):
            raise ValueError("give a list of choices, or 'low' and 'high'")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a 'low' above 0")
        labels = [_label(choice) for choice in self.choices]
        if len(set(labels)) < len(labels):
            raise ValueError("a choice is there twice")
        return self

    def draw(self, trial: "BaseTrial", name: str) -> Any:
        """The trial's value of the setting ``name``."""
        if self.choices:
            labels = {_label(choice): choice for choice in self.choices}
            return labels[trial.suggest_categorical(name, list(labels))]
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def parameter(self, value: Any) -> Any:
        """How a trial holds ``value``; None if the axis does not have it."""
        if self.choices:
            label = _label(value)
            return label if label in [_label(choice) for choice in self.choices] else None
        assert self.low is not None and self.high is not None
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        return value if fits and self.low <= value <= self.high else None

    def ends(self) -> Iterator[Any]:
        """Values that are wrong if any is: all choices, or the lowest and the highest."""
        yield from self.choices or (self.low, self.high)


class Space(Settings):
    """The space of a search.

    A setting ``model.X`` is searched in the trials of the models that have a setting X.
    """

    models: tuple[str, ...] = Field(default=(), description="names from 'ctrkit models'; default the config's own alone")
    settings: dict[str, Axis] = Field(default_factory=dict, description="of 'model.X', 'embedding.X' or 'training.X'")
    features: Literal["all", "subsets"] = Field(
        default="subsets", description="subsets: whether to keep each; with a ranking how many of its best; all: the config's own"
    )
    top: Axis | None = Field(default=None, description="with a ranking: so many of its best; default any number")
    startup: int = Field(default=8, ge=1, description="trials drawn at random, and left to end, before the others tell")

    @model_validator(mode="after")
    def _top_counts(self) -> "Space":
        for count in self.top.ends() if self.top else ():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError("top: keep at least 1 feature, counted in whole ones")
        return self


def default_space(experiment: Experiment) -> Space:
    """Around the config's own settings, with two models beside its own.

    Raises:
        CtrkitError: the config cannot be trained as it stands.
    """
    check_experiment(experiment)
    others = ("mmoe", "ple") if experiment.tasks else ("deepfm", "dcnv2")
    embedding, training = experiment.embedding, experiment.training
    dims = sorted({max(1, embedding.dim // 2), embedding.dim, 2 * embedding.dim})
    settings: dict[str, Any] = {
        "model.dropout": {"low": 0.0, "high": 0.5},
        "embedding.dim": dims,
        "embedding.learning_rate": {"low": embedding.learning_rate / 8, "high": embedding.learning_rate * 8, "log": True},
        "training.learning_rate": {"low": training.learning_rate / 8, "high": training.learning_rate * 8, "log": True},
    }
    names = tuple(dict.fromkeys((experiment.model.name, *others)))
    if not any("dropout" in own_settings(name) for name in names):
        del settings["model.dropout"]
    return Space.model_validate({"models": names, "settings": settings})


def read_space(path: Path, experiment: Experiment) -> Space:
    """A space from YAML, checked against the config.

    Raises:
        CtrkitError: no such file, an unknown key, model or setting, or a value that the config does not take.
    """
    tree = read_tree(path)
    try:
        space = Space.model_validate(tree)
    except ValidationError as error:
        raise CtrkitError(f"in '{path}': {explain(error, Space, tree)}", "Mend the search space and try again") from error
    check_space(space, experiment, f"in '{path}'")
    return space


def check_space(space: Space, experiment: Experiment, where: str) -> None:
    """Builds the config with every model and every end of every setting.

    Args:
        where: how the space is called in an error.
    """
    known = [info.name for info in models()]
    for name in space.models:
        if name not in known:
            raise CtrkitError(f"{where}: models: unknown model '{name}'", nearest(name, known))
    names = space.models or (experiment.model.name,)
    for name in names:
        _check(overridden(experiment, name, {}), f"{where}: models: {name}")
    for key, axis in space.settings.items():
        group, _, setting = key.partition(".")
        if group not in SEARCHED or not setting:
            raise CtrkitError(
                f"{where}: settings: '{key}' cannot be searched", f"Name a setting of {', '.join(SEARCHED)}, such as embedding.dim"
            )
        able = [name for name in names if has_setting(name, key)]
        if not able:
            settings = sorted({s for name in names for s in own_settings(name)})
            raise CtrkitError(f"{where}: settings: no model of {', '.join(names)} has a setting '{setting}'", nearest(setting, settings))
        for name in able if group == "model" else names[:1]:
            for value in axis.ends():
                place = f"{where}: settings.{key}"
                try:
                    changed = overridden(experiment, name, {key: value})
                except CtrkitError as error:
                    raise CtrkitError(f"{place}: {error.problem}", error.remedy) from error
                _check(changed, f"{place}: {value}")


def _check(experiment: Experiment, place: str) -> None:
    try:
        check_experiment(experiment)
    except CtrkitError as error:
        raise CtrkitError(f"{place}: {error.problem}", error.remedy or "Leave it out of the search space") from error


def has_setting(model: str, key: str) -> bool:
    """Whether ``key`` is a setting in trials of a model."""
    group, _, setting = key.partition(".")
    return group != "model" or setting.partition(".")[0] in own_settings(model)


def own_settings(model: str) -> dict[str, Any]:
    """A model's settings and their defaults."""
    (info,) = (info for info in models() if info.name == model)
    return {setting.name: setting.default for setting in info.settings}


def own_value(experiment: Experiment, key: str) -> Any:
    """What the config itself has for a setting of the search."""
    group, _, setting = key.partition(".")
    if group == "model":
        return experiment.model.settings.get(setting, own_settings(experiment.model.name).get(setting))
    return setting_of(experiment, key)


def _label(value: Any) -> Any:
    """Optuna holds plain values only: others as JSON."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True, default=list)
