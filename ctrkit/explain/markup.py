"""The pieces that pages are made of."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ctrkit.explain.drawing import Picture


@dataclass(frozen=True)
class Shown:
    """A piece of a page, and the pictures in it."""

    html: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Number:
    """A cell that stands at the right; ``way`` is ``up``, orange, or ``down``, blue."""

    text: str
    way: str = ""


def figure(picture: Picture) -> str:
    return f"<figure>{picture.svg}</figure>"


def folded(summary: str, body: str) -> str:
    """Opened by a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str | Number]]) -> str:
    """Text is escaped; heads of numbers stand at the right as they do."""
    rows = list(rows)
    right = {place for row in rows[:1] for place, cell in enumerate(row) if isinstance(cell, Number)}
    heads = "".join(f"<th{' class=number' if place in right else ''}>{escape(name)}</th>" for place, name in enumerate(head))
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'


def signed(value: float) -> Number:
    return Number(f"{value:+.4f}", "up" if value > 0 else "down")


def slug(text: str) -> str:
    """For file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def slugs(texts: Sequence[str]) -> list[str]:
    """One each, no two alike."""
    found: list[str] = []
    for text in texts:
        name = slug(text)
        found.append(f"{name}_{len(found)}" if name in found else name)
    return found


def _cell(cell: str | Number) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    return f'<td class="number {cell.way}">{escape(cell.text)}</td>'
