"""Does the exported graph predict what the trained model predicts, skew included? Raw rows in, two ways to a probability."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.bundle import run_graph
from ctrkit.data.batch import Batch
from ctrkit.embeddings.crosses import Crosses
from ctrkit.errors import CtrkitError
from ctrkit.export.cross import CROSSED
from ctrkit.export.twin import Twin
from ctrkit.feeds import columns_to_feed, frame_to_columns
from ctrkit.schema import MISSING_INT, Feature, Inputs, Kind
from ctrkit.transforms import FittedTransforms, canonical_dtype

TOLERANCE = 1e-5
MANY_ROWS = 10_000

Reference = Callable[[Batch], np.ndarray]
"""The trained model: encoded rows -> probabilities ``[rows]``, or ``[rows, tasks]``."""


@dataclass(frozen=True)
class Checked:
    """The check's outcome: the largest difference, and the golden rows' probabilities as the graph gives them."""

    max_abs_diff: float
    probabilities: np.ndarray


def check(
    session: Any,
    twin: Twin,
    reference: Reference,
    transforms: FittedTransforms,
    golden: pl.DataFrame,
    crosses: Crosses | None = None,
) -> Checked:
    """Compares trained model, twin and graph on golden rows, rows of nothing, of unknown values, one row and 10,000 rows.

    The trained model and the twin get ids encoded by Polars, the graph gets the raw values.

    Args:
        session: onnxruntime's, on the graph as written to disk.
        golden: canonical raw rows.
        crosses: of the trained model.

    Raises:
        CtrkitError: a difference above 1e-5, or a probability that is no number.
    """
    features, tasks = transforms.features, twin.inputs.tasks
    worst, golden_probabilities = 0.0, np.empty(0)
    for name, frame in checked_rows(features, golden).items():
        encoded = transforms.encode(frame)
        exported = run_graph(session, tasks, columns_to_feed(frame_to_columns(frame, features), features))
        batch, tensors = to_batch(encoded, transforms.inputs), to_tensors(encoded, transforms.inputs)
        if crosses is not None:
            tensors[CROSSED] = crosses.ids(batch.sparse).T
        trained = reference(batch)
        with torch.no_grad():
            rebuilt = twin(tensors).numpy()
        for other, probabilities in (("ONNX", exported), ("serving twin", rebuilt)):
            if probabilities.shape != (frame.height, *([len(tasks)] if tasks else [])):
                raise CtrkitError(f"the {other} model gives {probabilities.shape} probabilities for {frame.height} rows")
            difference = np.abs(probabilities.astype(np.float64) - trained)
            largest = float(difference.max())
            worst = max(worst, largest)
            if not largest <= TOLERANCE:  # NaN too
                place = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
                of = f" of '{tasks[place[1]]}'" if tasks else ""
                raise CtrkitError(
                    f"the {other} model is not the trained one: on the {name} rows, row {place[0]}, it gives {probabilities[place]:.7g}{of} "
                    f"and the trained model {trained[place]:.7g}; {TOLERANCE:g} is allowed",
                    "Nothing was exported. This is a fault of ctrkit or of a model of your own: please report it with the run's config.yaml",
                )
        if frame is golden:
            golden_probabilities = exported
    return Checked(worst, golden_probabilities)


def checked_rows(features: Sequence[Feature], golden: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Canonical raw rows that every exported graph is checked on, by what they are."""
    missing, unknown = _missing(features), _unknown(features, golden)
    everything = pl.concat([golden, missing, unknown])
    many = pl.concat([everything] * -(-MANY_ROWS // everything.height)).head(MANY_ROWS)
    return {"golden": golden, "missing": missing, "unknown": unknown, "one": golden.head(1), f"{MANY_ROWS:,}": many}


def to_batch(encoded: pl.DataFrame, inputs: Inputs) -> Batch:
    """Encoded rows -> the batch a trained model takes; labels are zeros."""
    values, lengths = [], []
    for field in inputs.id_fields:
        column = encoded[field.name]
        lengths.append(column.list.len().cast(pl.Int32) if field.multi_valued else pl.repeat(1, len(column), dtype=pl.Int32, eager=True))
        values.append(column.explode(empty_as_null=False) if field.multi_valued else column)
    sparse = KeyedJaggedTensor(
        keys=[field.name for field in inputs.id_fields],
        values=_tensor(pl.concat(values)) if values else torch.empty(0, dtype=torch.int64),
        lengths=_tensor(pl.concat(lengths)) if lengths else torch.empty(0, dtype=torch.int32),
        stride=encoded.height,
    )
    dense = [_tensor(encoded[name]) for name in inputs.numeric_fields]
    return Batch(sparse, torch.stack(dense, dim=1) if dense else torch.empty(encoded.height, 0), torch.zeros(encoded.height))


def to_tensors(encoded: pl.DataFrame, inputs: Inputs) -> dict[str, Tensor]:
    """Encoded rows -> what the twin takes."""
    tensors: dict[str, Tensor] = {}
    for field in inputs.id_fields:
        column = encoded[field.name]
        if field.multi_valued:
            tensors[f"{field.name}@ids"] = _tensor(column.explode(empty_as_null=False))
            tensors[f"{field.name}.lengths"] = _tensor(column.list.len().cast(pl.Int64))
        else:
            tensors[f"{field.name}@id"] = _tensor(column)
    return tensors | {f"{name}@dense": _tensor(encoded[name]) for name in inputs.numeric_fields}


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy(writable=True))


def _missing(features: Sequence[Feature]) -> pl.DataFrame:
    """One row without any value."""
    return _one_row(features, {"string": "", "int": MISSING_INT}, [], float("nan"))


def _unknown(features: Sequence[Feature], golden: pl.DataFrame) -> pl.DataFrame:
    """One row of values that no log holds; numbers are the first golden row's."""
    row = _one_row(features, {"string": "\ue000 never seen", "int": 2**62 + 12_345}, None, 0.0)
    numbers = [feature.name for feature in features if feature.kind is Kind.NUMERIC]
    return row.with_columns(golden.head(1).select(numbers)).select(row.columns)


def _one_row(features: Sequence[Feature], ids: Mapping[str, str | int], bag: list[Any] | None, number: float) -> pl.DataFrame:
    columns = []
    for feature in features:
        value: Any = number if feature.kind is Kind.NUMERIC else ids[feature.dtype]
        if feature.multi_valued:
            value = [value] if bag is None else bag
        columns.append(pl.Series(feature.name, [value], dtype=canonical_dtype(feature)))
    return pl.DataFrame(columns)
