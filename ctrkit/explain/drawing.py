"""How all pictures are drawn: each once, as PNG for a folder and as SVG for a page.

Orange is more, blue is less.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MORE, LESS = "#e8590c", "#1c6fd4"
PERMUTATION, GRADIENTS = "#64748b", "#7c3aed"
OWN = "#0f766e"
INK, FAINT, LINE = "#1f2937", "#6b7280", "#e5e7eb"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "ctrkit",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Picture:
    """One drawing, twice.

    Attributes:
        name: of the file, without ``.png``.
        svg: without XML's prologue, to be put into a page.
    """

    name: str
    png: bytes
    svg: str


@contextmanager
def styled(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches; all of it, ``finished`` included, is drawn inside the block."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def finished(name: str, figure: Figure) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a page shows any script; the PNG only what its font holds
        figure.savefig(png, dpi=130, format="png")
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    text = svg.getvalue()
    return Picture(name, png.getvalue(), re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL))


def bare(axes: Axes, grid: str) -> None:
    """No frame, and a faint grid along an axis: ``x``, ``y`` or ``both``."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis=grid, color=LINE, linewidth=0.7)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def short(text: str, length: int) -> str:
    """On one line, and cut to so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def words(value: object) -> str:
    """A raw value on one line; a list's values one after the other."""
    if value is None or value in ("", []):
        return "missing"
    if isinstance(value, list):
        return ", ".join(str(element) for element in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
