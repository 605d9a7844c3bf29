"""What every format makes of a request's body."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ctrkit.bundle import Bundle
from ctrkit.feeds import RowError
from serving.problems import InvalidBody, TooLarge

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Attributes:
        rows: rows or candidates.
        depth: of nested JSON.
        bytes: of the body; what it unfolds to may have ``UNFOLDED`` times as many.
    """

    rows: int
    depth: int
    bytes: int


UNFOLDED = 16


@dataclass(frozen=True)
class Answer:
    """A body, its media type, and headers beside it."""

    body: bytes
    media_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Ask:
    """Rows to run through the graph, and how the probabilities are told.

    Attributes:
        feed: the graph's inputs.
        rows: how many rows they hold.
        answer: probabilities, float32 ``[rows]`` or ``[rows, tasks]``, -> the answer.
        misfit: what is wrong with a row -> the refusal, which says where in the body it is.
    """

    feed: dict[str, np.ndarray] = field(repr=False)
    rows: int
    answer: Callable[[np.ndarray], Answer]
    misfit: Callable[[RowError], InvalidBody]


Reader = Callable[[Bundle, bytes, Limits], Ask]
"""A body for a model -> what is asked.

Raises:
    Refused: a body that does not fit the model, or that is too large.
"""


def check_rows(rows: int, what: str, limits: Limits) -> None:
    """Raises TooLarge when there are more than the service allows."""
    if rows > limits.rows:
        raise TooLarge(f"{rows:,} {what} in one request, {limits.rows:,} are allowed: send them in several requests")


def served(bundle: Bundle) -> dict[str, str | int]:
    """Who answers."""
    return {"model": bundle.manifest.name, "version": bundle.manifest.version}
