"""One version of two towers: loaded with its catalogue and index, checked against the vectors that it must give, warmed up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrkit.bundle import TOWERS_FILE
from ctrkit.errors import CtrkitError
from ctrkit.feeds import RowError, rows_to_columns
from ctrkit.retrieval.bundle import ITEMS_AT_ONCE, KEY, RetrievalBundle, open_retrieval_bundle
from ctrkit.retrieval.index import INDEX_FOLDER, ApproximateIndex, ExactIndex, ItemIndex
from ctrkit.schema import Feature
from serving.answering import Answering
from serving.compatible import check_features
from serving.items import ItemTable, Row, View, columns_to_frame
from serving.search import search
from serving.settings import ServingSettings

if TYPE_CHECKING:
    import polars as pl

GOLDEN_DIFFERENCE = 1e-3
"""Of a vector's entry, from what the exporting machine got: above rounding of other processors, below any mistake."""

WARM_USERS = 8


class ServedTowers(Answering):
    """A version that recommends, warm.

    Args:
        bundle: its files.

    Attributes:
        index: of the catalogue, approximate.
        view: its items now; taken once a request, and only ever replaced as a whole.
        row_features: of an item's row: the item tower's, and the key if it is none of them.
    """

    def __init__(self, bundle: RetrievalBundle, settings: ServingSettings) -> None:
        super().__init__(bundle.manifest.name, bundle.manifest.version, settings)
        folder = bundle.path / INDEX_FOLDER
        self.bundle = bundle
        self.index: ItemIndex = ApproximateIndex(folder, threads=1)
        self.view = View.of(ItemTable(bundle.catalogue, ExactIndex(folder).vectors))
        self.row_features = item_columns(bundle)
        _warm_up(self)

    def encoded(self, rows: Mapping[Any, Row]) -> "tuple[pl.DataFrame, np.ndarray]":
        """Items by key -> their canonical rows and vectors ``[items, width]``. Fields that this version does not know are left out.

        Raises:
            RowError: a row that does not fit, or whose vector is not finite.
        """
        known = {feature.name for feature in self.bundle.manifest.item_features}
        read = [{name: value for name, value in row.items() if name in known} for row in rows.values()]
        columns = rows_to_columns(read, self.bundle.manifest.item_features)
        vectors = np.concatenate([self._vectors(read, start) for start in range(0, len(read), ITEMS_AT_ONCE)])
        keys = rows_to_columns([{KEY: key} for key in rows], (self.bundle.manifest.item_key.model_copy(update={"name": KEY}),))
        return columns_to_frame({**columns, **keys}, self.view.base.frame.schema), vectors

    def _vectors(self, rows: Sequence[Row], start: int) -> np.ndarray:
        """Of ``ITEMS_AT_ONCE`` rows from ``start`` on. Raises RowError, whose row is that of all."""
        try:
            return self.bundle.item_vectors(rows[start : start + ITEMS_AT_ONCE])
        except RowError as error:
            raise RowError(start + (error.row or 0), error.field, error.reason) from None


def item_columns(bundle: RetrievalBundle) -> tuple[Feature, ...]:
    """What is known of an item: the item tower's features, and the key if it is none of them."""
    features, key = bundle.manifest.item_features, bundle.manifest.item_key
    return features if any(feature.name == key.name for feature in features) else (*features, key)


def open_towers(folder: Path, threads: int) -> RetrievalBundle:
    """A version's bundle with its graphs loaded.

    Raises:
        CtrkitError: files that are missing or altered, no index or one of another catalogue, graphs that cannot be loaded or that do not
            give the vectors they gave when they were exported.
    """
    bundle = open_retrieval_bundle(folder, threads=threads)
    manifest = bundle.manifest
    if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
        raise CtrkitError(
            f"'{folder}' holds version {manifest.version} of the model '{manifest.name}', as its manifest says",
            "Export the run into this repository, or give the folder its name",
        )
    _check_golden(bundle, ExactIndex(folder / INDEX_FOLDER).vectors)
    return bundle


def check_compatible(new: RetrievalBundle, now: RetrievalBundle) -> None:
    """Raises CtrkitError when requests that the towers answer now, or items that were added to them, would not fit the new version."""
    for has, wants in ((new.manifest.user_features, now.manifest.user_features), (item_columns(new), item_columns(now))):
        check_features(new.manifest.version, has, now.manifest.version, wants)
    if new.manifest.item_key != now.manifest.item_key:
        raise CtrkitError(f"version {new.manifest.version} has other keys of items than version {now.manifest.version}")


def describe(towers: ServedTowers) -> dict[str, Any]:
    """What ``GET /v1/models/<name>`` says of towers."""
    manifest = towers.bundle.manifest
    view = towers.view
    return {
        "model": manifest.model,
        "created": manifest.created,
        "user_features": [_told(feature) for feature in manifest.user_features],
        "item_features": [_told(feature) for feature in towers.row_features],
        "item_key": manifest.item_key.name,
        "width": manifest.width,
        "items": {"indexed": len(view.base), "hidden": view.hidden, "added": len(view.added)},
        "metrics": manifest.metrics,
    }


def _told(feature: Feature) -> dict[str, str]:
    return {"name": feature.name, "kind": feature.kind.value, "dtype": "number" if feature.kind.value == "numeric" else feature.dtype}


def _check_golden(bundle: RetrievalBundle, vectors: np.ndarray) -> None:
    manifest, golden = bundle.manifest, bundle.golden()
    if vectors.shape != (manifest.items, manifest.width) or bundle.catalogue.height != manifest.items:
        raise CtrkitError(
            f"the index in '{bundle.path}' is of {len(vectors):,} vectors and not of the {manifest.items:,} items of '{TOWERS_FILE}'",
            "Build it again with 'ctrkit index RUN'",
        )
    if not np.isfinite([vectors.min(), vectors.max()]).all():
        raise CtrkitError(f"the index in '{bundle.path}' holds vectors that are not finite", "Build it again with 'ctrkit index RUN'")
    checks = (
        ("user tower", bundle.user_vectors(golden.users), golden.user_vectors, "Export it again"),
        ("item tower", bundle.item_vectors(golden.items), golden.item_vectors, "Export it again"),
        ("index", vectors[: len(golden.items)], golden.item_vectors, "Build it again with 'ctrkit index RUN'"),
    )
    for what, found, wanted, remedy in checks:
        if not len(wanted):
            continue
        difference = float(np.abs(found - np.array(wanted, np.float32)).max())
        if not difference <= GOLDEN_DIFFERENCE:
            raise CtrkitError(
                f"the {what} in '{bundle.path}' does not give the vectors of when it was exported: {difference:.2g} off", remedy
            )


def _warm_up(towers: ServedTowers) -> None:
    """Searches as requests do, in the graph and among all: the mapped files are read once, and keys are known."""
    users = towers.bundle.user_vectors(towers.bundle.golden().users[:WARM_USERS] or [{}])
    for user in users:
        towers.index.search(user[None], 10)
        found = search(towers.view, towers.index, user, towers.view.open, 10, exact=True)
        towers.view.numbers(towers.view.keys(found.numbers))
