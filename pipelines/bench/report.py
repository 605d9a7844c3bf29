"""A benchmark's table: means and spreads over seeds, the same columns whatever is compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

HEADER = ["test AUC", "logloss", "seeds", "parameters", "samples/s", "chosen settings"]
"""Of ``cells``."""


def averages(settings: tuple[str, ...], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Test metrics, size and speed of the same settings with several seeds."""
    auc, logloss = ([run["test"][metric] for run in runs] for metric in ("auc", "logloss"))
    return {
        "auc": mean(auc),
        "auc_std": pstdev(auc),
        "logloss": mean(logloss),
        "logloss_std": pstdev(logloss),
        "seeds": len(runs),
        "params": runs[0]["params"],
        "samples_per_s": round(mean(run["samples_per_s"] for run in runs)),
        "settings": " ".join(settings),
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """``averages`` for people; one seed has no spread."""

    def metric(name: str) -> str:
        spread = f" ± {row[f'{name}_std']:.4f}" if row["seeds"] > 1 else ""
        return f"{row[name]:.4f}{spread}"

    return [
        metric("auc"),
        metric("logloss"),
        str(row["seeds"]),
        f"{row['params']:,}",
        f"{row['samples_per_s']:,}",
        row["settings"],
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> None:
    path.write_text(markdown_table(header, rows), encoding="utf8")
