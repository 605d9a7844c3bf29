"""A finished run of towers, measured anew on a split."""

from pathlib import Path
from typing import Any

import torch

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.encode import Encoder, TowerRecommender
from ctrkit.retrieval.methods import method_of
from ctrkit.retrieval.run import dataset_of, read_run, read_weights
from ctrkit.retrieval.towers import reload
from ctrkit.retrieval.trainer import evaluate


def evaluate_run(run: Path, split: str) -> dict[str, Any]:
    """``{metrics, slices}`` of the run's best weights.

    Raises:
        CtrkitError: no finished run of towers, its dataset is gone, or no such split.
    """
    experiment = read_run(run)
    method, settings = method_of(experiment.model)
    if method.build is None:
        raise CtrkitError(f"the run '{run}' is of '{method.name}', whose weights are not kept", "Its figures are in result.json")
    dataset, weights = dataset_of(run), read_weights(run)
    towers = method.build(dataset, experiment.embedding.dim, settings)
    model = reload(towers, weights, dataset.query_inputs, dataset.item_inputs, experiment.embedding)
    encoder = Encoder(model, dataset.query_inputs, dataset.item_inputs, torch.device("cpu"))
    return evaluate(experiment, dataset, TowerRecommender(encoder, dataset), split)
