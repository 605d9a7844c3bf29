"""Trials of a benchmark, resumable: one trial is one ``ctrkit train`` in a process of its own and one line of ``results.jsonl``.

A small grid of settings is tried with the first seed; the best on VALIDATION is then trained with every seed, and only that one's test
metrics are reported. A killed benchmark goes on where it stopped.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctrkit.config import load_config
from ctrkit.errors import CtrkitError

Settings = tuple[str, ...]
"""``key.sub=value`` overrides of a config."""


@dataclass(frozen=True)
class Trial:
    """One ``ctrkit train``: what tells it from the others."""

    config: str
    model: str
    settings: Settings
    seed: int

    def command(self) -> list[str]:
        """The config's own model keeps the settings it has there; another one starts from its defaults."""
        own = load_config(self.config).model.name == self.model
        overrides = [*([] if own else [f"model={{name: {self.model}}}"]), f"training.seed={self.seed}", *self.settings]
        flags = [part for override in overrides for part in ("--set", override)]
        return [sys.executable, "-m", "pipelines.cli", "train", self.config, "--json", *flags]


class Trials:
    """The trials of a folder: what was run, and running what is missing.

    Args:
        out: folder of ``results.jsonl``, made if there is none.
        say: told of each trial that has ended.

    Attributes:
        results: of each trial, what ``ctrkit train --json`` said.
    """

    def __init__(self, out: Path, say: Callable[[str], object]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "results.jsonl"
        self._say = say
        self.results: dict[Trial, dict[str, Any]] = {}
        if self._file.exists():
            lines = [json.loads(line) for line in self._file.read_text().splitlines()]
            self.results = {Trial(x["config"], x["model"], tuple(x["settings"]), x["seed"]): x["result"] for x in lines}

    def run(self, trial: Trial) -> dict[str, Any] | None:
        """Its result; None if it failed, which is said."""
        if trial in self.results:
            return self.results[trial]
        done = subprocess.run(trial.command(), check=False, capture_output=True, text=True)
        if done.returncode != 0:
            self._say(f"{trial}: failed: {done.stderr.strip()[-500:]}")
            return None
        result = json.loads(done.stdout.strip().splitlines()[-1])
        label = f"{Path(trial.config).stem} {trial.model} {' '.join(trial.settings)} seed {trial.seed}"
        self._say(f"{label}: test auc {result['test']['auc']:.4f}")
        with self._file.open("a") as file:
            file.write(json.dumps({**asdict(trial), "result": result}) + "\n")
        self.results[trial] = result
        return result

    def measure(
        self, config: str, model: str, points: Sequence[Settings], seeds: int, monitor: str
    ) -> tuple[Settings, list[dict[str, Any]]] | None:
        """Settings that are best on validation with the first seed, and their results with seeds 1 .. ``seeds``; None if all failed."""
        tried = [settings for settings in points if self.run(Trial(config, model, settings, 1))]
        if not tried:
            self._say(f"{Path(config).stem} {model}: every trial failed, see the messages above")
            return None
        best = max(tried, key=lambda settings: score(self.results[Trial(config, model, settings, 1)], monitor))
        runs = [self.run(Trial(config, model, best, seed)) for seed in range(1, seeds + 1)]
        return best, [run for run in runs if run]


def score(result: dict[str, Any], monitor: str) -> float:
    """What ``training.monitor`` says of a result on validation; higher is better."""
    valid = result["valid"]
    return {"auc-logloss": valid["auc"] - valid["logloss"], "logloss": -valid["logloss"]}.get(monitor, valid.get(monitor))


def settings_of_models(names: Iterable[str]) -> dict[str, set[str]]:
    """Names of the settings of every model there is.

    Raises:
        CtrkitError: one of ``names`` is no model.
    """
    from ctrkit.models.registry import models

    known = {info.name: {setting.name for setting in info.settings} for info in models()}
    if unknown := [name for name in names if name not in known]:
        raise CtrkitError(f"no model named '{unknown[0]}'", f"Choose from: {', '.join(known)}")
    return known


def grid_points(grid: Sequence[str], model_settings: Iterable[str]) -> list[Settings]:
    """``["model.dropout=0,0.2", "model.hidden=[64],[64,32]"]`` -> every combination; settings that the model lacks are left out."""
    axes = []
    for axis in grid:
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise CtrkitError(f"--grid {axis} has no values", "Write --grid key.sub=value,value")
        owner, _, name = key.partition(".")
        if owner == "model" and name not in model_settings:
            continue
        axes.append([f"{key}={value}" for value in _split(values)])
    return list(itertools.product(*axes))


def _split(values: str) -> list[str]:
    """At the commas outside of any bracket."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
