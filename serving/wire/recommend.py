"""JSON of ``:recommend``, ``items:upsert`` and ``items:remove``: bodies, checked against the towers and the model that ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctrkit.errors import nearest
from ctrkit.feeds import Bag, RowError, rows_to_columns
from ctrkit.retrieval.bundle import KEY, RetrievalBundle
from ctrkit.schema import Feature, Kind
from serving.items import Row, View
from serving.problems import InvalidBody, Location
from serving.towers import item_columns
from serving.wire.ask import Limits, check_rows
from serving.wire.json_text import parse

CANDIDATES = 200
_MISSING = ("", None)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=_Body)


class RankBy(_Body):
    """The model that orders the candidates."""

    model: str = Field(description="a model of the same repository that scores", examples=["clicks"])
    version: int | None = Field(None, ge=1, description="without it the one that is served")
    task: str | None = Field(None, description="of a model of several tasks: which one ranks; without it the main one")


class RecommendRequest(_Body):
    """Users, how many items each gets, and which items are allowed."""

    user: Row | None = Field(None, description="features of the user, with history and context", examples=[{"user_id": "u1"}])
    users: list[Row] | None = Field(None, description="instead of user: several")
    k: int = Field(10, ge=1, description="items for each user; fewer only if fewer are allowed")
    index: Literal["approximate", "exact"] = Field("approximate", description="exact: compare the user with all items")
    candidates: int | None = Field(
        None, ge=1, description=f"items that are ranked, and chosen from for diversity; at least k, {CANDIDATES} without it"
    )
    rank_by: RankBy | None = Field(None, description="without it items are in the order of the towers' inner products")
    exclude_history: bool = Field(True, description="leave out the items of the user's own history")
    seen: list[Any] | None = Field(None, description="items to leave out for the user; of several users a list for each", examples=[["i7"]])
    deny: list[Any] | None = Field(None, description="items to leave out for all")
    allow: list[Any] | None = Field(None, description="no other items than these")
    where: dict[str, Any] | None = Field(
        None, description="feature of the items -> the value, or a list of values, of which they must have one", examples=[{"brand": "b1"}]
    )
    diversity: float | None = Field(
        None, ge=0, le=1, description="lambda of maximal marginal relevance: 1 by score alone, 0 by difference alone"
    )


class RecommendedItem(BaseModel):
    item: Any
    score: float = Field(description="inner product of the towers, or the probability of the model that ranks")


class Recommendation(BaseModel):
    index: Literal["approximate", "exact"] = Field(description="exact: all items that were allowed have been compared")
    items: list[RecommendedItem] = Field(description="best first; with diversity in the order in which they were chosen")


class Ranker(BaseModel):
    model: str
    version: int


class RecommendResponse(BaseModel):
    model: str
    version: int
    ranked_by: Ranker | None = Field(None, description="with rank_by")
    recommendations: list[Recommendation] = Field(description="one a user, in their order")


class UpsertRequest(_Body):
    """Items to add, or to change if they are there. A feature that is left out counts as missing, also of an item that had one."""

    items: list[Row] = Field(description="features and key", examples=[[{"item_id": "i7", "brand": "b1"}]])


class UpsertResponse(BaseModel):
    model: str
    version: int
    added: int
    changed: int


class RemoveRequest(_Body):
    """Items that are not to be recommended."""

    items: list[Any] = Field(description="keys", examples=[["i7"]])


class RemoveResponse(BaseModel):
    model: str
    version: int
    removed: int
    unknown: int = Field(description="keys of no item")


@dataclass(frozen=True)
class Asked:
    """What a body of ``:recommend`` asks, checked.

    Attributes:
        users: rows.
        alone: whether the body has one as ``user``.
        seen: keys to leave out for each user, without his history.
        where: feature -> canonical values; ``KEY`` -> keys.
        fetch: candidates of each user.
    """

    users: list[Row]
    alone: bool
    k: int
    fetch: int
    exact: bool
    exclude_history: bool
    seen: list[list[Any]]
    deny: list[Any]
    allow: list[Any] | None
    where: dict[str, list[Any]]
    diversity: float | None
    rank_by: RankBy | None

    def place(self, user: int) -> Location:
        """Of a user in the body."""
        return ("user",) if self.alone else ("users", user)


def read_recommend(bundle: RetrievalBundle, body: bytes, limits: Limits) -> Asked:
    """
    Raises:
        InvalidBody: no such JSON, or filters that do not fit the items.
        TooLarge: too many users, or too many items for all of them.
    """
    request = read(RecommendRequest, body, limits)
    if (request.user is None) == (request.users is None):
        raise InvalidBody(("user",), "the body needs either 'user' or 'users'")
    users = [request.user] if request.user is not None else request.users or []
    check_rows(len(users), "users", limits)
    chosen = request.rank_by is not None or request.diversity is not None
    if request.candidates is not None and not chosen:
        raise InvalidBody(("candidates",), "candidates: of use with 'rank_by' or 'diversity' only")
    fetch = max(request.k, request.candidates or min(CANDIDATES, limits.rows)) if chosen else request.k
    check_rows(len(users) * fetch, "candidates of all users", limits)
    key = bundle.manifest.item_key
    seen = _seen(request, len(users))
    return Asked(
        users=users,
        alone=request.user is not None,
        k=request.k,
        fetch=fetch,
        exact=request.index == "exact",
        exclude_history=request.exclude_history,
        seen=[read_keys(keys, key, ("seen",) if request.user is not None else ("seen", user)) for user, keys in enumerate(seen)],
        deny=read_keys(request.deny or [], key, ("deny",)),
        allow=None if request.allow is None else read_keys(request.allow, key, ("allow",)),
        where={KEY if name == key.name else name: _values(name, values, bundle) for name, values in (request.where or {}).items()},
        diversity=request.diversity,
        rank_by=request.rank_by,
    )


def read_upsert(features: Sequence[Feature], key: Feature, body: bytes, limits: Limits) -> dict[Any, Row]:
    """Rows by key.

    Args:
        features: of a row.

    Raises:
        InvalidBody: no such JSON, a row that does not fit the features, has no key, or the key of another one.
        TooLarge: too many rows.
    """
    items = read(UpsertRequest, body, limits).items
    check_rows(len(items), "items", limits)
    try:
        columns = rows_to_columns(items, features)
    except RowError as error:
        place = ("items", error.row or 0) if error.field is None else ("items", error.row or 0, error.field)
        raise InvalidBody(place, f"item {error.row}, field {error.field!r}: {error.reason}") from None
    rows: dict[Any, Row] = {}
    for place, (row, value) in enumerate(zip(items, _list(columns[key.name]), strict=True)):
        if row.get(key.name) in _MISSING:
            raise InvalidBody(("items", place, key.name), f"item {place} has no '{key.name}', which is its key")
        if value in rows:
            raise InvalidBody(("items", place, key.name), f"item {place} has the '{key.name}' of another one")
        rows[value] = row
    return rows


def read_remove(key: Feature, body: bytes, limits: Limits) -> list[Any]:
    """Keys. Raises as ``read_upsert``."""
    keys = read(RemoveRequest, body, limits).items
    check_rows(len(keys), "items", limits)
    return read_keys(keys, key, ("items",))


def allowed_items(view: View, asked: Asked) -> np.ndarray:
    """Items that all users of a request may get, bool ``[items of the view]``."""
    allowed = view.open.copy()
    wanted = [view.numbers(asked.allow)] if asked.allow is not None else []
    wanted += [view.numbers(values) if name == KEY else view.holding(name, values) for name, values in asked.where.items()]
    for numbers in wanted:
        among = np.zeros(len(allowed), bool)
        among[numbers] = True
        allowed &= among
    allowed[view.numbers(asked.deny)] = False
    return allowed


def histories(bundle: RetrievalBundle, columns: dict[str, np.ndarray | Bag], users: int) -> list[list[Any]]:
    """Keys in each user's history: the sequences of the item column."""
    found: list[list[Any]] = [[] for _ in range(users)]
    for feature in bundle.manifest.user_features:
        if feature.of == bundle.manifest.item_key.name:
            values, lengths = columns[feature.name]
            for user, part in enumerate(np.split(values, np.cumsum(lengths)[:-1]) if users else []):
                found[user] += part.tolist()
    return found


def read(kind: type[B], body: bytes, limits: Limits) -> B:
    """A body of a kind. Raises InvalidBody."""
    content = parse(body, limits.depth, optional=None)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        where = ".".join(str(part) for part in location)
        if first["type"] == "extra_forbidden":
            known = RankBy if location[0] == "rank_by" else kind
            raise InvalidBody(location, f"unknown key '{where}'. {nearest(str(location[-1]), list(known.model_fields))}") from None
        if first["type"] == "missing":
            raise InvalidBody(location, f"the body has no '{where}'") from None
        raise InvalidBody(location, f"{where}: {first['msg']}, got {first['input']!r:.60}") from None


def read_keys(keys: Sequence[Any], key: Feature, location: Location) -> list[Any]:
    """Keys as the catalogue has them. Raises InvalidBody."""
    for place, value in enumerate(keys):
        if value in _MISSING:
            raise InvalidBody((*location, place), f"{_name(location)}, entry {place} is no key of an item")
    try:
        return _list(rows_to_columns([{key.name: value} for value in keys], (key,))[key.name])
    except RowError as error:
        raise InvalidBody((*location, error.row or 0), f"{_name(location)}, entry {error.row}: {error.reason}") from None


def _seen(request: RecommendRequest, users: int) -> list[list[Any]]:
    if request.seen is None:
        return [[] for _ in range(users)]
    if request.user is not None:
        return [request.seen]
    if len(request.seen) != users or not all(isinstance(keys, list) for keys in request.seen):
        raise InvalidBody(("seen",), f"seen: expected a list of items for each of {users} users")
    return request.seen


def _values(name: str, values: Any, bundle: RetrievalBundle) -> list[Any]:
    """Canonical values of an item's feature."""
    features = {feature.name: feature for feature in item_columns(bundle)}
    if name not in features:
        raise InvalidBody(("where", name), f"where: the items have no feature '{name[:100]}'. {nearest(name[:100], list(features))}")
    if features[name].kind is Kind.NUMERIC:
        raise InvalidBody(("where", name), f"where: '{name}' is a number; items are chosen by features of values, not by numbers")
    one = features[name].model_copy(update={"kind": Kind.CATEGORICAL})
    listed = values if isinstance(values, list) else [values]
    try:
        return _list(rows_to_columns([{name: value} for value in listed], (one,))[name])
    except RowError as error:
        raise InvalidBody(("where", name), f"where, '{name}': {error.reason}") from None


def _list(column: np.ndarray | Bag) -> list[Any]:
    assert isinstance(column, np.ndarray)
    return column.tolist()


def _name(location: Location) -> str:
    return ".".join(str(part) for part in location)
