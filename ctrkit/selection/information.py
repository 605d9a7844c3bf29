"""Mutual information by counting: one table of joint codes a pair, whatever the number of values.

Every sum goes over cells in the order of their counts, not of their codes, so renaming values or reordering rows changes not one bit.
Information is in nats.
"""

from dataclasses import dataclass

import numpy as np

TABLE_CELLS = 1 << 21
"""Joint tables up to so many cells are counted by ``bincount``, 16 MB; for larger ones the rows' joint codes are sorted, which is faster."""


@dataclass(frozen=True)
class Cells:
    """How often each count occurs among the cells of a table, empty cells left out.

    Attributes:
        counts: distinct, rising, from 1, int64 ``[distinct]``.
        times: cells that have that count, int64 ``[distinct]``.
    """

    counts: np.ndarray
    times: np.ndarray

    @property
    def number(self) -> int:
        """Cells that are not empty: a feature's number of values."""
        return int(self.times.sum())

    @property
    def rows(self) -> int:
        return int((self.counts * self.times).sum())

    @property
    def c_log_c(self) -> float:
        """The sum of c log c over all cells."""
        return float((self.times * (self.counts * np.log(self.counts))).sum())

    @property
    def entropy(self) -> float:
        return max(0.0, float(np.log(self.rows)) - self.c_log_c / self.rows)


def cells(table: np.ndarray) -> Cells:
    """Of a table of counts, of any shape."""
    flat = table.reshape(-1)
    if flat.size < 1 << 14:
        counts, times = np.unique(flat, return_counts=True)
    else:
        times = np.bincount(flat)
        counts = np.flatnonzero(times)
        times = times[counts]
    kept = counts > 0
    return Cells(counts[kept].astype(np.int64), times[kept].astype(np.int64))


def information(joint: Cells, first: Cells, second: Cells) -> float:
    """Mutual information of two variables from the cells of their joint table and of each alone; never below 0."""
    rows = joint.rows
    return max(0.0, float(np.log(rows)) + (joint.c_log_c - first.c_log_c - second.c_log_c) / rows)


def joint_table(codes: np.ndarray, size: int, other: np.ndarray, other_size: int) -> np.ndarray:
    """Counts int64 ``[size, other_size]`` of two columns of codes."""
    joint = _joined(codes, other, other_size)
    return np.bincount(joint, minlength=size * other_size).reshape(size, other_size)


def joint_cells(codes: np.ndarray, size: int, other: np.ndarray, other_size: int, label: np.ndarray) -> tuple[Cells, Cells]:
    """The cells of two columns' joint table, and of theirs with the label.

    Args:
        codes: ``[rows]``, below ``size``; ``other`` likewise.
        label: uint8 ``[rows]``, 0 or 1.
    """
    number = 2 * size * other_size
    joint = _joined(codes, other, other_size, np.uint32 if TABLE_CELLS < number <= 2**32 else np.int64)
    joint *= 2
    joint += label
    if number <= TABLE_CELLS:
        table = np.bincount(joint, minlength=number)
        return cells(table[::2] + table[1::2]), cells(table)
    joint.sort()
    stops = np.append(np.flatnonzero(joint[1:] != joint[:-1]) + 1, len(joint))
    pairs = joint[stops - 1] >> 1
    last = np.append(pairs[1:] != pairs[:-1], True)
    return cells(np.diff(stops[last], prepend=0)), cells(np.diff(stops, prepend=0))


def crossed(codes: np.ndarray, other: np.ndarray, other_size: int) -> tuple[np.ndarray, int]:
    """Two columns as one: codes ``[rows]`` of the pairs of values that occur, and how many those are."""
    seen, joined = np.unique(_joined(codes, other, other_size), return_inverse=True)
    return smallest(joined, len(seen)), len(seen)


def smallest(codes: np.ndarray, size: int) -> np.ndarray:
    """Codes below ``size`` in the narrowest unsigned dtype that holds them."""
    return codes.astype(np.min_scalar_type(max(size - 1, 0)), copy=False)


def _joined(codes: np.ndarray, other: np.ndarray, other_size: int, dtype: type = np.int64) -> np.ndarray:
    joint = codes.astype(dtype)
    joint *= other_size
    joint += other
    return joint
