"""The catalogue's vectors, searched for a user's: exactly, or approximately in a graph. Both are mapped into memory, not read.

Needs NumPy, usearch and ONNX Runtime; never torch.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ctrkit.errors import CtrkitError

INDEX_FOLDER, VECTORS_FILE, GRAPH_FILE, CENTRE_FILE, ABOUT_FILE = "index", "vectors.npy", "approximate.usearch", "centre.npy", "index.json"
_SCORES_AT_ONCE = 1 << 24


class ItemIndex(Protocol):
    """Finds the items whose vectors have the largest inner product with a user's."""

    def search(self, users: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 ``[users, width]`` -> item numbers int64 and scores float32, each ``[users, count]``, the best first.

        An approximate index may find fewer: the last numbers are then -1, with scores of minus infinity.
        """
        ...


class ExactIndex:
    """All inner products. Of equal scores the item of the lower number comes first.

    Args:
        folder: what ``write_index`` wrote.

    Raises:
        CtrkitError: there is none, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.vectors = np.load(folder / VECTORS_FILE, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from error

    def search(self, users: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(count, len(self.vectors))
        users = users.astype(np.float32, copy=False)  # beside doubles NumPy would make all vectors doubles, anew in each search
        size = max(1, _SCORES_AT_ONCE // len(self.vectors))
        found = [self._best(users[start : start + size] @ self.vectors.T, count) for start in range(0, len(users), size)]
        return np.concatenate([items for items, _ in found]), np.concatenate([scores for _, scores in found])

    @staticmethod
    def _best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.stack([best(row, count) for row in scores])
        return order, np.take_along_axis(scores, order, 1)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores, the best first, of equal ones the first place: what a stable sort of all puts first.

    NaN counts as the highest: as many places as asked are found, and who looks at their scores sees it.
    """
    count = min(count, len(scores))
    scores = np.where(np.isnan(scores), np.inf, scores)
    if count < len(scores) // 8:
        last = np.partition(scores, len(scores) - count)[len(scores) - count]
        above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
        places = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")[:count]]


class ApproximateIndex:
    """A hierarchical navigable small world graph (Malkov & Yashunin, TPAMI 2020), by usearch.

    Args:
        folder: what ``write_index`` wrote.
        breadth: candidates kept in a search; more find more and take longer.
        threads: CPU threads of one search; default all cores.

    Raises:
        CtrkitError: there is none, or it is damaged.
    """

    def __init__(self, folder: Path, breadth: int = 128, threads: int | None = None) -> None:
        about = read_about(folder)
        try:
            index = _graph().restore(str(folder / GRAPH_FILE), view=True)
            self._centre = np.load(folder / CENTRE_FILE)
        except Exception as error:  # usearch raises many types on a damaged file
            raise _damaged(folder, error) from error
        if index is None or len(index) != about["items"]:
            raise _damaged(folder, "the graph does not hold the catalogue")
        index.expansion_search = breadth
        self._index = index
        self._threads = threads or 0

    def search(self, users: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(count, len(self._index))
        matches = self._index.search(np.ascontiguousarray(users, np.float32), count, threads=self._threads)
        of_centre = users @ self._centre
        numbers, scores = np.full((len(users), count), -1), np.full((len(users), count), -np.inf, np.float32)
        for user in range(len(users)):
            found: Any = matches if len(users) == 1 else matches[user]
            numbers[user, : len(found.keys)], scores[user, : len(found.keys)] = found.keys, 1 - found.distances + of_centre[user]
        return numbers, scores


def write_index(vectors: np.ndarray, folder: Path, connectivity: int = 16, breadth: int = 128) -> dict[str, Any]:
    """Writes both indexes into an empty folder.

    Items are added to the graph in one thread: added by several at a time, some end up where no search finds them (of 2,000 items up to 1 %
    of all neighbours, in usearch 2), and no two graphs are alike.

    Vectors in the graph have their mean taken off, which adds the same to all of a user's scores: where all share a direction, as SASRec's
    do, a graph of the vectors themselves never leads to some (of Amazon Grocery's items it missed 7 %, with the mean taken off 1 %).

    Args:
        vectors: of the catalogue in its order, float32 ``[items, width]``.
        connectivity: neighbours of an item in the graph.
        breadth: candidates kept while an item is added.

    Returns:
        ``{items, width, connectivity, breadth}``, as ``index.json`` says too.

    Raises:
        OSError: it cannot be written.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    np.save(folder / VECTORS_FILE, vectors)
    centre = vectors.mean(0)
    index = _graph()(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=connectivity, expansion_add=breadth)
    index.add(np.arange(len(vectors)), vectors - centre, threads=1)
    _save(index, folder / GRAPH_FILE)
    np.save(folder / CENTRE_FILE, centre)
    about = {"items": len(vectors), "width": vectors.shape[1], "connectivity": connectivity, "breadth": breadth}
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf8")
    return about


def _save(index: Any, file: Path) -> None:
    """Raises OSError when not all of it could be written: usearch tells only sometimes, and in a way of its own."""
    try:
        index.save(str(file))
    except RuntimeError as error:
        raise OSError(str(error)) from error
    if file.stat().st_size != index.serialized_length:
        raise OSError(f"{file.stat().st_size:,} of {index.serialized_length:,} bytes of '{file.name}' were written")


def _graph() -> Any:
    """usearch's index. ONNX Runtime is loaded before it: after it (1.32 after usearch 2.26) it brings the process down."""
    import onnxruntime  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from usearch.index import Index

    return Index


def read_about(folder: Path) -> dict[str, Any]:
    """What ``write_index`` returned. Raises CtrkitError if there is no index."""
    try:
        return json.loads((folder / ABOUT_FILE).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the best items that an index found, over all users; an item that scores as high as the last of the best is one of them.

    Args:
        found: the scores of what it found, ``[users, count]``.
        exact: those of the exact index.
    """
    last = exact[:, -1:]
    return float((found >= last - 1e-5 * np.maximum(1, np.abs(last))).mean())


def _damaged(folder: Path, reason: object) -> CtrkitError:
    return CtrkitError(f"no index can be read at '{folder}': {reason}", "Build it with 'ctrkit index RUN'")
