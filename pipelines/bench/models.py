"""``ctrkit bench models``: models x data sets x seeds through ``ctrkit train``, resumable, with a report.

Per data set and model, a small grid of settings is tried with the first seed; the best on VALIDATION is then trained with
every seed, and only that one's test metrics are reported, mean and standard deviation over seeds. One trial is one
``ctrkit train`` in a process of its own and one line of ``results.jsonl``: a killed benchmark goes on where it stopped. The report
is of all that the folder holds, so that models may be given grids of their own, one call after the other.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from ctrkit.config import Experiment, load_config
from ctrkit.errors import CtrkitError


@dataclass(frozen=True)
class Trial:
    """One ``ctrkit train``: what tells it from the others."""

    config: str
    model: str
    settings: tuple[str, ...]
    seed: int

    def command(self) -> list[str]:
        """The config's own model keeps the settings it has there; another one starts from its defaults."""
        own = load_config(self.config).model.name == self.model
        overrides = [*([] if own else [f"model={{name: {self.model}}}"]), f"training.seed={self.seed}", *self.settings]
        flags = [part for override in overrides for part in ("--set", override)]
        return [sys.executable, "-m", "pipelines.cli", "train", self.config, "--json", *flags]


def grid_points(grid: Sequence[str], model_settings: Iterable[str]) -> list[tuple[str, ...]]:
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


def bench_models(
    configs: Sequence[str], models: Sequence[str], seeds: int, grid: Sequence[str], out: Path, say=print
) -> list[dict[str, Any]]:
    """Runs what is missing in ``out/results.jsonl``, writes ``table.csv``, ``table.md`` and ``table.html`` beside it.

    Args:
        configs: YAML experiments; each one's ``name`` is its name in the report.
        models: names from ``ctrkit models``; none is all that fit a config's labels and features.
        seeds: how many seeds, 1 .. seeds.
        grid: ``key.sub=value,value`` axes, tried with seed 1 and chosen on validation by ``training.monitor``.
        out: folder of the results.

    Returns:
        One row a data set and model in ``out``, best first within a data set.
    """
    from ctrkit.models.registry import models as known_models

    known = known_models()
    settings_of = {info.name: {setting.name for setting in info.settings} for info in known}
    if unknown := [m for m in models if m not in settings_of]:
        raise CtrkitError(f"no model named '{unknown[0]}'", f"Choose from: {', '.join(settings_of)}")
    out.mkdir(parents=True, exist_ok=True)
    results = read_trials(out / "results.jsonl")
    for config in configs:
        experiment = load_config(config)
        for model in models or [info.name for info in known if info.kind in _kinds(experiment)]:
            points = grid_points(grid, settings_of[model])
            tried = [settings for settings in points if run_trial(Trial(config, model, settings, 1), results, out, say)]
            if not tried:
                say(f"{experiment.name} {model}: every trial failed, see the messages above")
                continue
            monitor = experiment.training.monitor
            best = max(tried, key=lambda settings: score(results[Trial(config, model, settings, 1)], monitor))
            for seed in range(2, seeds + 1):
                run_trial(Trial(config, model, best, seed), results, out, say)
    rows = summarise(results)
    if rows:
        _report(rows, out)
    return rows


def _kinds(experiment: Experiment) -> set[str]:
    if experiment.tasks:
        return {"multi-task"}
    return {"ranking", "sequence"} if any(feature.of for feature in experiment.features) else {"ranking"}


def summarise(results: Mapping[Trial, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a data set and model: of the settings that are best on validation with the first seed, the mean over all seeds."""
    rows = []
    for config in dict.fromkeys(trial.config for trial in results):
        experiment = load_config(config)
        for model in dict.fromkeys(trial.model for trial in results if trial.config == config):
            own = {trial: result for trial, result in results.items() if (trial.config, trial.model) == (config, model)}
            first = {trial.settings: score(result, experiment.training.monitor) for trial, result in own.items() if trial.seed == 1}
            best = max(first, key=lambda settings: first[settings])
            rows.append(_row(experiment.name, model, best, [result for trial, result in own.items() if trial.settings == best]))
    return sorted(rows, key=lambda row: (row["data"], -row["auc"]))


def run_trial(trial: Trial, results: dict[Trial, dict[str, Any]], out: Path, say) -> dict[str, Any] | None:
    if trial in results:
        return results[trial]
    done = subprocess.run(trial.command(), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        say(f"{trial}: failed: {done.stderr.strip()[-500:]}")
        return None
    result = json.loads(done.stdout.strip().splitlines()[-1])
    say(f"{Path(trial.config).stem} {trial.model} {' '.join(trial.settings)} seed {trial.seed}: test auc {result['test']['auc']:.4f}")
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps({**asdict(trial), "result": result}) + "\n")
    results[trial] = result
    return result


def read_trials(path: Path) -> dict[Trial, dict[str, Any]]:
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Trial(x["config"], x["model"], tuple(x["settings"]), x["seed"]): x["result"] for x in lines}


def score(result: dict[str, Any], monitor: str) -> float:
    valid = result["valid"]
    return {"auc-logloss": valid["auc"] - valid["logloss"], "logloss": -valid["logloss"]}.get(monitor, valid.get(monitor))


def _row(data: str, model: str, settings: tuple[str, ...], runs: list[dict[str, Any]]) -> dict[str, Any]:
    auc, logloss = ([run["test"][metric] for run in runs] for metric in ("auc", "logloss"))
    return {
        "data": data,
        "model": model,
        "auc": mean(auc),
        "auc_std": pstdev(auc),
        "logloss": mean(logloss),
        "logloss_std": pstdev(logloss),
        "seeds": len(runs),
        "params": runs[0]["params"],
        "samples_per_s": round(mean(run["samples_per_s"] for run in runs)),
        "settings": " ".join(settings),
    }


def _report(rows: list[dict[str, Any]], out: Path) -> None:
    import polars as pl

    pl.DataFrame(rows).write_csv(out / "table.csv")
    header = ["data", "model", "test AUC", "logloss", "seeds", "parameters", "samples/s", "chosen settings"]
    cells = [
        [
            row["data"],
            row["model"],
            f"{row['auc']:.4f} ± {row['auc_std']:.4f}",
            f"{row['logloss']:.4f} ± {row['logloss_std']:.4f}",
            str(row["seeds"]),
            f"{row['params']:,}",
            f"{row['samples_per_s']:,}",
            row["settings"],
        ]
        for row in rows
    ]
    lines = [header, ["---"] * len(header), *cells]
    (out / "table.md").write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    (out / "table.html").write_text(_html(header, cells))


def _html(header: list[str], cells: list[list[str]]) -> str:
    """A table that sorts by the column clicked on."""
    import html

    head = "".join(f"<th onclick=sortBy({i})>{html.escape(name)}</th>" for i, name in enumerate(header))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    return f"""<!doctype html><meta charset=utf-8><title>ctrkit models</title>
<style>body{{font:14px sans-serif}}table{{border-collapse:collapse}}td,th{{padding:4px 10px;border-bottom:1px solid #ddd;text-align:left}}
th{{cursor:pointer;background:#f4f4f4}}</style>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<script>
function sortBy(column) {{
  const body = document.querySelector("tbody"), rows = [...body.rows], value = row => row.cells[column].textContent.replaceAll(",", "");
  const down = body.dataset.column == column && body.dataset.down != "yes";
  rows.sort((a, b) => {{ const x = parseFloat(value(a)), y = parseFloat(value(b));
    return (isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y) * (down ? -1 : 1); }});
  body.dataset.column = column; body.dataset.down = down ? "yes" : "no"; body.append(...rows);
}}
</script>
"""
