"""A finished run, measured anew on a split."""

from pathlib import Path
from typing import Any

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.methods import method_of
from ctrkit.retrieval.run import dataset_of, read_run, read_weights
from ctrkit.retrieval.trainer import evaluate


def evaluate_run(run: Path, split: str) -> dict[str, Any]:
    """``{metrics, slices}`` of the run's best weights.

    Raises:
        CtrkitError: no finished run of a method that keeps its weights, its dataset is gone, or no such split.
    """
    experiment = read_run(run)
    method, settings = method_of(experiment.model)
    if method.load is None:
        raise CtrkitError(f"the run '{run}' is of '{method.name}', whose weights are not kept", "Its figures are in result.json")
    dataset = dataset_of(run)
    trained = method.load(experiment, dataset, read_weights(run), settings)
    return evaluate(experiment, dataset, trained.recommender(dataset), split)
