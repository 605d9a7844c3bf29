"""Mutual information between the features of items, each item counting once."""

from typing import Any

import numpy as np
from scipy import sparse

from ctrkit.retrieval.rows import Rows, offsets_of
from ctrkit.schema import Inputs

_NUMBER_BUCKETS = 16


def mutual_information(rows: Rows, inputs: Inputs) -> np.ndarray:
    """``I(V_i; V_j)`` in nats, ``[fields, fields]``, id fields first: the paper's (Yao et al., CIKM 2021) measure of correlation.

    A bag is a draw of one of its values, an empty one a value of its own. A number is one of 16 buckets of equal mass, a missing one a
    bucket of its own.
    """
    columns = [_of_bag(*rows.bags[f.name]) if f.multi_valued else _of_values(rows.ids[f.name]) for f in inputs.id_fields]
    columns += [_of_values(_bucketed(rows.numbers[name])) for name in inputs.numeric_fields]
    count = len(columns)
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(i, count):
            found[i, j] = found[j, i] = _information(columns[i], columns[j])
    return found


def _information(a: Any, b: Any) -> float:
    """Of the joint distribution ``sum over items of p(a | item) p(b | item) / items``."""
    items = a.shape[0]
    joint = sparse.coo_array(a.T @ b)
    p = joint.data / items
    of_a, of_b = (np.asarray(side.sum(0)).ravel() / items for side in (a, b))
    return float((p * np.log(p / (of_a[joint.row] * of_b[joint.col]))).sum())


def _of_values(values: np.ndarray) -> sparse.csr_array:
    """``p(value | item)``, ``[items, distinct values]``."""
    return _of_bag(values, np.arange(len(values) + 1))


def _of_bag(values: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
    lengths = np.diff(offsets)
    filled = offsets_of(np.maximum(lengths, 1))
    all_values = np.full(filled[-1], -1, np.int64)  # -1 is that of an empty bag
    all_values[np.repeat(filled[:-1] - offsets[:-1], lengths) + np.arange(offsets[-1])] = values
    distinct, codes = np.unique(all_values, return_inverse=True)
    sizes = np.diff(filled)
    row = np.repeat(np.arange(len(sizes)), sizes)
    return sparse.csr_array(sparse.coo_array((1 / np.repeat(sizes, sizes), (row, codes)), shape=(len(sizes), len(distinct))))


def _bucketed(numbers: np.ndarray) -> np.ndarray:
    known = numbers[~np.isnan(numbers)]
    edges = np.unique(np.quantile(known, np.arange(1, _NUMBER_BUCKETS) / _NUMBER_BUCKETS)) if len(known) else np.empty(0)
    return np.where(np.isnan(numbers), -1, np.searchsorted(edges, numbers, side="right"))
