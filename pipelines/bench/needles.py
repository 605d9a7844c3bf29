"""A synthetic log with known relevant features among noise, at every number of values.

Relevant feature j has a weight for each of its values; the click's logit is the sum of all of them. Noise features are drawn from the same
distributions of values and have none; some have nearly as many values as there are rows, where a plain count of mutual information sees most.
"""

from pathlib import Path

import numpy as np
import polars as pl

from ctrkit.config import Experiment

RELEVANT = (2, 3, 5, 8, 12, 20, 40, 80, 150, 300)
"""Values of each relevant feature."""
NOISE = (*RELEVANT, *RELEVANT, 1_000, 3_000, 10_000)
"""Values of each noise feature."""
STRENGTHS = (0.6, 0.4, 0.3)
"""Standard deviation of the weights of a relevant feature's values, in turn."""


def write_needles(rows: int, seed: int, folder: Path, output: Path) -> tuple[Experiment, frozenset[str]]:
    """Writes the log and gives its experiment, and the names of the relevant features.

    Args:
        folder: of the log.
        output: of datasets and runs.
    """
    rng = np.random.default_rng(seed)
    logit = np.full(rows, -1.0)
    columns: dict[str, list[str]] = {}
    relevant = []
    for number, count in enumerate(RELEVANT):
        codes = _codes(rng, rows, count)
        weights = rng.normal(size=count)
        spread = weights[codes].std() or 1.0
        logit += STRENGTHS[number % len(STRENGTHS)] * (weights[codes] - weights[codes].mean()) / spread
        relevant.append(f"needle_{number:02d}_of_{count}")
        columns[relevant[-1]] = [f"v{code}" for code in codes]
    for number, count in enumerate(NOISE):
        columns[f"noise_{number:02d}_of_{count}"] = [f"v{code}" for code in _codes(rng, rows, count)]
    names = list(columns)
    rng.shuffle(names)
    frame = pl.DataFrame({name: columns[name] for name in names})
    clicks = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    path = folder / f"needles-{rows}-{seed}.parquet"
    if not path.exists():  # a dataset is of a file's time too
        folder.mkdir(parents=True, exist_ok=True)
        frame.with_columns(click=clicks).write_parquet(path)
    experiment = Experiment.model_validate(
        {
            "name": path.stem,
            "data": {"path": str(path)},
            "label": "click",
            "split": {"by": "order", "valid": 0.15, "test": 0.15},
            "features": [{"name": name, "kind": "categorical"} for name in names],
            "model": {"name": "deepfm", "hidden": [32], "dropout": 0.1},
            "embedding": {"dim": 4},
            "training": {"batch_size": 512, "epochs": 10},
            "output": str(output),
        }
    )
    return experiment, frozenset(relevant)


def _codes(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """``[rows]`` below ``count``; value v is drawn as often as 1 / (v + 3)."""
    shares = 1 / (np.arange(count) + 3)
    return rng.choice(count, rows, p=shares / shares.sum())
