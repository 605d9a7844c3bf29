"""Candidates as rows of a model that scores: the user's features beside those that the catalogue has of the items."""

from collections.abc import Sequence

import numpy as np
import orjson

from ctrkit.bundle import Bundle
from ctrkit.errors import nearest
from ctrkit.feeds import Bag, reads, rows_to_columns
from ctrkit.retrieval.bundle import KEY, RetrievalBundle
from ctrkit.schema import MISSING_INT
from serving.items import Row, View
from serving.problems import InvalidBody, TooLarge
from serving.towers import item_columns
from serving.wire.ask import UNFOLDED, Limits
from serving.wire.recommend import Asked


class Ranking:
    """How one model ranks what certain towers find.

    Args:
        towers: whose users and items they are.
        ranker: the model; None: nobody ranks, and users have the towers' features alone.

    Raises:
        InvalidBody: the ranker reads nothing of the items, or has a feature of them that is of another type.
    """

    def __init__(self, towers: RetrievalBundle, ranker: Bundle | None) -> None:
        of_items = {feature.name: feature for feature in item_columns(towers)}
        features = ranker.features if ranker else ()
        self._towers = towers.manifest.user_features
        self._key = towers.manifest.item_key.name
        self._ranker = ranker
        self._item = tuple(feature for feature in features if feature.name in of_items)
        self._known = tuple(of_items[feature.name] for feature in self._item)
        self._user = tuple(feature for feature in features if feature.name not in of_items)
        if ranker and not self._item:
            raise InvalidBody(
                ("rank_by", "model"),
                f"rank_by: the model '{ranker.manifest.name}' reads none of the items' features: {', '.join(of_items)}",
            )
        for mine, known in zip(self._item, self._known, strict=True):
            if not reads(mine, known):
                raise InvalidBody(("rank_by", "model"), f"rank_by: '{mine.name}' is of another type there than in the catalogue of items")

    def check(self, asked: Asked) -> None:
        """Raises InvalidBody when a user has a field that neither the towers nor the ranker know, or that items have."""
        known = {feature.name for feature in (*self._towers, *self._user)}
        for user, row in enumerate(asked.users):
            for name in row.keys() - known:
                if name in {feature.name for feature in self._item}:
                    why = "the catalogue has this feature of the items"
                else:
                    why = f"unknown feature. {nearest(name[:100], sorted(known))}"
                raise InvalidBody((*asked.place(user), name), f"user {user}, field {name!r:.60}: {why}")

    def of_towers(self, users: Sequence[Row]) -> list[Row]:
        """The fields that the user tower reads."""
        known = {feature.name for feature in self._towers}
        return [{name: value for name, value in row.items() if name in known} for row in users]

    def feed(self, users: Sequence[Row], view: View, numbers: Sequence[np.ndarray], limits: Limits) -> dict[str, np.ndarray]:
        """The ranker's inputs, a row a candidate.

        Args:
            numbers: of each user's candidates.

        Raises:
            RowError: a user's value does not fit the ranker's feature.
            TooLarge: users too long to be joined with so many candidates.
        """
        assert self._ranker is not None
        known = {feature.name for feature in self._user}
        rows = [{name: value for name, value in row.items() if name in known} for row in users]
        if sum(len(orjson.dumps(row)) * len(found) for row, found in zip(rows, numbers, strict=True)) > UNFOLDED * limits.bytes:
            count = sum(map(len, numbers))
            raise TooLarge(f"what the ranker reads of the users is too long to be joined with {count:,} candidates: ask for fewer")
        own = rows_to_columns(rows, self._user)
        whose = np.repeat(np.arange(len(users)), [len(found) for found in numbers])
        columns = {name: taken(column, whose) for name, column in own.items()}
        read = [feature.model_copy(update={"name": KEY}) if feature.name == self._key else feature for feature in self._known]
        found = view.columns(np.concatenate(numbers), read)
        for mine, feature in zip(self._item, read, strict=True):
            columns[mine.name] = as_text(found[feature.name]) if mine.dtype != feature.dtype else found[feature.name]
        return self._ranker.feed(columns)


def taken(column: np.ndarray | Bag, rows: np.ndarray) -> np.ndarray | Bag:
    """Some rows of a column, in that order, repeated as often as they are named."""
    if not isinstance(column, tuple):
        return column[rows]
    values, lengths = column
    bags = np.split(values, np.cumsum(lengths)[:-1])
    return np.concatenate([values[:0], *(bags[row] for row in rows)]), lengths[rows]


def as_text(column: np.ndarray | Bag) -> np.ndarray | Bag:
    """Integers as the text that a feature of strings takes them for."""
    if isinstance(column, tuple):
        texts = as_text(column[0])
        assert isinstance(texts, np.ndarray)
        return texts, column[1]
    return np.array(["" if value == MISSING_INT else str(value) for value in column.tolist()], object)
