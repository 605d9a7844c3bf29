"""Two views of an item, each with a part of its features (Yao et al., CIKM 2021, section 3.3).

First masking: a set of features is hidden in one view, all others in the other view, so the two share nothing. Then dropout: of a feature of
several values some are left out.
"""

from typing import Literal, Protocol

import numpy as np

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.correlation import mutual_information
from ctrkit.retrieval.rows import Rows, offsets_of
from ctrkit.schema import Inputs


class Masking(Protocol):
    """Which features a step hides in the first view, bool ``[fields]``; the second view hides the others."""

    def draw(self, random: np.random.Generator) -> np.ndarray: ...


class CorrelatedMasking:
    """A seed feature, drawn uniformly for each step, and the features that say most of it: correlated feature masking.

    ``floor(k / 2)`` of the k features go with the seed, as in the paper, but k - 2 at most, so that the first view shows one.

    Args:
        information: mutual information, ``[fields, fields]``.
    """

    def __init__(self, information: np.ndarray) -> None:
        fields = len(information)
        alone = information - np.diag(np.full(fields, np.inf))
        self._nearest = np.argsort(-alone, axis=1, kind="stable")[:, : min(fields // 2, fields - 2)]

    def draw(self, random: np.random.Generator) -> np.ndarray:
        masked = np.zeros(len(self._nearest), bool)
        seed = int(random.integers(len(masked)))
        masked[seed] = True
        masked[self._nearest[seed]] = True
        return masked


class RandomMasking:
    """As many features as correlated masking hides, drawn uniformly: the paper's baseline RFM."""

    def __init__(self, fields: int) -> None:
        self._fields = fields
        self._hidden = 1 + min(fields // 2, fields - 2)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        masked = np.zeros(self._fields, bool)
        masked[random.permutation(self._fields)[: self._hidden]] = True
        return masked


def masking(kind: Literal["correlated", "random"], rows: Rows, inputs: Inputs) -> Masking:
    """
    Args:
        rows: the items that training knows.

    Raises:
        CtrkitError: an item has one feature, of which no two views can be made.
    """
    if inputs.count < 2:
        raise CtrkitError("an item has one feature, and two views of it need two", "Add to item_features, or leave model.auxiliary out")
    return CorrelatedMasking(mutual_information(rows, inputs)) if kind == "correlated" else RandomMasking(inputs.count)


def two_views(rows: Rows, hidden: np.ndarray, dropout: float, random: np.random.Generator) -> tuple[Rows, Rows, np.ndarray]:
    """Both views of some items, and what is masked in them, bool ``[2 x items, fields]``, the first view's rows first.

    Args:
        hidden: features of the first view, bool ``[fields]``.
        dropout: share of a bag's values that is left out of a view.
    """
    masked = np.concatenate([np.tile(hidden, (rows.count, 1)), np.tile(~hidden, (rows.count, 1))])
    return drop_values(rows, dropout, random), drop_values(rows, dropout, random), masked


def drop_values(rows: Rows, share: float, random: np.random.Generator) -> Rows:
    """Leaves out each value of the bags with a probability."""
    if not share:
        return rows
    bags = {}
    for name, (values, offsets) in rows.bags.items():
        kept = random.random(len(values)) >= share
        bags[name] = values[kept], offsets_of(kept)[offsets]
    return Rows(rows.count, rows.ids, bags, rows.numbers)
