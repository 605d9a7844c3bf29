"""A trained run of towers -> a bundle: each tower an ONNX graph that takes raw values, checked against the trained model."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import torch
from torch import Tensor, nn

import ctrkit
from ctrkit.bundle import describe_files, open_session
from ctrkit.embeddings.tables import Group
from ctrkit.errors import CtrkitError
from ctrkit.export.graph import VECTOR, write_model
from ctrkit.export.selfcheck import TOLERANCE, checked_rows, to_tensors
from ctrkit.export.twin import Twin
from ctrkit.export.version import new_version
from ctrkit.export.writer import json_rows
from ctrkit.feeds import columns_to_feed, frame_to_columns, input_names
from ctrkit.retrieval.batch import tower_batch
from ctrkit.retrieval.bundle import (
    GOLDEN_FILE,
    ITEM_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    USER_FILE,
    GoldenVectors,
    RetrievalManifest,
)
from ctrkit.retrieval.dataset import KEY, Catalogue
from ctrkit.retrieval.methods import method_of
from ctrkit.retrieval.rows import Rows
from ctrkit.retrieval.run import catalogue_of, read_result, read_run, read_weights
from ctrkit.retrieval.towers import RetrievalModel, TwoTowers, reload
from ctrkit.schema import Feature, Inputs
from ctrkit.transforms import FittedTransforms


@dataclass(frozen=True)
class ExportedTowers:
    """The version's folder, the self-check's largest difference, the bundle's size."""

    bundle: Path
    max_abs_diff: float
    bytes: int


class _Side(nn.Module):
    """A tower as a dense arch."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        return self.tower(embeddings["embedding"], dense)


@dataclass(frozen=True)
class _Tower:
    """One tower to write: its transforms, its plain-tensor twin, the trained model it must agree with, and the rows to compare on."""

    file: str
    transforms: FittedTransforms
    inputs: Inputs
    twin: Twin
    reference: Callable[[Rows], np.ndarray]
    golden: pl.DataFrame


def export_towers(run: Path, repo: Path, name: str | None = None) -> ExportedTowers:
    """Writes the next version of ``<repo>/<name>`` from a finished run, whole or not at all.

    Args:
        name: the model's name in the repository; default ``export.name``, else the experiment's name.

    Raises:
        CtrkitError: no finished run of towers, a name that cannot be used, no room, or a graph that does not give the trained vectors.
    """
    experiment, catalogue = read_run(run), catalogue_of(run)
    method, settings = method_of(experiment.model)
    if method.build is None:
        raise CtrkitError(f"the run '{run}' is of '{method.name}', which is not two towers", "Export a run of two_tower or fusion")
    weights = read_weights(run)
    towers = method.build(catalogue, experiment.embedding.dim, settings)
    model = reload(towers, weights, catalogue.query_inputs, catalogue.item_inputs, experiment.embedding)
    sides = _sides(catalogue, towers, model, weights["tables"], experiment.embedding.dim, experiment.export.golden_rows)
    name = name or experiment.export.name or experiment.name
    with new_version(repo, name) as version:
        scratch, number = version.scratch, version.number
        found = [_write(side, scratch, name, number, settings.width, experiment.export.external_data_mb * 2**20) for side in sides]
        catalogue.items.write_parquet(scratch / ITEMS_FILE)
        (users, user_diff), (items, item_diff) = found
        golden = GoldenVectors(
            users=json_rows(sides[0].golden),
            user_vectors=users.tolist(),
            items=json_rows(sides[1].golden),
            item_vectors=items.tolist(),
        )
        (scratch / GOLDEN_FILE).write_bytes(orjson.dumps(golden.model_dump()))
        result = read_result(run)
        manifest = RetrievalManifest(
            name=name,
            version=number,
            model=method.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run=run.resolve().name,
            user_features=sides[0].transforms.features,
            item_features=sides[1].transforms.features,
            item_key=catalogue.item_key,
            width=settings.width,
            items=catalogue.items.height,
            metrics={split: result[split] for split in ("valid", "test")} if result else {},
            max_abs_diff=max(user_diff, item_diff),
            files=describe_files(scratch),
            versions={"ctrkit": ctrkit.__version__}
            | {package: installed(package) for package in ("torch", "torchrec", "onnx", "onnxruntime")},
        )
        (scratch / MANIFEST_FILE).write_bytes(orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        version.publish()
    return ExportedTowers(version.folder, manifest.max_abs_diff, sum(file.stat().st_size for file in version.folder.iterdir()))


def _sides(
    catalogue: Catalogue, towers: TwoTowers, model: RetrievalModel, tables: dict[str, Tensor], dim: int, golden_rows: int
) -> tuple[_Tower, _Tower]:
    """The user's tower and the item's."""
    query_inputs, item_inputs = catalogue.query_inputs, catalogue.item_inputs

    def users(rows: Rows) -> np.ndarray:
        with torch.no_grad():
            return model(tower_batch(rows, None, query_inputs, item_inputs))[0].numpy()

    def items(rows: Rows) -> np.ndarray:
        with torch.no_grad():
            return model(tower_batch(None, rows, query_inputs, item_inputs))[1].numpy()

    golden = catalogue.items.drop(KEY).head(golden_rows)
    return (
        _tower(USER_FILE, catalogue, catalogue.query_features, query_inputs, towers.user, tables, dim, users, catalogue.golden_queries),
        _tower(ITEM_FILE, catalogue, catalogue.item_features, item_inputs, towers.item, tables, dim, items, golden),
    )


def _tower(
    file: str,
    catalogue: Catalogue,
    features: tuple[Feature, ...],
    inputs: Inputs,
    tower: nn.Module,
    tables: dict[str, Tensor],
    dim: int,
    reference: Callable[[Rows], np.ndarray],
    golden: pl.DataFrame,
) -> _Tower:
    """A history has a copy of the item's table in its tower's graph: the item's feature itself is not there."""
    own = {f"embedding/{field.name}": tables[f"embedding/{field.table}"] for field in inputs.id_fields}
    fields = tuple(field.model_copy(update={"of": None, "length": 0}) for field in inputs.id_fields)
    plain = inputs.model_copy(update={"id_fields": fields})
    twin = Twin(plain, own, _Side(tower), (Group("embedding", dim),), last=nn.Identity()).eval()
    transforms = FittedTransforms([catalogue.transforms[feature.name] for feature in features])
    return _Tower(file, transforms, inputs, twin, reference, golden.select(f.name for f in features))


def _write(tower: _Tower, folder: Path, name: str, number: int, width: int, external: float) -> tuple[np.ndarray, float]:
    """The golden rows' vectors as the graph gives them, and the largest difference from the trained model.

    Raises:
        CtrkitError: a difference above 1e-5, or a feature that is named as the output is.
    """
    features = tower.transforms.features
    if any(VECTOR in input_names(feature) for feature in features):
        raise CtrkitError(f"a feature is named '{VECTOR}', which is the name of the tower's output", "Rename the column")
    write_model(
        folder, tower.twin, tower.transforms.onnx_graph(), name=name, version=number, external_bytes=external, file=tower.file, vector=width
    )
    session = open_session(folder / tower.file)
    worst, golden = 0.0, np.empty(0)
    for what, frame in checked_rows(features, tower.golden).items():
        encoded = tower.transforms.encode(frame)
        trained = tower.reference(Rows.of(encoded, tower.inputs))
        with torch.no_grad():
            rebuilt = tower.twin(to_tensors(encoded, tower.twin.inputs)).numpy()
        exported = session.run([VECTOR], columns_to_feed(frame_to_columns(frame, features), features))[0]
        for other, vectors in (("ONNX", exported), ("serving twin", rebuilt)):
            if vectors.shape != trained.shape:
                raise CtrkitError(f"the {other} tower '{tower.file}' gives {vectors.shape} for {trained.shape} of the trained one")
            largest = float(np.abs(vectors.astype(np.float64) - trained).max())
            worst = max(worst, largest)
            if not largest <= TOLERANCE:  # NaN too
                raise CtrkitError(
                    f"the {other} tower '{tower.file}' is not the trained one: on the {what} rows they differ by {largest:.3g}, "
                    f"{TOLERANCE:g} is allowed",
                    "Nothing was exported. This is a fault of ctrkit: please report it with the run's config.yaml",
                )
        if what == "golden":
            golden = exported
    return golden, worst
