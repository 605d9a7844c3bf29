"""A study's plan: the experiment, its log, the space and the seed, one YAML file in its folder that every worker reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrkit.config import Experiment
from ctrkit.config_file import load_settings, read_tree, to_yaml
from ctrkit.data.dataset import fingerprint
from ctrkit.errors import CtrkitError
from ctrkit.schema import Settings
from ctrkit.selection.select import best_features, ranking_of
from pipelines.tuning.overrides import overridden
from pipelines.tuning.space import Axis, Space, has_setting, own_value

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

PLAN_FILE = "plan.yaml"


class Plan(Settings):
    """
    Attributes:
        fingerprint: of the experiment's dataset.
        seed: of what is drawn; the training's own is the experiment's.
        ranked: the features of a ranking, the best first; none without one.
    """

    experiment: Experiment
    fingerprint: str
    space: Space
    seed: int
    ranked: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return self.space.models or (self.experiment.model.name,)

    def draw(self, trial: "BaseTrial") -> Experiment:
        """The experiment of a trial.

        Raises:
            CtrkitError: settings that do not go together, or no feature is kept.
        """
        several = len(self.models) > 1
        model = trial.suggest_categorical("model", self.models) if several else self.models[0]
        axes = {key: axis for key, axis in self.space.settings.items() if has_setting(model, key)}
        settings = {key: axis.draw(trial, key) for key, axis in axes.items()}
        return overridden(self.experiment, model, settings, self._kept(trial))

    def _kept(self, trial: "BaseTrial") -> tuple[str, ...] | None:
        if self.space.features == "all":
            return None
        if self.ranked:
            return best_features(self.experiment, self.ranked, self._top.draw(trial, "top"))
        chosen = {f.name for f in self.experiment.features if trial.suggest_categorical(f"feature.{f.name}", [True, False])}
        kept = tuple(f.name for f in self.experiment.features if f.name in chosen and (f.of is None or f.of in chosen))
        if not kept:
            raise CtrkitError("no feature is kept")
        return kept

    @property
    def _top(self) -> Axis:
        count = len(self.ranked)
        return self.space.top or Axis.model_validate({"low": 1, "high": count} if count > 1 else [1])

    def own(self) -> dict[str, Any]:
        """The parameters of the trial that is the config as it stands, as far as the space has it."""
        own: dict[str, Any] = {}
        model = self.experiment.model.name
        if len(self.models) > 1 and model in self.models:
            own["model"] = model
        for key, axis in self.space.settings.items():
            if model in self.models and has_setting(model, key):
                parameter = axis.parameter(own_value(self.experiment, key))
                own |= {key: parameter} if parameter is not None else {}
        if self.space.features == "subsets":
            features = self.experiment.features
            own |= {"top": max(self._top.ends())} if self.ranked else {f"feature.{f.name}": True for f in features}
        return own


def make_plan(experiment: Experiment, space: Space, seed: int, ranking: Path | None) -> Plan:
    """A plan; with a ranking, its best features take the place of a choice for each.

    Raises:
        CtrkitError: no log or no ranking there, or one of other features; or a space that does not go with it.
    """
    log = fingerprint(experiment)
    if ranking is None:
        if space.top:
            raise CtrkitError("the search space has 'top', and there is no ranking", "Give one with --select, or leave 'top' out")
        return Plan(experiment=experiment, fingerprint=log, space=space, seed=seed)
    if space.features == "all":
        raise CtrkitError("the search space has 'features: all', and there is a ranking", "Set features to subsets, or leave --select out")
    ranked = ranking_of(experiment, ranking)
    most = max(space.top.ends()) if space.top else len(ranked)
    if most > len(ranked):
        raise CtrkitError(f"the search space has 'top: {most}', and there are {len(ranked)} features", f"Give at most {len(ranked)}")
    return Plan(experiment=experiment, fingerprint=log, space=space, seed=seed, ranked=tuple(ranked))


def refuse_another(plan: Plan, folder: Path) -> None:
    """Raises CtrkitError if the folder holds a study of another plan or another log."""
    path = folder / PLAN_FILE
    text = to_yaml(plan)
    if path.exists() and path.read_text(encoding="utf8") != text:
        there = [key for key in _differing(read_tree(path), plan.model_dump(mode="json")) if key != "fingerprint"]
        other = f"other settings: {', '.join(there)}" if there else "another log: its files have changed since"
        raise CtrkitError(f"'{folder}' holds a study of {other}", "Give another --out, or delete that folder")


def keep_plan(plan: Plan, folder: Path) -> None:
    """Writes the plan, or finds it there. Raises as ``refuse_another``."""
    refuse_another(plan, folder)
    temporary = folder / f".{PLAN_FILE}.tmp"
    temporary.write_text(to_yaml(plan), encoding="utf8")
    temporary.replace(folder / PLAN_FILE)


def read_plan(folder: Path) -> Plan:
    return load_settings(folder / PLAN_FILE, (), Plan)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """Keys of two trees where their values differ."""
    keys: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            keys += _differing(old, new, f"{place}{key}.")
        elif old != new:
            keys.append(f"{place}{key}")
    return keys
