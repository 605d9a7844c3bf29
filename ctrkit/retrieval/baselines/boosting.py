"""Gradient-boosted trees (LightGBM; Ke et al., NeurIPS 2017) over what is known of a user and an item, scored for the whole catalogue.

Trained to tell events from pairs of their users with items they never had. The trees see no ids: the features of the user and of the item,
how often the item and the user occur in training, and for each feature of the items how much of the user's history shares this item's value.
They learn from one part of the training events, and items are counted in the others: were an event's item counted without that one event, the trees
would know it by its smaller count. And an item that occurs more often is never less likely, all else being equal: few are as popular as the head,
and of each of those the trees would learn how it fared in one part, to find another at its count in all events.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from scipy import sparse

from ctrkit import schema
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.baselines.interactions import histories, interactions
from ctrkit.retrieval.baselines.pairs import unseen_items
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.rows import Bags, Rows

_PAIRS_AT_ONCE, _ROWS_AT_ONCE = 1 << 19, 1 << 13


class BoostingSettings(schema.Settings):
    trees: int = Field(default=200, ge=1)
    leaves: int = Field(default=31, ge=2)
    learning_rate: float = Field(default=0.1, gt=0)
    negatives: int = Field(default=4, ge=1, description="items that the user never had, for each event")
    events: int = Field(
        default=200_000, ge=1, description="to learn from, drawn at random: at most so many, and half of the training events"
    )


@dataclass(frozen=True)
class Moments:
    """Users at some moments: columns of their own, float32 ``[moments, columns]``, and their histories ``[moments, items]``, rows adding up to 1."""

    columns: np.ndarray
    history: Any


class PairFeatures:
    """The trees' columns.

    Args:
        counts: training events of each item, ``[items]``.

    Attributes:
        kind: of each item, ``[items]``: those that the trees cannot tell apart are of one, and are scored once.
        categorical: which columns are codes.
        signs: 1 where a greater value is never less likely, else 0, ``[columns]``: of an item's count.
    """

    def __init__(self, dataset: RetrievalDataset, counts: np.ndarray) -> None:
        self._dataset = dataset
        items = dataset.encoded_items
        key = dataset.item_key.name
        columns, codes = _columns(items, key)
        users, user_codes = _columns(dataset.encoded_users(np.zeros(1, np.int64)), dataset.user_key.name)
        self._item_columns = np.column_stack([*columns, np.log1p(counts)]).astype(np.float32)
        fields = [(name, (ids, np.arange(items.count + 1))) for name, ids in items.ids.items() if name != key]
        self._values = [value_shares(bags) for _, bags in [*fields, *items.bags.items()]]
        self._first, self.kind = _kinds(self._item_columns, self._values)
        self.categorical = [*codes, *(len(columns) + 1 + code for code in user_codes)]
        self.signs = [0] * len(columns) + [1] + [0] * (len(users) + 1 + len(self._values))

    def moments(self, events: np.ndarray, history: Any) -> Moments:
        """
        Args:
            events: whose users and contexts.
            history: 1 where an item was had before, ``[events, items]``.
        """
        columns, _ = _columns(self._dataset.encoded_users(events), self._dataset.user_key.name)
        lengths = np.asarray(history.sum(1), np.float32)
        shares = sparse.diags_array(1 / np.maximum(lengths, 1)) @ history
        return Moments(np.column_stack([*columns, np.log1p(lengths)]).astype(np.float32), sparse.csr_array(shares))

    def pairs(self, moments: Moments, row: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float32 ``[pairs, columns]`` of moments and items."""
        shared = [_shared(moments.history @ values, values, row, item) for values in self._values]
        return np.column_stack([self._item_columns[item], moments.columns[row], *shared]).astype(np.float32, copy=False)

    def all_pairs(self, moments: Moments) -> np.ndarray:
        """The same of every moment with every kind of items, ``[moments * kinds, columns]``."""
        count, kinds = len(moments.columns), len(self._first)
        products = [moments.history @ values @ values[self._first].T for values in self._values]
        shared = [np.asarray(found.toarray(), np.float32).reshape(-1) for found in products]
        return np.column_stack([np.tile(self._item_columns[self._first], (count, 1)), np.repeat(moments.columns, kinds, axis=0), *shared])


class Boosting:
    """
    Args:
        trees: a LightGBM booster.
    """

    def __init__(self, trees: Any, features: PairFeatures, items: int, threads: int) -> None:
        self._trees, self._features, self._items, self._threads = trees, features, items, threads

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        kind = self._features.kind
        size = max(1, _PAIRS_AT_ONCE // (kind.max() + 1))
        parts = []
        for start in range(0, len(which), size):
            part = which[start : start + size]
            moments = self._features.moments(queries.event[part], histories(queries, part, self._items))
            found = self._trees.predict(self._features.all_pairs(moments), raw_score=True, num_threads=self._threads)
            parts.append(found.reshape(len(part), -1)[:, kind])
        return np.concatenate(parts)


def fit_boosting(job: Job, settings: BoostingSettings) -> Fitted:
    """Raises CtrkitError when there is one training event alone."""
    import lightgbm

    dataset, training = job.dataset, job.experiment.training
    random = np.random.default_rng(training.seed)
    items = dataset.items.height
    order = random.permutation(dataset.events.of_split("train"))
    if len(order) < 2:
        raise CtrkitError(
            "boosting learns from one half of the training events and counts items in the other: there is one event", "Give a larger log"
        )
    index, rest = np.split(order, [min(settings.events, len(order) // 2)])
    counted = np.bincount(dataset.events.item[rest], minlength=items) * (len(order) / len(rest))
    features = PairFeatures(dataset, counted)
    moments = features.moments(index, _matrix(dataset.events.histories(index), items))
    rows = np.repeat(np.arange(len(index)), 1 + settings.negatives)
    item = np.repeat(dataset.events.item[index], 1 + settings.negatives)
    labels = np.tile(np.repeat([1.0, 0.0], [1, settings.negatives]), len(index))
    others = labels == 0
    item[others] = unseen_items(interactions(dataset), dataset.events.user[index][rows[others]], np.arange(items), random)
    threads = training.threads or 0
    parameters = {
        "objective": "binary",
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "seed": training.seed,
        "deterministic": True,
        "num_threads": threads,
        "verbosity": -1,
        "monotone_constraints": features.signs,
    }
    data = lightgbm.Dataset(features.pairs(moments, rows, item), labels, categorical_feature=features.categorical)
    trees = lightgbm.train(parameters, data, settings.trees)
    return Fitted(Boosting(trees, PairFeatures(dataset, dataset.counts), items, threads), params=settings.trees * settings.leaves)


def _columns(rows: Rows, key: str) -> tuple[list[np.ndarray], list[int]]:
    """Single-valued columns but the key, and which of them are codes."""
    codes = [ids for name, ids in rows.ids.items() if name != key]
    return [*codes, *rows.numbers.values()], list(range(len(codes)))


def _kinds(columns: np.ndarray, values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The first item of each kind, and each item's kind."""
    numbers: dict[tuple[bytes, ...], int] = {}
    kind = np.zeros(len(columns), np.int64)
    for item, own in enumerate(columns):
        rows = [slice(found.indptr[item], found.indptr[item + 1]) for found in values]
        bags = [part[row].tobytes() for found, row in zip(values, rows, strict=True) for part in (found.indices, found.data)]
        kind[item] = numbers.setdefault((own.tobytes(), *bags), len(numbers))
    return np.unique(kind, return_index=True)[1], kind


def _matrix(bags: Bags, columns: int) -> Any:
    values, offsets = bags
    own = values.copy()  # SciPy sorts it in place
    return sparse.csr_array((np.ones(len(values), np.float32), own, offsets), shape=(len(offsets) - 1, columns))


def value_shares(bags: Bags) -> Any:
    """``[items, values]``, rows of length 1: the inner product of two items is the cosine of their values."""
    found = _matrix(bags, int(bags[0].max(initial=0)) + 1)
    found.sum_duplicates()
    lengths = np.sqrt(np.asarray(found.multiply(found).sum(1)))
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(lengths, 1e-12)) @ found)


def _shared(profiles: Any, values: Any, row: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Inner products of some rows of both."""
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(row), _ROWS_AT_ONCE)]
    found = [np.asarray(profiles[row[part]].multiply(values[item[part]]).sum(1), np.float32) for part in parts]
    return np.concatenate([np.zeros(0, np.float32), *found])
