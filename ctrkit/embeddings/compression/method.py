"""What a compression method is: settings, sizes solved from the budget, a search if it has one, and the codec it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.errors import CtrkitError
from ctrkit.schema import Settings

FLOAT_BYTES = 4


class MethodSettings(Settings):
    budget: float = Field(gt=0, le=1, description="bytes that may be stored, of those of the full table")


class Method(ABC):
    """One way to compress one group's vectors.

    The life of a method: it is made before training and solves its sizes from the budget; if it has a supernet, that is trained for
    ``search_epochs`` epochs and ``decide`` is asked for a decision; then ``codec`` of that decision is trained, and at the end stored.

    Args:
        settings: the method's own, an instance of its ``Settings``.
        space: the ids.
        dim: of the vectors.

    Raises:
        CtrkitError: the budget cannot be reached, see ``refuse``.

    Attributes:
        name: as it is registered.
        search_epochs: of the search, at most; 0 without one.
        search_stops_early: whether it stops as a training does, and decides from its best weights.
        alternates_from: epoch of the search from which on what decides is trained on validation rows alone, a step before each step on
            training rows, and not before; None: it is trained with all else.
        deciding_learning_rate: of what decides.
        starts_from: the weights that the training starts from: those of the search after so many epochs, those at its ``end``, or None:
            it starts anew.
        has_rows: whether rows of tables are trained, in the search or after it, which ``embedding.l2`` can hold down.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    name: ClassVar[str]
    search_epochs: int = 0
    search_stops_early: bool = False
    alternates_from: int | None = None
    deciding_learning_rate: float = 1e-3
    starts_from: int | str | None = None
    has_rows: bool = True

    def __init__(self, settings: Any, space: IdSpace, dim: int) -> None:
        self.settings, self.space, self.dim = settings, space, dim

    @classmethod
    def takes_single(cls, settings: Any, space: IdSpace) -> bool:
        """Whether it makes single numbers (first-order weights) smaller too, in this budget. Those of other methods are hashed into it."""
        return False

    @property
    def full_bytes(self) -> int:
        """Of the table without compression."""
        return self.space.total * self.dim * FLOAT_BYTES

    @property
    def allowed_bytes(self) -> int:
        """What the budget allows to store."""
        return int(self.settings.budget * self.full_bytes)

    def refuse(self, least: int, remedy: str) -> CtrkitError:
        """The error of a budget below what the method needs at the least, in bytes."""
        return CtrkitError(
            f"compression method '{self.name}' needs {least:,} bytes at the least for {self.space.total:,} vectors of {self.dim}, "
            f"{least / self.full_bytes:.2g} of the full table; embedding.compression.budget {self.settings.budget:g} allows {self.allowed_bytes:,}",
            remedy,
        )

    def supernet(self, counts: Tensor) -> Codec | None:
        """What the search trains; None: there is no search.

        Args:
            counts: how often each id is in the training rows, int64 ``[total]``.
        """
        return None

    def decide(self, supernet: Codec, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]) -> dict[str, Tensor]:
        """What the search found out.

        Args:
            supernet: with its weights after the search.
            parts: its full tables.
            counts: as of ``supernet``.
            evaluate: the monitored metric, higher is better, on about so many validation rows, of the model with the supernet as it is now,
                in evaluation.
        """
        return {}

    @abstractmethod
    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        """What is trained.

        Args:
            decision: what ``decide`` gave; nothing without a search.
            counts: as of ``supernet``.
        """

    def start(self, decision: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The codec's tables to start from, out of the search's ``parts`` at ``starts_from``: those, unless the method says otherwise."""
        return dict(parts)
