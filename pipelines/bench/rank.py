"""``ctrkit bench rank``: the ranking of features against the ``outrank`` package, on the same file and machine, one after the other.

The file is synthetic, so what matters is known: a quarter of the features move the label, each by effects of its values; the others are
noise, of as many values as those. Both sides read the same CSV, by their command line, whole processes timed.

``outrank`` ranks batch by batch (16,384 rows unless told otherwise) and takes medians. It is run on all rows with its own batch size, and
with one batch of all rows, which is what ctrkit counts. Its pairs are run on one batch of its own size alone, and ctrkit's on all
rows. What does not end within a limit is stopped and said to have taken at least that.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrkit.errors import CtrkitError
from pipelines.bench.report import write_markdown
from pipelines.bench.watch import Watched, watch
from pipelines.terminal import Terminal

PEER_BATCH = 2**14
MANY = 1000
"""Values from which a noise feature counts as one of high cardinality."""
EFFECTS = (0.05, 0.1, 0.2, 0.3)
"""Standard deviations, in logits, of the values' effects of relevant features, taken in turn."""
SKEW = 0.8


@dataclass(frozen=True)
class Feature:
    name: str
    values: int
    effect: float

    @property
    def relevant(self) -> bool:
        return self.effect > 0


def bench_rank(
    rows: int, features: int, seed: int, peer: Path | None, limit: float, processes: int, out: Path, screen: Terminal
) -> list[dict[str, Any]]:
    """Writes ``table.md`` and ``table.parquet`` below ``out``; a row a run.

    Args:
        peer: the Python that ``outrank`` is installed for; without it only ctrkit is measured.
        limit: seconds that a run of the peer may take.
        processes: of each side.

    Raises:
        CtrkitError: a side fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ctrkit-rank-") as name:
        folder = Path(name)
        truth = make_log(folder / "data.csv", rows, features, seed)
        found = [_ours(folder, truth, rows, pairs) for pairs in (False, True)]
        if peer is not None:
            found += _peers(folder, truth, rows, peer, limit, processes)
    table = [{**run, **_against(run, found)} for run in found]
    pl.DataFrame(table, infer_schema_length=None).write_parquet(out / "table.parquet")
    header, cells = _cells(table)
    write_markdown(header, cells, out / "table.md")
    screen.table(header, cells, title=f"{rows:,} rows x {features} features, {sum(f.relevant for f in truth)} of them relevant")
    return table


def make_log(file: Path, rows: int, features: int, seed: int) -> list[Feature]:
    """Writes the CSV, its ``label`` first, and says what is in it."""
    random = np.random.default_rng(seed)
    relevant = max(1, features // 4)
    most = min(100_000, rows // 10)
    known = [
        Feature(f"relevant{i}", int(values), EFFECTS[i % len(EFFECTS)]) for i, values in enumerate(np.geomspace(2, most, relevant).round())
    ]
    known += [Feature(f"noise{i}", int(values), 0.0) for i, values in enumerate(np.geomspace(2, most, features - relevant).round())]
    logits = np.full(rows, -1.5)
    columns: dict[str, pl.Series] = {}
    for feature in known:
        shares = 1 / np.arange(1, feature.values + 1) ** SKEW
        drawn = random.choice(feature.values, rows, p=shares / shares.sum())
        logits += random.normal(0, feature.effect, feature.values)[drawn]
        columns[feature.name] = pl.Series(drawn).cast(pl.String)
    label = (random.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    order = random.permutation(len(known))
    pl.DataFrame({"label": label, **{known[place].name: columns[known[place].name] for place in order}}).write_csv(file)
    return known


def quality(order: Sequence[str], truth: Sequence[Feature]) -> dict[str, float]:
    """Of a ranking, the best first: share of the relevant features among as many first ones, noise of many values among those,
    and the chance that a relevant feature stands before one of noise."""
    by_name = {feature.name: feature for feature in truth}
    ranked = [by_name[name] for name in order]
    count = sum(feature.relevant for feature in truth)
    first = ranked[:count]
    noise_after, before = sum(not f.relevant for f in ranked), 0
    for feature in ranked:
        if feature.relevant:
            before += noise_after
        else:
            noise_after -= 1
    return {
        "recall": sum(f.relevant for f in first) / count,
        "wide_noise": float(sum(not f.relevant and f.values >= MANY for f in first)),
        "auc": before / (count * (len(truth) - count)),
    }


def _ours(folder: Path, truth: Sequence[Feature], rows: int, pairs: bool) -> dict[str, Any]:
    config = folder / "bench.yaml"
    names = ", ".join(feature.name for feature in truth)
    few = pl.read_csv(folder / "data.csv", n_rows=10, infer_schema=False)
    for part in ("valid", "test"):
        few.write_csv(folder / f"{part}.csv")
    config.write_text(
        f"name: bench\ndata: {{train: {folder}/data.csv, valid: {folder}/valid.csv, test: {folder}/test.csv}}\nlabel: label\n"
        f"features: [{{name: [{names}], kind: categorical}}]\noutput: {folder}/out\n"
    )
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "rank",
        str(config),
        "--pairs" if pairs else "--no-pairs",
        "--out",
        str(folder / "ranking"),
    ]
    watched = watch(command, folder / "ours.log")
    _succeeded("ctrkit", watched, folder / "ours.log")
    ranking = pl.read_parquet(folder / "ranking" / "ranking.parquet")["feature"].to_list()
    return {
        "side": "ctrkit",
        "what": "all pairs" if pairs else "single features",
        "how": "all rows",
        "rows": rows,
        **asdict(watched),
        **quality(ranking, truth),
    }


def _peers(folder: Path, truth: Sequence[Feature], rows: int, peer: Path, limit: float, processes: int) -> list[dict[str, Any]]:
    batches = folder / "batch"
    batches.mkdir()
    pl.read_csv(folder / "data.csv", n_rows=PEER_BATCH, infer_schema=False).write_csv(batches / "data.csv")
    return [
        _peer(folder, truth, rows, peer, limit, processes, PEER_BATCH, pairs=False),
        _peer(folder, truth, rows, peer, limit, processes, rows, pairs=False),
        _peer(batches, truth, min(rows, PEER_BATCH), peer, limit, processes, PEER_BATCH, pairs=True),
    ]


def _peer(
    data: Path,
    truth: Sequence[Feature],
    rows: int,
    peer: Path,
    limit: float,
    processes: int,
    batch: int,
    *,
    pairs: bool,
) -> dict[str, Any]:
    result = data / f"peer-{batch}-{pairs}"
    result.mkdir()
    options = {
        "task": "ranking",
        "data_path": str(data),
        "data_source": "csv-raw",
        "heuristic": "MI-numba-randomized",
        "target_ranking_only": str(not pairs),
        "combination_number_upper_bound": str(10**6),
        "include_cardinality_in_feature_names": "False",
        "subsampling": "1",
        "minibatch_size": str(batch),
        "num_threads": str(processes),
        "disable_tqdm": "True",
        "output_folder": str(result),
    }
    command = [str(peer), "-m", "outrank", *(part for key, value in options.items() for part in (f"--{key}", value))]
    watched = watch(command, data / "peer.log", limit, {"PYTHONPATH": ""}, result)
    scores = result / "pairwise_ranks.tsv"
    if watched.finished:
        _succeeded("outrank", watched, data / "peer.log")
    one = f"one batch of {batch:,}" if pairs else "one batch of all rows"
    return {
        "side": "outrank",
        "what": "all pairs" if pairs else "single features",
        "how": one if batch >= rows else f"batches of {batch:,}",
        "rows": rows,
        **asdict(watched),
        **(quality(_peer_order(scores), truth) if watched.finished else dict.fromkeys(("recall", "wide_noise", "auc"))),
    }


def _peer_order(file: Path) -> list[str]:
    scores = pl.read_csv(file, separator="\t").filter((pl.col("FeatureB") == "label") & (pl.col("FeatureA") != "label"))
    return (
        scores.group_by("FeatureA").agg(pl.col("Score").max()).sort(["Score", "FeatureA"], descending=[True, False])["FeatureA"].to_list()
    )


def _succeeded(side: str, watched: Watched, log: Path) -> None:
    if watched.status != 0:
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        raise CtrkitError(f"{side} ended with status {watched.status}: {last}", "Run its command by hand to see why")


def _against(run: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many times the seconds and the memory of ctrkit's run of the same kind, which is of all rows."""
    ours = next(r for r in runs if r["side"] == "ctrkit" and r["what"] == run["what"])
    return {"times_seconds": run["seconds"] / ours["seconds"], "times_memory": run["peak_mb"] / ours["peak_mb"]}


def _cells(table: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["", "what", "rows", "how", "seconds", "CPU seconds", "peak MB", "x seconds", "x memory", "recall", "wide noise in it", "AUC"]
    rows = []
    for run in table:
        least = "" if run["finished"] else "more than "
        seconds = f"{least}{run['seconds']:,.0f}"
        measured = ["-"] * 3 if run["recall"] is None else [f"{run['recall']:.2f}", f"{run['wide_noise']:.0f}", f"{run['auc']:.3f}"]
        rows.append(
            [
                run["side"],
                run["what"],
                f"{run['rows']:,}",
                run["how"],
                seconds,
                f"{run['cpu_seconds']:,.0f}" if run["finished"] else "-",
                f"{run['peak_mb']:,.0f}",
                f"{least}{run['times_seconds']:.1f}",
                f"{run['times_memory']:.1f}",
                *measured,
            ]
        )
    return header, rows
