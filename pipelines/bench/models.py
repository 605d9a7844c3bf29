"""``ctrkit bench models``: models x data sets x seeds through ``ctrkit train``, resumable, with a report.

Settings are chosen for each data set and model as ``pipelines.bench.trials`` does. The report is of all that the folder holds, so that
models may be given grids of their own, one call after the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrkit.config import Experiment
from ctrkit.config_file import load_config, to_yaml
from ctrkit.errors import CtrkitError
from ctrkit.training.monitor import monitored
from pipelines.bench.report import HEADER, averages, cells, write_markdown
from pipelines.bench.settings_file import keep
from pipelines.bench.trials import Trial, Trials, grid_points, settings_of_models


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

    Raises:
        CtrkitError: an unknown model, a config that is no longer what ``out`` was measured with, or no training ended well.
    """
    from ctrkit.models.registry import models as known_models

    settings_of = settings_of_models(models)
    trials = Trials(out, say)
    for config in configs:
        experiment = load_config(config)
        keep(to_yaml(experiment), out / "configs" / f"{experiment.name}.yaml")
        for model in models or [info.name for info in known_models() if info.kind in _kinds(experiment)]:
            trials.measure(config, model, grid_points(grid, settings_of[model]), seeds, experiment.training.monitor)
    rows = summarise(trials.results)
    if not rows:
        raise CtrkitError("no training ended well: the reasons are above", "Mend the config or the settings")
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
            first = {
                trial.settings: monitored(result["valid"], experiment.training.monitor) for trial, result in own.items() if trial.seed == 1
            }
            best = max(first, key=lambda settings: first[settings])
            runs = [result for trial, result in own.items() if trial.settings == best]
            rows.append({"data": experiment.name, "model": model, **averages(best, runs)})
    return sorted(rows, key=lambda row: (row["data"], -row["auc"]))


def _report(rows: list[dict[str, Any]], out: Path) -> None:
    import polars as pl

    pl.DataFrame(rows).write_csv(out / "table.csv")
    header = ["data", "model", *HEADER]
    table = [[row["data"], row["model"], *cells(row)] for row in rows]
    write_markdown(header, table, out / "table.md")
    (out / "table.html").write_text(_html(header, table))


def _html(header: list[str], table: list[list[str]]) -> str:
    """A table that sorts by the column clicked on."""
    import html

    head = "".join(f"<th onclick=sortBy({i})>{html.escape(name)}</th>" for i, name in enumerate(header))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table)
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
