"""``ctrkit evaluate``: a run's metrics on a split."""

from pathlib import Path
from typing import Any

from ctrkit.training.evaluate import evaluate_run
from pipelines.terminal import Terminal
from pipelines.train import print_metrics


def evaluate_split(run: Path, split: str, screen: Terminal) -> dict[str, Any]:
    """Returns ``{split, metrics}``."""
    result = evaluate_run(run, split)
    print_metrics({split: result["metrics"]}, screen)
    return result
