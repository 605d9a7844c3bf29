"""The items of a view that are best for a user, among those that are allowed: by the approximate index, or all compared."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from ctrkit.retrieval.index import ItemIndex, best
from serving.items import View

EXACT_ROWS = 20_000
"""So few allowed items are compared one by one: a walk through the graph that skips the others would take longer."""

MOST_FETCHED = 4096
"""Items asked of the index at a time; where the allowed ones are too rare for that, all of them are compared."""

SPARE = 256


@dataclass(frozen=True)
class Found:
    """Numbers of items and their inner products with the user's vector, the best first; whether all allowed items were compared."""

    numbers: np.ndarray
    scores: np.ndarray
    exact: bool


def search(view: View, index: ItemIndex, user: np.ndarray, allowed: np.ndarray, count: int, exact: bool) -> Found:
    """The best ``count`` of the allowed items; fewer only if fewer are allowed.

    Args:
        index: of the view's base.
        user: float32 ``[width]``.
        allowed: bool ``[items of the view]``.
        exact: compare all, whatever it takes.
    """
    total = int(np.count_nonzero(allowed))
    count = min(count, total)
    if exact or total <= EXACT_ROWS:
        return _compared(view, user, allowed, total, count)
    size = len(view.base)
    in_base = int(np.count_nonzero(allowed[:size]))
    needed = min(count, in_base)
    fetch = ceil(1.25 * needed * size / max(in_base, 1)) + min(size - in_base, SPARE)
    while fetch <= min(MOST_FETCHED, size):
        numbers = index.search(user[None], fetch)[0][0]
        numbers = numbers[numbers >= 0]
        numbers = numbers[allowed[numbers]]
        if len(numbers) >= needed:
            numbers = np.sort(np.concatenate([numbers, size + np.flatnonzero(allowed[size:])]))
            return _best(numbers, view.vectors(numbers) @ user, count, False)
        fetch *= 4
    return _compared(view, user, allowed, total, count)


def _compared(view: View, user: np.ndarray, allowed: np.ndarray, total: int, count: int) -> Found:
    if total <= max(EXACT_ROWS, len(allowed) // 8):
        numbers = np.flatnonzero(allowed)
        return _best(numbers, view.vectors(numbers) @ user, count, True)
    scores = np.concatenate([np.asarray(view.base.vectors @ user), view.added.vectors @ user])
    scores[~allowed] = -np.inf
    return _best(np.arange(len(scores)), scores, count, True)


def _best(numbers: np.ndarray, scores: np.ndarray, count: int, exact: bool) -> Found:
    places = best(scores, count)
    return Found(numbers[places], scores[places], exact)
