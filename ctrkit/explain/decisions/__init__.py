"""What a model's search decided, as sections of its explanation.

A model has a file here with its view, and a line in ``_VIEWS``; one without gets the sentence that ``RankingModel.describe`` has for it.
"""

from collections.abc import Callable
from typing import Any, Protocol

from ctrkit.explain.decisions.kept import KeptValues
from ctrkit.explain.decisions.pairs import ChosenPairs
from ctrkit.explain.decisions.summary import Summary
from ctrkit.explain.explanation import Section
from ctrkit.explain.raw import RawRow
from ctrkit.models.base import RankingModel


class DecisionView(Protocol):
    """How a decision is shown."""

    def whole(self) -> Section:
        """All of it."""
        ...

    def of_row(self, row: RawRow) -> Section | None:
        """What it means for one row; None if that is nothing more."""
        ...

    def pruned(self, row: RawRow) -> set[str]:
        """Features whose values in a row the model was trained without, all of them."""
        ...


_VIEWS: dict[str, Callable[[RankingModel, dict[str, Any]], DecisionView]] = {
    "optfs": KeptValues,
    "optinter": ChosenPairs,
}
"""By the model's name, made of the model and its description."""


def decision_view(name: str, model: RankingModel) -> DecisionView | None:
    """Of a model that a search decided on; None of others."""
    description = model.describe()
    return None if description is None else _VIEWS.get(name, Summary)(model, description)
