"""``ctrkit bench tune``: does a ranking of the features first make a search reach the same AUC sooner?

For each seed there are two searches of the same space and number of trials: one that says yes or no to each feature, and one that chooses how
many of OutRank's best to keep. Their time is that of their trials, one after the other; the second one's is with the ranking's. All AUCs
that are compared are of the validation split; the test AUC is that of each search's best config, trained afterwards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import polars as pl

from ctrkit.config import Experiment
from ctrkit.config_file import load_config, to_yaml
from ctrkit.training.run import CONFIG_FILE
from pipelines.bench.page import Block, Paragraph, Picture, Table, write_page
from pipelines.bench.settings_file import keep
from pipelines.rank import rank_features
from pipelines.terminal import Terminal
from pipelines.train import train_experiment
from pipelines.tune import tune
from pipelines.tuning.space import Space, default_space, read_space

ARMS = {"subsets": "a yes or no for each feature", "ranked": "how many of the best by OutRank"}
WITHIN = 0.001
"""AUC as good as the other search's final one."""


@dataclass(frozen=True)
class Curve:
    """A search: the best AUC so far at the end of each trial.

    Attributes:
        seconds: wall time since the search began, stops left out, the ranking's counted; ``cpu`` is the processor's.
        test_auc: of the best config.
    """

    seconds: tuple[float, ...]
    cpu: tuple[float, ...]
    best: tuple[float, ...]
    test_auc: float

    def reached(self, auc: float) -> int | None:
        """The first trial after which the best is at least ``auc``; None if it never is."""
        return next((trial for trial, best in enumerate(self.best) if best >= auc), None)


def bench_tune(
    config: Path, overrides: Sequence[str], space: Path | None, trials: int, seeds: int, out: Path, screen: Terminal
) -> list[dict[str, Any]]:
    """Runs what is missing, writes ``results.parquet``, ``report.md``, ``report.html`` and a picture to ``out``.

    Args:
        space: of both searches, as ``ctrkit tune`` takes it; its ``top`` is of the one with the ranking.
        trials: of each search.
        seeds: 1 .. seeds, of what is drawn and of the trainings.

    Returns:
        One row a seed, see ``compared``.

    Raises:
        CtrkitError: as ``ctrkit tune``; or an ``out`` of other settings.
    """
    experiment = load_config(config, overrides)
    keep(to_yaml(experiment), out / f"{experiment.name}.yaml")
    searched = read_space(space, experiment) if space is not None else default_space(experiment)
    ranking = _ranking(experiment, out, screen)
    curves = {
        (arm, seed): _search(experiment, arm, seed, searched, trials, out, ranking, screen) for seed in range(1, seeds + 1) for arm in ARMS
    }
    rows = [{"seed": seed, **compared(curves["subsets", seed], curves["ranked", seed])} for seed in range(1, seeds + 1)]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(out / "results.parquet")
    _report(rows, curves, f"Search with and without a ranking first, {experiment.name}", ranking, trials, out)
    return rows


def compared(subsets: Curve, ranked: Curve) -> dict[str, Any]:
    """When each was within ``WITHIN`` of the final AUC of the search over subsets: after so many ``trials`` and ``seconds``.

    ``share`` and ``cpu_share`` are the ranked search's part of the other's time, None if it never was. ``subsets_to_ranked`` are the seconds
    after which the search over subsets was within ``WITHIN`` of the ranked one's final AUC, None if it never was.
    """
    aim = subsets.best[-1] - WITHIN
    own, other = subsets.reached(aim), ranked.reached(aim)
    assert own is not None
    back = subsets.reached(ranked.best[-1] - WITHIN)
    return {
        "subsets_auc": subsets.best[-1],
        "ranked_auc": ranked.best[-1],
        "subsets_test_auc": subsets.test_auc,
        "ranked_test_auc": ranked.test_auc,
        "subsets_trials": own + 1,
        "ranked_trials": None if other is None else other + 1,
        "subsets_seconds": subsets.seconds[own],
        "ranked_seconds": None if other is None else ranked.seconds[other],
        "share": None if other is None else ranked.seconds[other] / subsets.seconds[own],
        "cpu_share": None if other is None else ranked.cpu[other] / subsets.cpu[own],
        "subsets_to_ranked": None if back is None else subsets.seconds[back],
        "subsets_whole": subsets.seconds[-1],
        "ranked_whole": ranked.seconds[-1],
    }


@dataclass(frozen=True)
class Spent:
    """Time before a search: that of the ranking."""

    seconds: float = 0.0
    cpu: float = 0.0


def curve(trials: pl.DataFrame, test_auc: float, before: Spent) -> Curve:
    """Of a study's ``trials.parquet``."""
    trials = trials.sort("trial").with_columns(pl.col("cpu_seconds").fill_null(0.0), pl.col("valid_auc").fill_null(0.0))
    wall = (trials["ended"] - trials["began"]).cum_sum() + before.seconds
    cpu = trials["cpu_seconds"].cum_sum() + before.cpu
    return Curve(tuple(wall), tuple(cpu), tuple(trials["valid_auc"].cum_max()), test_auc)


def _ranking(experiment: Experiment, out: Path, screen: Terminal) -> Spent:
    """Makes the ranking, once; what it took."""
    file = out / "ranking.json"
    if not file.exists():
        cpu = process_time()
        seconds = rank_features(experiment, screen, pairs=False, out=out / "ranking")["seconds"]
        file.write_text(json.dumps({"seconds": seconds, "cpu": process_time() - cpu}), encoding="utf8")
    return Spent(**json.loads(file.read_text(encoding="utf8")))


def _search(experiment: Experiment, arm: str, seed: int, space: Space, trials: int, out: Path, ranking: Spent, screen: Terminal) -> Curve:
    seeded = experiment.model_copy(update={"training": experiment.training.model_copy(update={"seed": seed})})
    folder = out / f"{arm}-{seed}"
    ranked = arm == "ranked"
    select = out / "ranking" if ranked else None
    space = space if ranked else space.model_copy(update={"top": None})
    found = tune(seeded, screen, space=space, select=select, trials=trials, seed=seed, out=folder)
    run = folder / f"best-{found['best']['trial']}"
    trained = train_experiment(load_config(found["config"]), run, (run / CONFIG_FILE).is_file(), screen)
    return curve(pl.read_parquet(folder / "trials.parquet"), trained["test"]["auc"], ranking if ranked else Spent())


def _report(
    rows: Sequence[dict[str, Any]], curves: dict[tuple[str, int], Curve], title: str, ranking: Spent, trials: int, out: Path
) -> None:
    _plot(curves, title, out / "search.png")
    header = ["seed", "valid AUC", "with ranking", "test AUC", "with ranking", "trials to it", "with ranking"]
    header += ["seconds to it", "with ranking", "share of the time", "share of the CPU"]
    header += ["seconds of the search without to the other's AUC"]
    cells = [
        [
            str(row["seed"]),
            *(f"{row[name]:.4f}" for name in ("subsets_auc", "ranked_auc", "subsets_test_auc", "ranked_test_auc")),
            *("never" if row[name] is None else str(row[name]) for name in ("subsets_trials", "ranked_trials")),
            *("never" if row[name] is None else f"{row[name]:.0f}" for name in ("subsets_seconds", "ranked_seconds")),
            *("-" if row[name] is None else f"{row[name]:.0%}" for name in ("share", "cpu_share")),
            f"never in {row['subsets_whole']:.0f}" if row["subsets_to_ranked"] is None else f"{row['subsets_to_ranked']:.0f}",
        ]
        for row in rows
    ]
    reached = [row["share"] for row in rows if row["share"] is not None]
    gist = f"In {len(reached)} of {len(rows)} seeds the search with a ranking got there"
    blocks: list[Block] = [
        Paragraph(
            f"Two searches of {trials} trials a seed: {ARMS['subsets']}, and with a ranking {ARMS['ranked']}. Seconds to it: until the best AUC "
            f"on validation was within {WITHIN} of the final one of the search without a ranking; the ranking's {ranking.seconds:.1f} s are counted; share of the CPU: the same in seconds of the processor."
        ),
        Table(header, cells),
        Paragraph(f"{gist}, in {mean(reached):.0%} of the time on average." if reached else f"{gist}."),
        Picture("search.png", "Best AUC on validation so far against seconds"),
    ]
    write_page(title, blocks, out)


def _plot(curves: dict[tuple[str, int], Curve], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(ARMS, ("#2563eb", "#ea580c"), strict=True))
    for (arm, seed), found in curves.items():
        axes.step(found.seconds, found.best, where="post", color=colors[arm], alpha=0.8, label=ARMS[arm] if seed == 1 else None)
    axes.set(xlabel="seconds, the ranking's counted", ylabel="best AUC on validation so far")
    finals = [found.best[-1] for found in curves.values()]
    axes.set_ylim(min(found.best[0] for found in curves.values()) - 0.001, max(finals) + 0.001)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
