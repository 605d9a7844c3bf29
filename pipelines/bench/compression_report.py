"""The report of ``ctrkit bench compression``, computed from its ``results.parquet``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.bench.page import Block, Heading, Paragraph, Picture, Table, write_page

BYTES_PICTURE, LATENCY_PICTURE = "pareto-bytes.png", "pareto-latency.png"
SLOWER, NEAR = 1.1, 0.001
MEANS = (
    "valid_auc",
    "test_auc",
    "test_logloss",
    "embedding_bytes",
    "share",
    "bundle_bytes",
    "latency_ratio_1",
    "latency_ratio_1024",
    "lookup_ratio",
    "seconds",
)
HEADER = [
    "method",
    "kind",
    "seeds",
    "test AUC",
    "against full",
    "test logloss",
    "stored",
    "bundle MB",
    "latency, 1 row",
    "latency, 1024 rows",
    "look-up",
    "training s",
]

Row = Mapping[str, Any]


def write_report(frame: pl.DataFrame, title: str, out: Path) -> list[dict[str, Any]]:
    """Writes the report and its pictures.

    Args:
        frame: as ``pipelines.bench.compression.COLUMNS``; the uncompressed table is the method ``none``.

    Returns:
        ``averages`` of the frame.
    """
    rows = averages(frame)
    reference, compressed = rows[0], rows[1:]
    _plot(rows, "embedding_bytes", "stored bytes of the embeddings", title, out / BYTES_PICTURE)
    if any(row["latency_ratio_1024"] is not None for row in compressed):
        _plot(rows, "latency_ratio_1024", "latency of 1024 rows, the uncompressed bundle is 1", title, out / LATENCY_PICTURE)
    blocks: list[Block] = [
        Paragraph(
            "Means over seeds, ± one standard deviation. Weights are those that are best on validation. Stored: all bytes of the embeddings, "
            "indices and codes included, as a share of the full table's. Latency: ONNX Runtime with one thread, next to the uncompressed "
            "bundle in the same process, which is 1; look-up: forward and backward of the embeddings alone, the plain table is 1."
        ),
        Heading("Uncompressed"),
        Table(HEADER, [_cells(reference, reference)]),
    ]
    for budget in _budgets(frame):
        own = sorted((row for row in compressed if row["budget"] == budget), key=lambda row: -row["test_auc"])
        blocks += [Heading(f"Budget {budget:g}"), Table(HEADER, [_cells(row, reference) for row in own])]
        refused = frame.filter(~pl.col("reached"), pl.col("budget") == budget).unique("method", maintain_order=True)
        blocks += [Paragraph(f"Not reached by {row['method']}: {row['message']}") for row in refused.to_dicts()]
    blocks += [Heading("Which to use"), *_advice(compressed)]
    pictures = [(BYTES_PICTURE, "Test AUC against stored bytes"), (LATENCY_PICTURE, "Test AUC against latency")]
    blocks += [Heading("Pictures"), *(Picture(file, caption) for file, caption in pictures if (out / file).exists())]
    write_page(title, blocks, out)
    return rows


def averages(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """One row a method and budget that was reached, the uncompressed table first: means over seeds, ``test_auc_std`` and
    ``test_logloss_std``."""
    return (
        frame.filter("reached")
        .group_by("data", "method", "kind", "budget", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            *(pl.col(name).mean() for name in MEANS),
            *(pl.col(name).std(ddof=0).alias(f"{name}_std") for name in ("test_auc", "test_logloss")),
        )
        .sort(pl.col("method") != "none", maintain_order=True)
        .to_dicts()
    )


def _budgets(frame: pl.DataFrame) -> list[float]:
    return frame.filter(pl.col("method") != "none")["budget"].unique().sort(descending=True).to_list()


def _cells(row: Row, reference: Row) -> list[str]:
    def spread(name: str) -> str:
        return f"{row[name]:.4f}" + (f" ± {row[f'{name}_std']:.4f}" if row["seeds"] > 1 else "")

    def measured(name: str, form: Callable[[float], str]) -> str:
        return "-" if row[name] is None else form(row[name])

    return [
        row["method"],
        row["kind"],
        str(row["seeds"]),
        spread("test_auc"),
        "-" if row is reference else f"{row['test_auc'] - reference['test_auc']:+.4f}",
        spread("test_logloss"),
        f"{row['share']:.3%}",
        measured("bundle_bytes", lambda value: f"{value / 1e6:.2f}"),
        *(measured(name, lambda value: f"{value:.2f}x") for name in ("latency_ratio_1", "latency_ratio_1024", "lookup_ratio")),
        f"{row['seconds']:.1f}",
    ]


def _advice(rows: Sequence[Row]) -> list[Block]:
    """The best on VALIDATION for each use and budget, with its test AUC."""

    def best(candidates: Sequence[Row]) -> Row | None:
        return max(candidates, key=lambda row: row["valid_auc"], default=None)

    table = []
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        own = [row for row in rows if row["budget"] == budget]
        fast = [row for row in own if _slowest(row) <= SLOWER]
        top = max(row["valid_auc"] for row in own)
        quickest = min((row for row in own if row["valid_auc"] >= top - NEAR), key=lambda row: row["seconds"])
        table.append([f"{budget:g}", *map(_named, (best(own), best(fast), quickest))])
    header = ["budget", "best AUC", f"best AUC, served at most {SLOWER}x as slowly", f"fastest training within {NEAR} of the best AUC"]
    return [Paragraph("Chosen by AUC on validation, mean over seeds; the figure is the test AUC."), Table(header, table)]


def _slowest(row: Row) -> float:
    """Latency of 1 or of 1024 rows, whichever is worse; one that was not measured is no candidate."""
    ratios = (row["latency_ratio_1"], row["latency_ratio_1024"])
    return float("inf") if None in ratios else max(ratios)


def _named(row: Row | None) -> str:
    return "none" if row is None else f"{row['method']} ({row['test_auc']:.4f})"


def _plot(rows: Sequence[Row], x: str, label: str, title: str, path: Path) -> None:
    """Test AUC against ``x``, a line a method over its budgets, bars of one standard deviation; the uncompressed level is a dashed line."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.subplots()
    reference, compressed = rows[0], [row for row in rows[1:] if row[x] is not None]
    axes.axhline(reference["test_auc"], color="black", linestyle="--", linewidth=1, label="uncompressed")
    for number, method in enumerate(dict.fromkeys(row["method"] for row in compressed)):
        line = sorted((row[x], row["test_auc"], row["test_auc_std"]) for row in compressed if row["method"] == method)
        places, auc, spread = zip(*line, strict=True)
        style = {"color": colormaps["tab20"](number % 20), "marker": "osD^v"[number % 5]}
        axes.errorbar(places, auc, spread, label=method, capsize=2, linewidth=1.2, markersize=4, **style)
    axes.set(xscale="log", xlabel=label, ylabel="test AUC")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3, linewidth=0.6)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=120)
