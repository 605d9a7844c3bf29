"""``ctrkit bench prepare``: rows per second of ``prepare``, against the same encoding written plainly in pandas.

Both sides read the same Criteo-layout file (label, 13 counts, 26 categories, tab-separated), each in a process of its own, and
write the same ids and floats; the benchmark checks that they are the same.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

COUNTS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]
COLUMNS = ["label", *COUNTS, *CATEGORIES]
MIN_COUNT = 2


def bench_prepare(rows: int = 2_000_000, seed: int = 0, console: "Console | None" = None) -> dict[str, Any]:
    """Measures both sides and prints a table.

    Args:
        rows: of the file, made by repeating and perturbing ``$CTRKIT_DATA/criteo-80k`` (without it, a synthetic one).

    Returns:
        {rows, source, ctrkit: {rows_per_s, seconds, peak_mb}, pandas: {...}, ratio, identical}.
    """
    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.tsv"
        source = make_log(log, rows, seed)
        sides = {side: _measure(side, log, Path(folder) / side, rows) for side in ("ctrkit", "pandas")}
        identical = _identical(Path(folder) / "ctrkit", Path(folder) / "pandas")
    ratio = sides["ctrkit"]["rows_per_s"] / sides["pandas"]["rows_per_s"]

    table = Table(title=f"prepare: {rows:,} rows of {source}, 39 features")
    for heading in ("", "rows/s", "seconds", "peak MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for side, figures in sides.items():
        table.add_row(side, f"{figures['rows_per_s']:,.0f}", f"{figures['seconds']:.1f}", f"{figures['peak_mb']:,.0f}")
    console = console or Console()
    console.print(table)
    console.print(f"ctrkit is {ratio:.1f} times as fast; the ids are {'the same' if identical else 'NOT the same'}")
    return {"rows": rows, "source": source, **sides, "ratio": ratio, "identical": identical}


def make_log(file: Path, rows: int, seed: int) -> str:
    """Writes a Criteo-layout file; every tenth cell of a repeated row is another row's. Returns what it was made from."""
    import numpy as np
    import polars as pl

    folder = os.environ.get("CTRKIT_DATA")
    original = Path(folder) / "criteo-80k" / "criteo_80k.tsv.gz" if folder else None
    random = np.random.default_rng(seed)
    if original is not None and original.exists():
        source = "criteo-80k, repeated and perturbed"
        base = pl.read_csv(original, separator="\t", has_header=False, new_columns=COLUMNS, infer_schema=False)
    else:
        source = "a synthetic log"
        base = _synthetic(80_000, random)
    with file.open("wb") as out:
        written = 0
        while written < rows:
            columns = [base["label"]]
            for name in COLUMNS[1:]:
                taken = np.arange(base.height)
                swapped = random.random(base.height) < 0.1
                taken[swapped] = random.integers(0, base.height, swapped.sum())
                columns.append(base[name].gather(taken))
            part = pl.DataFrame(columns).head(rows - written)
            part.write_csv(out, separator="\t", include_header=False)
            written += part.height
    return source


def _synthetic(rows: int, random: Any) -> Any:
    import polars as pl

    columns = [pl.Series("label", (random.random(rows) < 0.25).astype(int)).cast(pl.String)]
    for name in COUNTS:
        counts = pl.Series(name, random.lognormal(2, 1.5, rows).astype(int)).cast(pl.String)
        columns.append(counts.set(pl.Series(random.random(rows) < 0.2), None))
    for index, name in enumerate(CATEGORIES):
        values = random.zipf(1.3, rows) % int(10 ** (1 + index % 5))
        columns.append(pl.Series(name, [f"{value:08x}" for value in values]))
    return pl.DataFrame(columns)


def _measure(side: str, log: Path, out: Path, rows: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.bench.prepare", side, str(log), str(out)], check=True, stdout=subprocess.PIPE, text=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    return {"rows_per_s": rows / figures["seconds"], **figures}


def _identical(ctrkit: Path, pandas: Path) -> bool:
    """Whether both sides wrote the same ids, and floats equal within rounding, for the validation split."""
    import numpy as np
    import polars as pl

    ours, theirs = pl.read_parquet(ctrkit / "valid" / "*.parquet"), pl.read_parquet(pandas / "valid.parquet")
    same_ids = all(ours[name].equals(theirs[name]) for name in CATEGORIES)
    return same_ids and all(np.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5, equal_nan=True) for name in COUNTS)


def run_ctrkit(log: Path, out: Path) -> None:
    from ctrkit.config import Experiment
    from ctrkit.data.prepare import prepare

    experiment = Experiment.model_validate(
        {
            "name": "bench",
            "data": {"path": str(log), "header": False, "columns": COLUMNS},
            "label": "label",
            "split": {"by": "order", "valid": 0.1, "test": 0.1},
            "features": [
                {"name": COUNTS, "kind": "numeric", "transform": {"kind": "log1p"}},
                {"name": CATEGORIES, "kind": "categorical", "transform": {"kind": "vocabulary", "min_count": MIN_COUNT}},
            ],
        }
    )
    prepare(experiment, out)


def run_pandas(log: Path, out: Path) -> None:
    """What one writes first: read all, count, map, standardise, write."""
    import numpy as np
    import pandas as pd

    out.mkdir()
    frame: Any = pd.read_csv(log, sep="\t", header=None, names=COLUMNS, dtype=dict.fromkeys(CATEGORIES, str))
    valid, test = round(0.1 * len(frame)), round(0.1 * len(frame))
    train = len(frame) - valid - test
    for name in COUNTS:
        values = np.sign(frame[name]) * np.log1p(frame[name].abs())
        frame[name] = ((values - values[:train].mean()) / values[:train].std(ddof=0)).astype("float32")
    for name in CATEGORIES:
        values = frame[name].fillna("")
        counts = values[:train].value_counts().rename_axis("value").reset_index(name="count")
        counts = counts[counts["count"] >= MIN_COUNT].sort_values(["count", "value"], ascending=[False, True])
        ids = pd.Series(range(2, 2 + len(counts)), index=counts["value"])
        frame[name] = values.map(ids).fillna(1).astype("int64")
    for split, rows in (("train", frame[:train]), ("valid", frame[train : train + valid]), ("test", frame[train + valid :])):
        rows.to_parquet(out / f"{split}.parquet", index=False)


def main(side: str, log: str, out: str) -> None:
    started = time.perf_counter()
    {"ctrkit": run_ctrkit, "pandas": run_pandas}[side](Path(log), Path(out))
    seconds = time.perf_counter() - started
    from ctrkit.data.prepare import peak_mb

    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
