"""What the other services do with a request: a NumPy array for each column, and ``session.run``, one thread a run as ctrkit has it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime

from ctrkit.bundle import MODEL_FILE, Bundle, output_names
from ctrkit.schema import MISSING_INT, Feature, Kind

Values = Callable[[str], list[Any]]
"""A feature's cells by its name, None where one is missing."""


class PlainModel:
    """A bundle's graph, asked with columns of Python values.

    Args:
        bundle: whose multi-valued cells are lists.
    """

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(bundle.path / MODEL_FILE), options, providers=["CPUExecutionProvider"])
        self._outputs = list(output_names(bundle.tasks))
        self._features = bundle.features

    def score(self, values: Values) -> list[float]:
        """A probability a row."""
        return np.asarray(self._session.run(self._outputs, _feed(self._features, values))[0]).tolist()


def _feed(features: Sequence[Feature], values: Values) -> dict[str, np.ndarray]:
    feed: dict[str, np.ndarray] = {}
    for feature in features:
        cells = values(feature.name)
        if feature.kind is Kind.NUMERIC:
            feed[feature.name] = np.array([np.nan if cell is None else cell for cell in cells], np.float64)
            continue
        missing, dtype = ("", object) if feature.dtype == "string" else (MISSING_INT, np.int64)
        if feature.multi_valued:
            bags = [cell or [] for cell in cells]
            feed[f"{feature.name}.values"] = np.array([element for bag in bags for element in bag], dtype)
            feed[f"{feature.name}.lengths"] = np.array([len(bag) for bag in bags], np.int64)
        else:
            feed[feature.name] = np.array([missing if cell is None else cell for cell in cells], dtype)
    return feed
