"""``ctrkit bench unified``: one multiplexed table against a table a feature, at equal numbers of parameters.

The claim of Coleman et al. (NeurIPS 2023): the multiplexed table is on the Pareto front of parameters and accuracy. A budget is a
number of rows as wide as the config's ``embedding.dim``, all features together. At each budget there are

- ``tables in proportion``: a hash table a feature, its rows in proportion to its number of distinct values;
- ``tables with equal caps``: a feature gets a row for each of its values if they are no more than a cap that is the same for all, and a
  hash table of as many rows as the cap otherwise. Features of few values, which a proportional split leaves with a handful of rows for
  all of them, collide nowhere: the stronger baseline where such features matter;
- ``unified``: one table of all the rows;
- ``unified x k``: k look-ups a field, each 1/k as wide, in a table of k times the rows.

A bucketised number has a row for each bucket in the first two, counted in the budget, and its buckets are hashed into the shared table in
the others. A sequence is looked up where its target is. A field's vector is equally wide in all of them, so the dense arch is the same;
tables of another width, such as first-order weights, have the same numbers of rows and no place in the budget. Beside them stands
``vocabulary``: a row for every value seen in training.

Every one is a config of its own below the output folder, trained by ``ctrkit train`` with every seed; with a grid, settings are chosen on
validation with the first seed, for each budget and scheme apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrkit.config import Embedding, Experiment, UnifiedEmbedding
from ctrkit.config_file import load_config, to_yaml
from ctrkit.data.dataset import open_dataset
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError
from ctrkit.schema import Feature, Hash, Kind, Vocabulary
from pipelines.bench.budgets import LEAST_ROWS, equal_caps, in_proportion
from pipelines.bench.report import HEADER, averages, cells, write_markdown
from pipelines.bench.settings_file import keep
from pipelines.bench.trials import Trials, grid_points, settings_of_models

MANY_BUCKETS = 2**31 - 1


@dataclass(frozen=True)
class Scheme:
    """One way to spend a budget of rows; the vocabulary's is what it needs."""

    name: str
    budget: int
    experiment: Experiment

    @property
    def file(self) -> str:
        return f"{self.name.replace(' ', '-')}-{self.budget}.yaml"


def schemes(experiment: Experiment, needed: Mapping[str, int], budgets: Sequence[int], lookups: Sequence[int]) -> list[Scheme]:
    """All that is compared, the vocabulary first.

    Args:
        needed: rows that a table of all values has, padding and unknown included, of each feature with a table of its own.

    Raises:
        CtrkitError: a budget too small, or with nothing to save, or a width that the look-ups do not divide.
    """
    dim = experiment.embedding.dim
    if uneven := [k for k in lookups if dim % k]:
        raise CtrkitError(f"embedding.dim is {dim}, which {uneven[0]} look-ups do not divide", "Choose another --lookups or embedding.dim")
    bucketised = {f.name for f in experiment.features if f.kind is Kind.NUMERIC}
    values = {name: rows for name, rows in needed.items() if name not in bucketised}
    fixed = sum(needed.values()) - sum(values.values())
    common = experiment.embedding.model_dump(include=set(Embedding.model_fields) - {"kind", "dim"})
    tables = Embedding(dim=dim, **common)

    def with_tables(transforms: Mapping[str, Hash | Vocabulary]) -> Experiment:
        return _with_transforms(experiment, transforms).model_copy(update={"embedding": tables})

    hashed = _with_transforms(experiment, {name: Hash(buckets=MANY_BUCKETS) for name in values})
    found = [Scheme("vocabulary", sum(needed.values()), with_tables({name: Vocabulary() for name in values}))]
    for budget in budgets:
        least, most = fixed + LEAST_ROWS * len(values), fixed + sum(values.values())
        if not least <= budget <= most:
            raise CtrkitError(f"a budget of {budget:,} rows is not between {least:,} and {most:,}, a row a value", "Give another --budget")
        proportion = {name: Hash(buckets=rows - 1) for name, rows in in_proportion(values, budget - fixed).items()}
        capped = {
            name: Vocabulary() if rows == values[name] else Hash(buckets=rows - 1)
            for name, rows in equal_caps(values, budget - fixed).items()
        }
        found.append(Scheme("tables in proportion", budget, with_tables(proportion)))
        found.append(Scheme("tables with equal caps", budget, with_tables(capped)))
        for k in lookups:
            shared = UnifiedEmbedding(rows=k * budget, dim=dim // k, lookups=k, **common)
            name = "unified" if k == 1 else f"unified x {k}"
            found.append(Scheme(name, budget, hashed.model_copy(update={"embedding": shared})))
    return found


def bench_unified(
    config: Path,
    overrides: Sequence[str],
    budgets: Sequence[int],
    lookups: Sequence[int],
    seeds: int,
    grid: Sequence[str],
    out: Path,
    say=print,
) -> list[dict[str, Any]]:
    """Runs what is missing in ``out/results.jsonl``, writes ``table.parquet``, ``table.md`` and ``pareto.png`` beside it.

    Returns:
        One row a budget and scheme, with ``on_front`` as the function of that name says.
    """
    base = load_config(config, overrides)
    model = base.model.name
    points = grid_points(grid, settings_of_models([model])[model])
    found = schemes(base, _rows_needed(base), budgets, lookups)
    trials = Trials(out, say)
    for scheme in found:
        keep(to_yaml(scheme.experiment), out / scheme.file)
    rows = []
    for scheme in found:
        if measured := trials.measure(str(out / scheme.file), model, points, seeds, base.training.monitor):
            rows.append({"scheme": scheme.name, "budget": scheme.budget, **averages(*measured)})
    rows = [{**row, "on_front": on_front(row, rows)} for row in rows]
    _report(rows, f"{model} on {base.name}", base.embedding.dim, out)
    return rows


def on_front(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no other row has as high a mean AUC with fewer rows, or a higher one with no more."""
    return not any(
        other["budget"] <= row["budget"] and other["auc"] >= row["auc"] and (other["budget"] < row["budget"] or other["auc"] > row["auc"])
        for other in rows
    )


def _with_transforms(experiment: Experiment, transforms: Mapping[str, Hash | Vocabulary]) -> Experiment:
    """With those in place of the features' own; a sequence has its target's."""

    def changed(feature: Feature) -> Feature:
        transform = transforms.get(feature.of or feature.name, feature.transform)
        return feature.model_copy(update={"transform": transform})

    return experiment.model_copy(update={"features": tuple(changed(feature) for feature in experiment.features)})


def _rows_needed(experiment: Experiment) -> dict[str, int]:
    """Rows of each feature's table if it has one for every value in the training split, or for every bucket."""
    with_tables = [f for f in experiment.features if f.is_id and f.of is None]
    counted = _with_transforms(experiment, {f.name: Vocabulary() for f in with_tables if f.kind is not Kind.NUMERIC})
    dataset = open_dataset(counted) or prepare(counted)
    return {f.name: dataset.profile["features"][f.name]["table_rows"] for f in with_tables}


def _report(rows: list[dict[str, Any]], title: str, dim: int, out: Path) -> None:
    import polars as pl

    if not rows:
        return
    pl.DataFrame(rows).write_parquet(out / "table.parquet")
    table = [
        [f"{row['budget']:,}", row["scheme"], "yes" if row["on_front"] else "", *cells(row)]
        for row in sorted(rows, key=lambda row: row["budget"])
    ]
    write_markdown(["rows", "scheme", "on the front", *HEADER], table, out / "table.md")
    _plot(rows, title, dim, out / "pareto.png")


def _plot(rows: list[dict[str, Any]], title: str, dim: int, path: Path) -> None:
    """Test AUC against the parameters of a budget, a line a scheme, bars of one standard deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["scheme"] for row in rows):
        line = sorted((row["budget"] * dim, row["auc"], row["auc_std"]) for row in rows if row["scheme"] == name)
        params, auc, spread = zip(*line, strict=True)
        style = {"linestyle": "none", "marker": "*", "markersize": 11} if name == "vocabulary" else {"marker": "o", "markersize": 4}
        axes.errorbar(params, auc, spread, label=name, capsize=2, linewidth=1.2, **style)
    axes.set(xscale="log", xlabel="embedding parameters", ylabel="test AUC")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
