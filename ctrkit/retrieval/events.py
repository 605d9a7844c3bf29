"""Who did what when: the events of every user in order, which split each is in, and what had happened before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ctrkit.data.splits import cut, random_keys, time_keys
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalSplit
from ctrkit.retrieval.rows import Bags, offsets_of, slices, take_bags

TRAIN, VALID, TEST, LEFT_OUT = 0, 1, 2, 3
SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST}
_FEWEST = 3


@dataclass(frozen=True)
class Events:
    """Events by user, each user's in the order of time; equal times in the log's order.

    Attributes:
        user: int64 ``[events]``, a number into the users, rising.
        item: int64 ``[events]``, a number into the catalogue.
        time: float64 ``[events]``.
        split: int8 ``[events]``: ``TRAIN``, ``VALID``, ``TEST`` or ``LEFT_OUT``.
        cold: bool ``[events]``, of an item or a user that is held out of training: in nobody's history.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    split: np.ndarray
    cold: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def of_split(self, split: str) -> np.ndarray:
        """Places of a split's events."""
        return np.flatnonzero(self.split == SPLIT_CODES[split])

    def histories(self, index: np.ndarray) -> Bags:
        """What each event's user did at strictly earlier times: items, the most recent last.

        Neither cold events nor those left out of training count; nor do test events, for each other.
        """
        starts, stops, items = self._before
        return slices(items, starts[index], stops[index])

    @cached_property
    def _before(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each event's history starts and stops in an array of items, and that array."""
        usable = np.flatnonzero(~self.cold & (self.split <= VALID))
        moments = np.unique(self.time, return_inverse=True)[1] + 1
        keys = self.user * (int(moments.max(initial=0)) + 1) + moments  # by user, then by time
        stops = np.searchsorted(keys[usable], keys, side="left")
        starts = np.searchsorted(keys[usable], keys - moments, side="left")
        return starts, stops, self.item[usable]


@dataclass(frozen=True)
class Queries:
    """What is asked of a recommender: for each query the items that should come first, and those that are known already.

    Attributes:
        event: int64 ``[queries]``, the earliest of its events: whose user, context and history it has.
        user: int64 ``[queries]``.
        cold_user: bool ``[queries]``, a user without training events.
        targets: items to be found.
        history: items that the user had before, the most recent last; of strictly earlier events.
        seen: items that are not to be recommended: the user's training events, left-out ones too, and before the test those of validation.
    """

    event: np.ndarray
    user: np.ndarray
    cold_user: np.ndarray
    targets: Bags
    history: Bags
    seen: Bags

    def __len__(self) -> int:
        return len(self.event)

    def take(self, which: np.ndarray) -> Queries:
        """Those of the queries, by number."""
        bags = (take_bags(of, which) for of in (self.targets, self.history, self.seen))
        return Queries(self.event[which], self.user[which], self.cold_user[which], *bags)


def queries_of(events: Events, split: str) -> Queries:
    """One query for each user with events in the split: its history ends before the earliest of them.

    Events of cold items are asked for apart, one by one, so that each has the history of its own moment.
    """
    index = events.of_split(split)
    if not len(index):
        raise CtrkitError(f"the {split} split has no events", "Change the config's split")
    in_training = np.bincount(events.user[events.split == TRAIN], minlength=int(events.user.max()) + 1) > 0
    apart = events.cold[index] & in_training[events.user[index]]
    together = index[~apart]
    first = np.unique(events.user[together], return_index=True)[1]
    counts = np.diff(np.append(first, len(together)))
    event = np.concatenate([together[first], index[apart]])
    targets = np.concatenate([events.item[together], events.item[index[apart]]])
    offsets = offsets_of(np.concatenate([counts, np.ones(apart.sum(), np.int64)]))
    user = events.user[event]
    known = np.flatnonzero(((events.split < SPLIT_CODES[split]) | (events.split == LEFT_OUT)) & ~events.cold)
    starts = np.searchsorted(events.user[known], user, side="left")
    stops = np.searchsorted(events.user[known], user, side="right")
    seen = slices(events.item[known], starts, stops)
    return Queries(event, user, ~in_training[user], (targets, offsets), events.histories(event), seen)


def assign_splits(user: np.ndarray, item: np.ndarray, time: np.ndarray, settings: RetrievalSplit) -> tuple[np.ndarray, np.ndarray]:
    """(split, cold) of events that are sorted by user and time, see ``RetrievalSplit``.

    Raises:
        CtrkitError: a split would be empty.
    """
    cold_item = _drawn(int(item.max()) + 1, settings.cold_items, settings.seed)[item]
    cold_user = _drawn(int(user.max()) + 1, settings.cold_users, settings.seed + 1)[user]
    cold = cold_item | cold_user
    if settings.by != "time":
        split = np.full(len(user), TRAIN, np.int8)
        warm = np.flatnonzero(~cold)
        counts = np.bincount(user[warm])
        last = np.cumsum(counts)[counts >= _FEWEST] - 1
        split[warm[last]] = TEST
        split[warm[last - 1]] = VALID
    else:
        found = cut(lambda: [time_keys(time)], len(time), settings.cut())
        split = found.assign(time_keys(time)).astype(np.int8)
    split[cold] = TEST
    split[cold_item & cold_user] = LEFT_OUT
    if settings.train_share < 1:
        left_out = random_keys(0, len(user), settings.seed + 2) >= np.uint64(int(settings.train_share * 2**64))
        split[(split == TRAIN) & left_out] = LEFT_OUT
    for name, code in SPLIT_CODES.items():
        if not (split == code).any():
            raise CtrkitError(
                f"none of the {len(user):,} events are for {name}",
                f"Users need {_FEWEST} events or more, or split by time; and fewer cold items and users, or a greater split.train_share, may do",
            )
    return split, cold


def _drawn(count: int, share: float, seed: int) -> np.ndarray:
    """bool ``[count]``: so large a share of them, by keys that depend on the number and the seed alone."""
    chosen = np.zeros(count, bool)
    chosen[np.argsort(random_keys(0, count, seed), kind="stable")[: round(share * count)]] = True
    return chosen
