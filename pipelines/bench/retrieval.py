"""``ctrkit bench retrieval``: methods x data sets x seeds x shares of the training events, over the full catalogue and by slices.

One trial is one ``ctrkit train`` in a process of its own and one line of ``results.jsonl``; a killed benchmark goes on where it stopped. A
smaller share leaves out training events at random and changes no validation or test target. Towers have the settings of the config's model,
with the auxiliary task that the method's name says. Given a Python that has RecBole, its implementations are trained on the same split.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from ctrkit.config import ModelChoice
from ctrkit.config_file import to_yaml
from ctrkit.errors import CtrkitError, nearest
from ctrkit.retrieval.config import RetrievalExperiment, load_retrieval
from ctrkit.retrieval.dataset import open_dataset
from ctrkit.retrieval.prepare import prepare
from ctrkit.retrieval.towers import TowerSettings
from pipelines.bench import recbole
from pipelines.bench.page import Heading, Paragraph, Table, write_page
from pipelines.bench.process import run_command
from pipelines.bench.settings_file import keep

AUXILIARY: dict[str, dict[str, Any] | None] = {
    "two_tower": None,
    "ssl": {"kind": "ssl"},
    "ssl_random": {"kind": "ssl", "masking": "random"},
    "spread_out": {"kind": "spread_out"},
    "feature_dropout": {"kind": "feature_dropout"},
}
"""Two towers, and what their item tower is trained for beside."""
OTHERS = ("fusion", "popularity", "item_knn", "als", "bpr_mf", "lightgcn", "autorec", "deepfm", "boosting", "sasrec")
NAMES = (*AUXILIARY, *OTHERS)
PEERS = tuple(recbole.MODELS)


@dataclass(frozen=True)
class RetrievalTrial:
    """One ``ctrkit train``: what tells it from the others."""

    data: str
    method: str
    share: float
    seed: int


def bench_retrieval(
    configs: Sequence[Path],
    overrides: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    shares: Sequence[float],
    out: Path,
    say: Callable[[str], Any] = print,
    peer: recbole.RecBole | None = None,
) -> list[dict[str, Any]]:
    """Runs what is missing, writes ``results.parquet``, ``report.md`` and ``report.html`` to ``out``.

    Args:
        methods: of ``NAMES`` and ``PEERS``; none is all, with a ``peer`` its own too.
        seeds: 1 .. seeds.
        shares: of the training events; none is all of them.
        peer: RecBole, where it is installed.

    Returns:
        One row a data set, share, method and slice, means over seeds; the slice ``all`` is the whole test split.

    Raises:
        CtrkitError: an unknown method, one of RecBole's without its Python or none with it, or an ``out`` of other settings.
    """
    known = (*NAMES, *PEERS)
    chosen = list(dict.fromkeys(methods)) or list(NAMES if peer is None else known)
    if unknown := [name for name in chosen if name not in known]:
        raise CtrkitError(f"no retrieval method named '{unknown[0]}'", nearest(unknown[0], known))
    if peer is None and (theirs := [name for name in chosen if name in PEERS]):
        raise CtrkitError(f"'{theirs[0]}' needs a Python that has RecBole", "Name it: --peer-python PYTHON")
    if peer is not None:
        if not any(name in PEERS for name in chosen):
            raise CtrkitError("--peer-python: no method of RecBole is measured", f"Name one, such as --method {PEERS[0]}, or leave it out")
        keep(json.dumps(peer.settings, indent=2, sort_keys=True) + "\n", out / "configs" / "recbole.json")
    file = out / "results.jsonl"
    done = _read(file)
    for config in configs:
        base = load_retrieval(config, [*overrides, f"output={out}"])
        for share in sorted(set(shares)) or [1.0]:
            for method in chosen:
                for seed in range(1, seeds + 1):
                    trial = RetrievalTrial(base.name, method, share, seed)
                    path = out / "configs" / f"{base.name}-{method}-{share:g}.yaml"
                    keep(to_yaml(with_method(base, method, share)), path)
                    if trial not in done and (result := _run(trial, path, peer, say)) is not None:
                        done[trial] = result
                        with file.open("a", encoding="utf8") as lines:
                            lines.write(json.dumps({**asdict(trial), "result": result}) + "\n")
    rows = summarise(done)
    if not rows:
        raise CtrkitError("no training ended well: the reasons are above", "Mend the config or the settings")
    _report(rows, out)
    return rows


def with_method(base: RetrievalExperiment, method: str, share: float) -> RetrievalExperiment:
    """The experiment with a method and a share of its training events. A fusion has the towers' common settings.

    RecBole's methods have settings of their own: the model's are left as they are, and so are those of the config's own method.
    """
    of_towers = base.model.name in ("two_tower", "fusion")
    towers = {key: value for key, value in base.model.settings.items() if of_towers and key in TowerSettings.model_fields}
    if method in AUXILIARY:
        auxiliary = {"auxiliary": AUXILIARY[method]} if AUXILIARY[method] else {}
        model = ModelChoice.model_validate({"name": "two_tower", **towers, **auxiliary})
    elif method in PEERS or method == base.model.name:
        model = base.model
    else:
        model = ModelChoice.model_validate({"name": method, **(towers if method == "fusion" else {})})
    return base.model_copy(update={"model": model, "split": base.split.model_copy(update={"train_share": share})})


def _run(trial: RetrievalTrial, config: Path, peer: recbole.RecBole | None, say: Callable[[str], Any]) -> dict[str, Any] | None:
    """Its result; None if it failed, which is said."""
    label = f"{trial.data} {trial.method} share {trial.share:g} seed {trial.seed}"
    try:
        result = _train(config, trial.seed) if peer is None or trial.method not in PEERS else _train_peer(config, trial, peer)
    except CtrkitError as error:
        say(f"{label}: failed: {error}")
        return None
    figures = [f"{name} {result['test'][name]:.4f}" for name in _shown(result["test"])]
    say(f"{label}: {', '.join(figures)}")
    return result


def _train(config: Path, seed: int) -> dict[str, Any]:
    ended = run_command(["train", str(config), "--set", f"training.seed={seed}", "--json"])
    if ended.status != 0:
        raise CtrkitError((ended.stderr or ended.stdout).strip()[-500:])
    return json.loads(ended.stdout.strip().splitlines()[-1])


def _train_peer(config: Path, trial: RetrievalTrial, peer: recbole.RecBole) -> dict[str, Any]:
    experiment = load_retrieval(config)
    dataset = open_dataset(experiment) or prepare(experiment)
    return peer.train(dataset, trial.method, trial.seed, experiment.evaluation)


def _read(file: Path) -> dict[RetrievalTrial, dict[str, Any]]:
    lines = map(json.loads, file.read_text(encoding="utf8").splitlines()) if file.exists() else ()
    return {RetrievalTrial(line["data"], line["method"], line["share"], line["seed"]): line["result"] for line in lines}


def summarise(results: dict[RetrievalTrial, dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and spreads over seeds, by data set, share, method and slice."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for trial, result in results.items():
        groups.setdefault((trial.data, trial.share, trial.method), []).append(result)
    rows = []
    for (data, share, method), runs in groups.items():
        for part in ["all", *runs[0]["slices"]]:
            found = [run["test"] if part == "all" else run["slices"].get(part) for run in runs]
            metrics = [values for values in found if values]
            row: dict[str, Any] = {"data": data, "share": share, "method": method, "slice": part, "seeds": len(runs)}
            for name in (name for name in metrics[0] if name != "queries"):
                values = [one[name] for one in metrics if one[name] is not None]
                row[name] = mean(values) if values else None
                row[f"{name}_std"] = pstdev(values) if values else None
            row["queries"] = metrics[0].get("queries")
            row["seconds"] = mean(run["seconds"] for run in runs)
            rows.append(row)
    return sorted(
        rows, key=lambda row: (row["data"], row["share"], row["slice"] != "all", row["slice"], (*NAMES, *PEERS).index(row["method"]))
    )


def _shown(metrics: dict[str, Any]) -> list[str]:
    """The figures of a table: of the shortest list, and mrr."""
    first = next(name for name in metrics if name.startswith("recall@")).partition("@")[2]
    return [f"recall@{first}", f"ndcg@{first}", "mrr"]


def _report(rows: list[dict[str, Any]], out: Path) -> None:
    import polars as pl

    pl.DataFrame(rows, infer_schema_length=None).write_parquet(out / "results.parquet")
    blocks: list[Any] = [Paragraph("Test split, full catalogue, seen items left out; means over seeds ± standard deviation.")]
    for data, share in dict.fromkeys((row["data"], row["share"]) for row in rows):
        own = [row for row in rows if (row["data"], row["share"]) == (data, share)]
        blocks.append(Heading(f"{data}, {share:.0%} of the training events"))
        whole = [row for row in own if row["slice"] == "all"]
        names = [name for name in whole[0] if "@" in name and not name.endswith("_std")] + ["mrr"]
        cells = [[row["method"], str(row["seeds"]), *(_cell(row, name) for name in names), f"{row['seconds']:.0f}"] for row in whole]
        blocks.append(Table(["method", "seeds", *names, "seconds"], cells))
        kinds = list(dict.fromkeys(row["slice"] for row in own if row["slice"] != "all"))
        metric = _shown(whole[0])[0]
        of = {(row["method"], row["slice"]): row for row in own}
        slices = [
            [row["method"], *(_cell(of[row["method"], kind], metric) if (row["method"], kind) in of else "-" for kind in kinds)]
            for row in whole
        ]
        blocks += [Paragraph(f"{metric} by slice:"), Table(["method", *kinds], slices)]
    write_page("Retrieval", blocks, out)


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.4f}" + (f" ± {row[f'{name}_std']:.4f}" if row["seeds"] > 1 else "")
