"""The report of ``ctrkit bench selection``, computed from its ``results.parquet``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.bench.page import Block, Heading, Paragraph, Picture, Table, write_page


def write_report(frame: pl.DataFrame, out: Path) -> list[dict[str, Any]]:
    """Writes ``report.md``, ``report.html`` and a picture for each log.

    Args:
        frame: as ``pipelines.bench.selection.COLUMNS``.

    Returns:
        One row a log, ranking and number of features: means over seeds, and ``test_auc_std``.
    """
    rows = averages(frame)
    blocks: list[Block] = [
        Paragraph(
            "Test AUC of the config's model trained on the best features of each ranking, mean over seeds ± one standard deviation. "
            "The weights are those that are best on validation. Ranking s: wall time of making the ranking, the training of a model included."
        )
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        tops = sorted({row["top"] for row in own})
        title = f"{data}: {own[0]['features']} features, {own[0]['seeds']} seeds"
        blocks += [Heading(title), Table(["ranking", *(f"best {top}" for top in tops), "ranking s"], _aucs(own, tops))]
        picture = f"selection-{data}.png"
        _plot(own, title, out / picture)
        blocks.append(Picture(picture, f"Test AUC against the number of kept features, {data}"))
        if own[0]["recall"] is not None:
            blocks += [
                Paragraph("Share of the relevant features among the best:"),
                Table(["ranking", *(f"best {top}" for top in tops)], _recalls(own, tops)),
            ]
    write_page("Selecting features by rankings", blocks, out)
    return rows


def averages(frame: pl.DataFrame) -> list[dict[str, Any]]:
    means = ("valid_auc", "test_auc", "train_seconds", "rank_seconds", "recall")
    return (
        frame.group_by("data", "method", "top", "features", maintain_order=True)
        .agg(pl.len().alias("seeds"), *(pl.col(name).mean() for name in means), pl.col("test_auc").std(ddof=0).alias("test_auc_std"))
        .to_dicts()
    )


def _by_method(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    methods: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["method"], {})[row["top"]] = row
    return methods


def _aucs(rows: Sequence[dict[str, Any]], tops: Sequence[int]) -> list[list[str]]:
    def cell(row: dict[str, Any]) -> str:
        spread = f" ± {row['test_auc_std']:.4f}" if row["seeds"] > 1 else ""
        return f"{row['test_auc']:.4f}{spread}"

    return [[method, *(cell(of[top]) for top in tops), f"{of[tops[0]]['rank_seconds']:.1f}"] for method, of in _by_method(rows).items()]


def _recalls(rows: Sequence[dict[str, Any]], tops: Sequence[int]) -> list[list[str]]:
    return [[method, *(f"{of[top]['recall']:.0%}" for top in tops)] for method, of in _by_method(rows).items()]


def _plot(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    for number, (method, of) in enumerate(_by_method(rows).items()):
        tops = sorted(of)
        aucs, spreads = ([of[top][name] for top in tops] for name in ("test_auc", "test_auc_std"))
        style = {"color": "#9ca3af" if method == "random" else colormaps["tab10"](number % 10), "marker": "osD^v"[number % 5]}
        axes.errorbar(tops, aucs, spreads, label=method, capsize=2, linewidth=1.2, markersize=4, **style)
    axes.set(xlabel="features kept", ylabel="test AUC")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3, linewidth=0.6)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=120)
