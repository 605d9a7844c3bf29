"""A search's decision in one sentence."""

from dataclasses import dataclass
from html import escape
from typing import Any

from ctrkit.explain.markup import Shown
from ctrkit.explain.raw import RawRow
from ctrkit.models.base import RankingModel

TITLE = "What the search decided"


@dataclass(frozen=True)
class Summary:
    """View and section in one: the description as JSON, its ``summary`` on the page."""

    model: RankingModel
    description: dict[str, Any]
    title: str = TITLE

    def whole(self) -> "Summary":
        return self

    def of_row(self, row: RawRow) -> None:
        return None

    def pruned(self, row: RawRow) -> set[str]:
        return set()

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, **self.description}

    def show(self, name: str) -> Shown:
        return Shown(f"<p>The search {escape(self.description['summary'])}.</p>", [])
