"""What a search leaves in its folder, ``<run>/search``, for the training that follows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctrkit.models.base import Decision
from ctrkit.models.search import END, Search
from ctrkit.training.run import save_tensors

SEARCH_FOLDER = "search"
DECISION_FILE = "decision.json"
_FOUND_FILE = "found.pt"
_REWIND_FILE = "rewind.pt"


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        decision: the form of the model to train.
        start: its ``dense_arch`` and ``tables`` to start from; None: anew.
        trained: whether these are those of the search's end, so that the model may be at its best before it is trained.
        seconds: wall time, resumed sessions included.
    """

    decision: Decision
    start: dict[str, Any] | None
    trained: bool
    seconds: float


def save_rewind(folder: Path, weights: dict[str, Any]) -> None:
    """Keeps the search's weights that the model is to start from."""
    save_tensors(weights, folder / _REWIND_FILE)


def save_found(folder: Path, decision: Decision, seconds: float) -> None:
    """Keeps the decision. The search is finished once this file is there."""
    save_tensors({"decision": decision, "seconds": seconds}, folder / _FOUND_FILE)


def read_found(folder: Path, search: Search) -> Found | None:
    """The outcome of a finished search, None for an unfinished one."""
    if not (folder / _FOUND_FILE).is_file():
        return None
    found = torch.load(folder / _FOUND_FILE, map_location="cpu", weights_only=True)
    start = None
    if search.rewind_epoch is not None:
        start = search.rewound(torch.load(folder / _REWIND_FILE, map_location="cpu", weights_only=True, mmap=True), found["decision"])
    return Found(found["decision"], start, search.rewind_epoch == END, found["seconds"])


def forget_rewind(folder: Path) -> None:
    """Removes the weights to start from, once the run is finished."""
    (folder / _REWIND_FILE).unlink(missing_ok=True)
