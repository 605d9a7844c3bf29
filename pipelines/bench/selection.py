"""``ctrkit bench selection``: AUC against the number of kept features, for features kept by several rankings.

For each seed every ranking is made, and the config's model is trained on its best k features; a subset that two rankings share is trained
once. On a synthetic log, whose relevant features are known, how many of them are among the best k is counted too.
"""

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from ctrkit.config import Experiment
from ctrkit.config_file import load_config, to_yaml
from ctrkit.data.dataset import Dataset
from ctrkit.data.narrow import narrow
from ctrkit.errors import CtrkitError, nearest
from ctrkit.training.trainer import train
from pipelines.bench.needles import write_needles
from pipelines.bench.rankings import RANKINGS, Material, rank
from pipelines.bench.selection_report import write_report
from pipelines.bench.settings_file import keep
from pipelines.prepare import prepared
from pipelines.terminal import Terminal
from pipelines.tuning.overrides import overridden

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Of the features, in a ranking's order: how many to keep, if the call does not say."""

COLUMNS = {
    "data": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    "top": pl.Int64,
    "features": pl.Int64,
    "valid_auc": pl.Float64,
    "test_auc": pl.Float64,
    "train_seconds": pl.Float64,
    "rank_seconds": pl.Float64,
    "recall": pl.Float64,
}
"""Of ``results.parquet``. ``features``: of all; ``recall``: share of the relevant features among the best ``top``, null if not known."""


def bench_selection(
    configs: Sequence[Path],
    overrides: Sequence[str],
    names: Sequence[str],
    tops: Sequence[int],
    seeds: int,
    synthetic: int,
    out: Path,
    screen: Terminal,
) -> list[dict[str, Any]]:
    """Runs what is missing, writes ``results.parquet``, ``report.md``, ``report.html`` and a picture for each log to ``out``.

    Args:
        names: of ``RANKINGS``; none is all.
        tops: numbers of features to keep; none is an eighth, a quarter, a half, three quarters and all.
        seeds: 1 .. seeds, of rankings and trainings.
        synthetic: rows of the synthetic log; 0 leaves it out.

    Returns:
        The report's figures: one row a log, ranking and number of features, means over seeds.

    Raises:
        CtrkitError: an unknown ranking, nothing to rank, or an ``out`` of other settings.
    """
    chosen = list(dict.fromkeys(names)) or list(RANKINGS)
    if unknown := [name for name in chosen if name not in RANKINGS]:
        raise CtrkitError(f"no ranking named '{unknown[0]}'", nearest(unknown[0], list(RANKINGS)))
    logs: list[tuple[Experiment, frozenset[str]]] = [(load_config(config, overrides), frozenset()) for config in configs]
    if synthetic:
        logs.append(write_needles(synthetic, 0, out / "needles", out / "needles/out"))
    if not logs:
        raise CtrkitError("there is no log to select features of", "Name a config, or give --synthetic ROWS")
    rows = [row for experiment, relevant in logs for row in _Log(experiment, relevant, out, screen).rows(chosen, tops, seeds)]
    frame = pl.DataFrame(rows, schema=COLUMNS)
    frame.write_parquet(out / "results.parquet")
    return write_report(frame, out)


class _Log:
    """One log's rankings and trainings, kept in ``<out>/<name>.jsonl`` as they are made."""

    def __init__(self, experiment: Experiment, relevant: frozenset[str], out: Path, screen: Terminal) -> None:
        keep(to_yaml(experiment), out / f"{experiment.name}.yaml")
        self.experiment, self.relevant, self.folder = experiment, relevant, out / "scratch"
        self.dataset: Dataset = prepared(experiment, screen)
        self._screen = screen
        self._file = out / f"{experiment.name}.jsonl"
        self._rankings: dict[tuple[str, int], dict[str, Any]] = {}
        self._trainings: dict[tuple[tuple[str, ...], int], dict[str, Any]] = {}
        for line in map(json.loads, self._file.read_text(encoding="utf8").splitlines() if self._file.exists() else ()):
            if "method" in line:
                self._rankings[line["method"], line["seed"]] = line
            else:
                self._trainings[tuple(line["kept"]), line["seed"]] = line

    def rows(self, methods: Iterable[str], tops: Sequence[int], seeds: int) -> list[dict[str, Any]]:
        count = len(self.experiment.features)
        wanted = sorted({min(top, count) for top in tops} or {max(1, round(count * share)) for share in SHARES})
        rows = []
        for seed in range(1, seeds + 1):
            for method in methods:
                ranking = self._ranking(method, seed)
                if "refused" in ranking:
                    continue
                order = best_first(ranking["scores"])
                for top in wanted:
                    trained = self._training(self._kept(order[:top]), seed)
                    rows.append(
                        {
                            "data": self.experiment.name,
                            "method": method,
                            "seed": seed,
                            "top": top,
                            "features": count,
                            **{name: trained[name] for name in ("valid_auc", "test_auc")},
                            "train_seconds": trained["seconds"],
                            "rank_seconds": ranking["seconds"],
                            "recall": recall(order[:top], self.relevant) if self.relevant else None,
                        }
                    )
        return rows

    def _kept(self, best: Sequence[str]) -> tuple[str, ...]:
        """In the config's order; a sequence brings the feature it is a history of."""
        kept = {*best} | {f.of for f in self.experiment.features if f.name in best and f.of is not None}
        return tuple(f.name for f in self.experiment.features if f.name in kept)

    def _ranking(self, method: str, seed: int) -> dict[str, Any]:
        if (method, seed) not in self._rankings:
            started = time.perf_counter()
            try:
                found: dict[str, Any] = {"scores": rank(method, Material(self.experiment, self.dataset, self.folder, seed))}
            except CtrkitError as error:
                self._screen.console.print(f"{self.experiment.name} {method}: {error}", markup=False)
                found = {"refused": str(error)}
            line = {"method": method, "seed": seed, **found, "seconds": time.perf_counter() - started}
            self._rankings[method, seed] = self._note(line)
        return self._rankings[method, seed]

    def _training(self, kept: tuple[str, ...], seed: int) -> dict[str, Any]:
        if (kept, seed) not in self._trainings:
            started = time.perf_counter()
            shutil.rmtree(self.folder, ignore_errors=True)
            model = self.experiment.model.name
            experiment = overridden(self.experiment, model, {"training.seed": seed}, kept)
            dataset = narrow(self.dataset, experiment, self.folder / "dataset")
            result = train(experiment, dataset, run_dir=self.folder / "run", console=Console(quiet=True), pictures=False)
            seconds = time.perf_counter() - started
            shutil.rmtree(self.folder)
            line = {"kept": kept, "seed": seed, "valid_auc": result.valid["auc"], "test_auc": result.test["auc"], "seconds": seconds}
            self._trainings[kept, seed] = self._note(line)
            self._screen.console.print(
                f"{self.experiment.name} {len(kept)} features, seed {seed}: test auc {result.test['auc']:.4f}", markup=False
            )
        return self._trainings[kept, seed]

    def _note(self, line: dict[str, Any]) -> dict[str, Any]:
        with self._file.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def best_first(scores: Mapping[str, float]) -> list[str]:
    """Features by falling score; equals in the order they come."""
    return sorted(scores, key=lambda name: -scores[name])


def recall(best: Iterable[str], relevant: frozenset[str]) -> float:
    """Share of the relevant features that are among the best."""
    return len(relevant.intersection(best)) / len(relevant)
