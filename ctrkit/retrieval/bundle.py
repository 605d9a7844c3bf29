"""The exported artefact of two towers: ``<repo>/<name>/<version>/`` with a graph a tower, the catalogue, golden rows, and its index.

Raw values in, vectors out. Needs onnxruntime and, for its catalogue, Polars; never torch. Its manifest has a name of its own, by which
those who read a repository know towers from models that score.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctrkit.bundle import TOWERS_FILE, FileEntry, open_session, verify_files, versions
from ctrkit.errors import CtrkitError
from ctrkit.feeds import Columns, RowError, check_finite, columns_to_feed, frame_to_columns, rows_to_columns
from ctrkit.retrieval.index import INDEX_FOLDER, ApproximateIndex, ExactIndex, ItemIndex
from ctrkit.schema import Feature

if TYPE_CHECKING:
    import polars as pl

MANIFEST_FILE = TOWERS_FILE
USER_FILE, ITEM_FILE = "user_tower.onnx", "item_tower.onnx"
ITEMS_FILE, GOLDEN_FILE = "items.parquet", "golden.json"
KEY = "@key"
VECTOR = "vector"
ITEMS_AT_ONCE = 16_384


class RetrievalManifest(BaseModel):
    """What a bundle of towers holds and where it comes from."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str
    version: int = Field(ge=1)
    model: str = Field(description="the method's name in ctrkit, such as two_tower")
    created: str = Field(description="UTC, ISO 8601")
    run: str = Field(description="the training run's folder")
    weights: str = Field(description="SHA-256 of the run's weights")
    user_features: tuple[Feature, ...] = Field(description="of the user tower: user, history and context")
    item_features: tuple[Feature, ...]
    item_key: Feature = Field(description="how an item's key is read")
    width: int = Field(ge=1, description="of a vector")
    items: int = Field(ge=1, description="in the catalogue")
    metrics: dict[str, Any]
    max_abs_diff: float = Field(description="largest difference of a vector's entry found by the export's self-check")
    files: dict[str, FileEntry] = Field(description="every other file of the folder, its index not counted")
    versions: dict[str, str] = Field(description="of the software that wrote it")


class GoldenVectors(BaseModel):
    """Rows of each tower with the vectors they must get."""

    model_config = ConfigDict(frozen=True)
    users: list[dict[str, Any]]
    user_vectors: list[list[float]]
    items: list[dict[str, Any]]
    item_vectors: list[list[float]]


class RetrievalBundle:
    """One version of exported towers. Safe to call from several threads.

    Args:
        path: the version's folder.
        threads: CPU threads of one call; default all cores.
    """

    def __init__(self, path: Path, manifest: RetrievalManifest, threads: int | None = None) -> None:
        self.path, self.manifest, self._threads = path, manifest, threads

    @cached_property
    def _user_session(self) -> Any:
        return open_session(self.path / USER_FILE, self._threads)

    @cached_property
    def _item_session(self) -> Any:
        return open_session(self.path / ITEM_FILE, self._threads)

    def user_vectors(self, rows: Sequence[Any]) -> np.ndarray:
        """JSON objects of users, with their histories and contexts -> float32 ``[rows, width]``.

        Raises:
            RowError: a row that does not fit the features, or whose vector is not finite.
        """
        return self.encoded_users(rows_to_columns(rows, self.manifest.user_features))

    def encoded_users(self, columns: Columns) -> np.ndarray:
        """One canonical column a feature of the user tower -> float32 ``[rows, width]``. Raises RowError for a vector that is not finite."""
        return _run(self._user_session, columns, self.manifest.user_features)

    def item_vectors(self, rows: Sequence[Any]) -> np.ndarray:
        """JSON objects of items, those outside the catalogue too -> float32 ``[rows, width]``. Raises as ``user_vectors``."""
        return _run(self._item_session, rows_to_columns(rows, self.manifest.item_features), self.manifest.item_features)

    @cached_property
    def catalogue(self) -> "pl.DataFrame":
        """Canonical raw features of all items, with ``@key``; an index numbers items by these rows."""
        import polars as pl

        return pl.read_parquet(self.path / ITEMS_FILE)

    def catalogue_vectors(self) -> np.ndarray:
        """float32 ``[items, width]``.

        Raises:
            CtrkitError: an item whose vector is not finite.
        """
        return np.concatenate([self._vectors_of(part) for part in self.catalogue.iter_slices(ITEMS_AT_ONCE)])

    def _vectors_of(self, items: "pl.DataFrame") -> np.ndarray:
        features = self.manifest.item_features
        try:
            return _run(self._item_session, frame_to_columns(items, features), features)
        except RowError as error:
            where = "" if error.field is None else f", feature '{error.field}'"
            raise CtrkitError(
                f"the catalogue's item {items[KEY][error.row or 0]!r}{where}: {error.reason}",
                "Mend it in the log's items, then train again",
            ) from None

    def index(self, exact: bool = True) -> ItemIndex:
        """The index that ``ctrkit index`` built. Raises CtrkitError if there is none."""
        folder = self.path / INDEX_FOLDER
        return ExactIndex(folder) if exact else ApproximateIndex(folder, threads=self._threads)

    def golden(self) -> GoldenVectors:
        return GoldenVectors.model_validate_json((self.path / GOLDEN_FILE).read_bytes())


def _run(session: Any, columns: Columns, features: Sequence[Feature]) -> np.ndarray:
    """Vectors whose squared lengths are finite, and so all inner products of two."""
    vectors = session.run([VECTOR], columns_to_feed(columns, features))[0]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("rw,rw->r", vectors, vectors)
    check_finite(squares, columns, features)
    return vectors


def open_retrieval_bundle(path: str | Path, *, threads: int | None = None, verify: bool = True) -> RetrievalBundle:
    """Opens a version's folder, or the latest version in a model's folder.

    Raises:
        CtrkitError: no bundle of towers there, or a file is missing, cut short or altered.
    """
    folder = Path(path)
    if not (folder / MANIFEST_FILE).is_file():
        found = tower_versions(folder)
        if not found:
            raise CtrkitError(f"no exported towers at '{path}'", "Write them with 'ctrkit export RUN --to REPO'")
        folder = folder / str(found[-1])
    try:
        manifest = RetrievalManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CtrkitError(f"'{folder / MANIFEST_FILE}' is no manifest: {where}: {first['msg']}", "Export the run again") from error
    if verify:
        verify_files(folder, manifest.files)
    return RetrievalBundle(folder, manifest, threads)


def tower_versions(model_folder: Path) -> list[int]:
    """Versions of towers in a model's folder, oldest first."""
    return versions(model_folder, (MANIFEST_FILE,))
