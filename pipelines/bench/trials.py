"""Trials of a benchmark, resumable: one trial is one ``ctrkit train`` in a process of its own and one line of ``results.jsonl``.

A small grid of settings is tried with the first seed; the best on VALIDATION is then trained with every seed, and only that one's test
metrics are reported. A killed benchmark goes on where it stopped. A budget of compressed embeddings that cannot be reached is a result too.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ctrkit.config_file import load_config
from ctrkit.errors import CtrkitError
from ctrkit.training.monitor import monitored
from pipelines.bench.process import run_command

Settings = tuple[str, ...]
"""``key.sub=value`` overrides of a config."""

REFUSED_BUDGET = re.compile(r"compression method '.+' needs [\d,]+ bytes at the least")
"""How the error of ``ctrkit.embeddings.compression.method.Method.refuse`` begins."""


@dataclass(frozen=True)
class Trial:
    """One ``ctrkit train``: what tells it from the others."""

    config: str
    model: str
    settings: Settings
    seed: int

    def arguments(self) -> list[str]:
        """Of ``ctrkit``. The config's own model keeps the settings it has there; another one starts from its defaults."""
        own = load_config(self.config).model.name == self.model
        overrides = [*([] if own else [f"model={{name: {self.model}}}"]), f"training.seed={self.seed}", *self.settings]
        flags = [part for override in overrides for part in ("--set", override)]
        return ["train", self.config, "--json", *flags]


class Trials:
    """The trials of a folder: what was run, and running what is missing.

    Args:
        out: folder of ``results.jsonl``, made if there is none.
        say: told of each trial that has ended.
        threads: CPU threads of a trial whose config does not say; default all cores.

    Attributes:
        results: of each trial, what ``ctrkit train --json`` said.
        refused: of each trial whose compressed embeddings cannot reach their budget, why; it is not tried again.
    """

    def __init__(self, out: Path, say: Callable[[str], object], threads: int | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "results.jsonl"
        self._say = say
        self._threads = threads
        self._lock = Lock()
        self.results: dict[Trial, dict[str, Any]] = {}
        self.refused: dict[Trial, str] = {}
        if self._file.exists():
            for line in map(json.loads, self._file.read_text().splitlines()):
                trial = Trial(line["config"], line["model"], tuple(line["settings"]), line["seed"])
                if "refused" in line:
                    self.refused[trial] = line["refused"]
                else:
                    self.results[trial] = line["result"]

    def run(self, trial: Trial) -> dict[str, Any] | None:
        """Its result; None if it failed or was refused, which is said."""
        if trial in self.results or trial in self.refused:
            return self.results.get(trial)
        done = run_command(trial.arguments(), self._threads)
        label = f"{Path(trial.config).stem} {trial.model} {' '.join(trial.settings)} seed {trial.seed}"
        if done.status != 0:
            if refusal := REFUSED_BUDGET.search(done.stdout) and json.loads(done.stdout.strip().splitlines()[-1])["error"]:
                self._say(f"{label}: {refusal}")
                self._record(trial, "refused", refusal)
                self.refused[trial] = refusal
            else:
                self._say(f"{trial}: failed: {done.stderr.strip()[-500:]}")
            return None
        result = json.loads(done.stdout.strip().splitlines()[-1])
        result["run"] = str(Path(result["run"]).resolve())
        self._say(f"{label}: test auc {result['test']['auc']:.4f}")
        self._record(trial, "result", result)
        self.results[trial] = result
        return result

    def run_all(self, trials: Sequence[Trial], processes: int, ended: Callable[[], object]) -> None:
        """Runs what is missing, so many trials side by side; ``ended`` is called after each, from any thread."""

        def run(trial: Trial) -> None:
            self.run(trial)
            ended()

        pool = ThreadPoolExecutor(processes, "ctrkit-trial")
        try:
            list(pool.map(run, trials))
        finally:
            pool.shutdown(cancel_futures=True)

    def _record(self, trial: Trial, kind: str, content: object) -> None:
        with self._lock, self._file.open("a") as file:
            file.write(json.dumps({**asdict(trial), kind: content}) + "\n")

    def measure(
        self, config: str, model: str, points: Sequence[Settings], seeds: int, monitor: str
    ) -> tuple[Settings, list[dict[str, Any]]] | None:
        """Settings that are best on validation with the first seed, and their results with seeds 1 .. ``seeds``; None if all failed."""
        tried = [settings for settings in points if self.run(Trial(config, model, settings, 1))]
        if not tried:
            self._say(f"{Path(config).stem} {model}: every trial failed, see the messages above")
            return None
        best = max(tried, key=lambda settings: monitored(self.results[Trial(config, model, settings, 1)]["valid"], monitor))
        runs = [self.run(Trial(config, model, best, seed)) for seed in range(1, seeds + 1)]
        return best, [run for run in runs if run]


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
