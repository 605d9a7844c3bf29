"""Which rows are for training, validation and test: exact sizes in bounded memory.

Every row gets a 64-bit key - its number, a random one, or its time - and the rows with the largest keys are the
test split, those before them the validation split. Two thresholds, found by counting, say it all.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ctrkit.config import Split
from ctrkit.errors import CtrkitError

SPLITS: tuple[str, ...] = ("train", "valid", "test")
Keys = Callable[[], Iterable[np.ndarray]]
"""A pass over the uint64 keys of all rows, in chunks."""

_PASS_ROWS = 1 << 17


def order_keys(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


def random_keys(first: int, count: int, seed: int) -> np.ndarray:
    """Distinct pseudo-random keys of the rows ``first ..`` (SplitMix64, Steele et al., 2014): a row's key depends on nothing else."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed], dtype=np.uint64) * gamma + gamma)
        return _mix(start + order_keys(first, count) * gamma)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def time_keys(times: np.ndarray) -> np.ndarray:
    """float64 -> uint64 in the same order."""
    bits = (times + 0.0).view(np.uint64)  # + 0.0 makes -0.0 a 0.0
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def in_passes(keys: Callable[[int, int], np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The keys of all rows from a function of (first row, count)."""
    for first in range(0, rows, _PASS_ROWS):
        yield keys(first, min(_PASS_ROWS, rows - first))


@dataclass(frozen=True)
class Cut:
    """Where a log is cut: keys below ``valid_from`` are for training, those from ``test_from`` on for test."""

    valid_from: int
    test_from: int
    rows: dict[str, int]

    def assign(self, keys: np.ndarray) -> np.ndarray:
        """uint8 index into ``SPLITS`` of each row."""
        first_keys = np.array([key for key in (self.valid_from, self.test_from) if key < 2**64], dtype=np.uint64)
        return np.searchsorted(first_keys, keys, side="right").astype(np.uint8)


def cut(keys: Keys, rows: int, split: Split) -> Cut:
    """Cuts off the test and the validation split.

    Rows with equal keys (the same time) stay together, so sizes are as near to the wanted ones as that allows. Three times can be split.

    Raises:
        CtrkitError: a split would be empty.
    """
    test, valid = _size(split.test, rows), _size(split.valid, rows)
    if test + valid >= rows or valid == 0 or (split.test > 0 and test == 0):
        raise CtrkitError(
            f"{rows:,} rows cannot be split into {valid:,} for validation, {test:,} for test and the rest for training: no split may be empty",
            "Change split.valid and split.test",
        )
    both = test + valid
    test_from, test = _boundary(keys, rows, test) if test else (2**64, 0)
    valid_from, later = _some_before(keys, rows, test, both)
    if later == rows and test:
        test_from, test, _ = kth_largest(keys, rows, 1)
        valid_from, later = _some_before(keys, rows, test, both)
    if later == rows:
        raise CtrkitError(
            f"the split leaves no rows for training: too many rows share one '{split.column}'",
            "Split by order, at random, or by a finer time",
        )
    return Cut(valid_from, test_from, {"train": rows - later, "valid": later - test, "test": test})


def _size(size: float, rows: int) -> int:
    return int(size) if size >= 1 else round(size * rows)


def _boundary(keys: Keys, rows: int, later: int) -> tuple[int, int]:
    """(key, count of rows at or above it), the count as near to ``later`` as ties allow."""
    key, at_or_above, above = kth_largest(keys, rows, later)
    if above and (later - above < at_or_above - later or at_or_above == rows):
        return key + 1, above
    return key, at_or_above


def _some_before(keys: Keys, rows: int, test: int, later: int) -> tuple[int, int]:
    """``_boundary`` with rows below the test's: those of one time at least."""
    key, at_or_above = _boundary(keys, rows, later)
    if at_or_above > test or test == rows:
        return key, at_or_above
    key, at_or_above, _ = kth_largest(keys, rows, test + 1)
    return key, at_or_above


def kth_largest(keys: Keys, rows: int, k: int) -> tuple[int, int, int]:
    """(the k-th largest key, how many are at or above it, how many above it): a radix selection in four passes."""
    prefix, above = 0, 0
    count = rows
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for part in keys():
            inside = part if shift == 48 else part[part >> np.uint64(shift + 16) == np.uint64(prefix)]
            counts += np.bincount(((inside >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16)
        from_the_top = np.cumsum(counts[::-1])
        digit = int(np.searchsorted(from_the_top, k - above))
        count = int(counts[::-1][digit])
        above += int(from_the_top[digit]) - count
        prefix = (prefix << 16) | (0xFFFF - digit)
    return prefix, above + count, above
