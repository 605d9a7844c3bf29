"""``ctrkit train``: prepare if need be, then train."""

import os
from pathlib import Path
from typing import Any

from ctrkit.config import Experiment
from ctrkit.data.dataset import dataset_dir, open_dataset
from ctrkit.errors import CtrkitError
from ctrkit.training.check import check_experiment
from ctrkit.training.trainer import train
from pipelines.prepare import prepared
from pipelines.terminal import Terminal


def train_experiment(experiment: Experiment, run_dir: Path | None, resume: bool, screen: Terminal) -> dict[str, Any]:
    """Trains the experiment's model on its dataset.

    Returns:
        ``{run, valid, test, samples_per_s, params, epochs, seconds, ..}``; ``valid`` and ``test`` hold the metrics of the best weights.
    """
    check_experiment(experiment)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and open_dataset(experiment) is None:
        raise CtrkitError(
            f"several processes train on a prepared dataset, and there is none at '{dataset_dir(experiment)}'",
            "Run ctrkit prepare CONFIG first",
        )
    dataset = prepared(experiment, screen)
    result = train(experiment, dataset, run_dir=run_dir, resume=resume, console=screen.console)
    print_metrics({"valid": result.valid, "test": result.test}, screen)
    screen.console.print(f"Run: {result.run}", style="green", markup=False)
    return result.to_json()


def print_metrics(splits: dict[str, dict[str, float]], screen: Terminal) -> None:
    """A table of metrics, one row a split, or one a split and task."""
    names = list(dict.fromkeys(name for metrics in splits.values() for name in metrics if "/" not in name))
    rows = []
    for split, metrics in splits.items():
        tasks = dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name)
        for title, prefix in [(f"{split} {task}", f"{task}/") for task in tasks] or [(split, "")]:
            if metrics:
                rows.append((title, *(f"{metrics[prefix + name]:.5f}" if prefix + name in metrics else "-" for name in names)))
    screen.table(("split", *names), rows)
