"""``ctrkit rank``: which features of a log say something about the label, as files that ``ctrkit train --select`` takes."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import polars as pl

from ctrkit.config import Experiment
from ctrkit.config_file import dump_yaml
from ctrkit.data.folder import beside
from ctrkit.data.prepare import peak_mb
from ctrkit.errors import CtrkitError, nearest
from ctrkit.schema import Feature
from ctrkit.selection.coded import code_log
from ctrkit.selection.pictures import draw
from ctrkit.selection.ranking import MEASURES, By, Ranking, rank_log
from ctrkit.selection.select import FILE
from pipelines.bench.page import write_page
from pipelines.rank_page import page
from pipelines.terminal import Terminal

STAGES = {"read": "Reading the log", "score": "Scoring features", "pairs": "Counting pairs"}
SHOWN = 20


def rank_features(
    experiment: Experiment,
    screen: Terminal,
    *,
    by: str = "information",
    most_rows: int | None = None,
    pairs: bool = True,
    most_pairs: int | None = None,
    order: int = 2,
    crosses: int = 0,
    seed: int = 0,
    task: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Ranks the experiment's features on its training rows and writes all that was found.

    Args:
        by: one of ``MEASURES``.
        most_rows: at most so many training rows, drawn uniformly.
        out: folder; default ``<output>/rankings/<name>``.

    Returns:
        ``{ranking, report, rows, of_rows, features: [{feature, score, z}], anomalies, pairs, seconds, peak_mb}``.

    Raises:
        CtrkitError: anything wrong with the log, the measure or the folder.
    """
    if by not in MEASURES:
        raise CtrkitError(f"no measure '{by}'", nearest(by, MEASURES))
    if by == "3mr" and not pairs:
        raise CtrkitError("3mr goes by pairs of features, and --no-pairs leaves them out", "Leave out --no-pairs, or choose another --by")
    if order > 2 and not pairs:
        raise CtrkitError("crosses grow out of pairs of features, and --no-pairs leaves them out", "Leave out --no-pairs, or --order")
    started = time.perf_counter()
    folder = out if out is not None else Path(experiment.output) / "rankings" / experiment.name
    try:
        with beside(folder) as unfinished:
            with _Bar(screen) as bar:
                log = code_log(
                    experiment,
                    unfinished / "codes",
                    most_rows=most_rows,
                    seed=seed,
                    task=task,
                    progress=lambda done: bar("read", done, None),
                )
                ranking = rank_log(
                    log, by=cast(By, by), pairs=pairs, most_pairs=most_pairs, order=order, crosses=crosses, seed=seed, progress=bar
                )
            shutil.rmtree(unfinished / "codes")
            _write(experiment, ranking, unfinished)
            _put_in_place(unfinished, folder)
    except OSError as error:
        raise CtrkitError(f"the ranking cannot be written to '{folder}': {error.strerror or error}", "Name a folder with --out") from error
    _say(ranking, folder, screen)
    return {
        "ranking": str(folder / f"{FILE}.parquet"),
        "report": str(folder / "report.html"),
        "rows": ranking.rows,
        "of_rows": ranking.of_rows,
        "features": ranking.table().select("feature", "score", "z", "redundant_with", "faults").to_dicts(),
        "recommended": [ranking.scores[place].name for place in ranking.recommended()],
        "anomalies": [asdict(anomaly) for anomaly in ranking.anomalies],
        "pairs": len(ranking.pairs),
        "seconds": time.perf_counter() - started,
        "peak_mb": peak_mb(),
    }


def _write(experiment: Experiment, ranking: Ranking, folder: Path) -> None:
    table = ranking.table()
    table.write_parquet(folder / f"{FILE}.parquet")
    table.write_csv(folder / f"{FILE}.csv")
    table.write_json(folder / f"{FILE}.json")
    names = [score.name for score in ranking.scores]
    for file, rows in {
        "pairs": [
            {"first": names[p.first], "second": names[p.second], **{k: v for k, v in asdict(p).items() if k not in ("first", "second")}}
            for p in ranking.pairs
        ],
        "crosses": [
            {"features": " x ".join(names[place] for place in c.places), "score": c.score, "z": c.z, "gain": c.gain, "values": c.values}
            for c in ranking.crosses
        ],
        "transformations": [asdict(t) for t in ranking.transformations],
    }.items():
        if rows:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / f"{file}.parquet")
    (folder / "anomalies.json").write_text(
        json.dumps([asdict(anomaly) for anomaly in ranking.anomalies], indent=1, ensure_ascii=False), encoding="utf8"
    )
    (folder / "features.yaml").write_text(_features_block(experiment, ranking), encoding="utf8")
    write_page(f"Features of {experiment.name}", page(experiment, ranking, draw(ranking, folder)), folder)


def _features_block(experiment: Experiment, ranking: Ranking) -> str:
    """The recommended features as a config has them, the best first; a sequence brings the feature it is a history of."""
    chosen = [ranking.features[place].name for place in ranking.recommended()]
    targets = [f.of for f in experiment.features if f.name in chosen and f.of is not None]
    by_name = {feature.name: feature for feature in experiment.features}
    entries = [_entry(by_name[name]) for name in dict.fromkeys([*chosen, *targets])]
    return (
        f"# {len(entries)} of {len(experiment.features)} features of {experiment.name}: "
        f"they stand out from chance, are not redundant and not faulty.\n{dump_yaml({'features': entries})}"
    )


def _entry(feature: Feature) -> dict[str, Any]:
    """Without what is the default anyway; a sequence has the dtype and transform of its target."""
    entry = feature.model_dump(mode="json", exclude_defaults=True, exclude={"transform"})
    if feature.of is not None:
        return {key: value for key, value in entry.items() if key != "dtype"}
    return {**entry, "transform": {"kind": feature.transform.kind, **feature.transform.model_dump(mode="json", exclude_defaults=True)}}


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """File by file: the folder may hold what is not ours; of an older ranking nothing is left that this one does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("pairs.parquet", "crosses.parquet", "transformations.parquet", "similarity.png", "dendrogram.png"):
        (folder / old).unlink(missing_ok=True)
    for file in sorted(unfinished.iterdir()):
        file.replace(folder / file.name)


def _say(ranking: Ranking, folder: Path, screen: Terminal) -> None:
    table = ranking.table().head(SHOWN)
    rows = [
        (row["rank"], row["feature"], f"{row['score']:.5f}", f"{row['z']:.1f}", row["values"], row["redundant_with"] or "", row["faults"])
        for row in table.iter_rows(named=True)
    ]
    title = f"{len(ranking.order)} features by {ranking.by}" + (f", the first {SHOWN}" if len(ranking.order) > SHOWN else "")
    screen.table(("", "feature", "score", "z", "values", "redundant with", "faults"), rows, title=title)
    for anomaly in ranking.anomalies:
        who = f"'{anomaly.feature}'" if anomaly.feature else "The label"
        screen.console.print(f"{anomaly.fault.value}: {who} {anomaly.text}", style="yellow", markup=False)
    if ranking.pairs and ranking.paired < len(ranking.scores):
        screen.console.print(
            f"Pairs are those of the {ranking.paired} best features: --most-pairs bounds them.", style="yellow", markup=False
        )
    if ranking.rows < ranking.of_rows:
        screen.console.print(f"On {ranking.rows:,} of {ranking.of_rows:,} training rows, drawn uniformly.", markup=False)
    screen.console.print(
        f"Ranking in '{folder}'. Train on the best: ctrkit train CONFIG --select {folder} --top 20", style="green", markup=False
    )


class _Bar:
    """Progress of the stages, as ``code_log`` and ``rank_log`` tell it."""

    def __init__(self, screen: Terminal) -> None:
        from rich.progress import Progress

        self._bar = Progress(console=screen.console, transient=True, disable=not screen.console.is_terminal)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(STAGES[stage], total=total)
        self._bar.update(self._tasks[stage], completed=done, total=total)
