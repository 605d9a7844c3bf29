"""A trained run -> a bundle: users and items each an ONNX graph that takes raw values, checked against the trained model."""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import torch

import ctrkit
from ctrkit.bundle import describe_files, open_session, sha256_of
from ctrkit.errors import CtrkitError
from ctrkit.export.graph import VECTOR, write_model
from ctrkit.export.selfcheck import TOLERANCE, checked_rows, to_tensors
from ctrkit.export.version import new_version
from ctrkit.export.writer import json_rows
from ctrkit.feeds import columns_to_feed, frame_to_columns, input_names
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
from ctrkit.retrieval.methods import METHODS, method_of
from ctrkit.retrieval.rows import Rows
from ctrkit.retrieval.run import catalogue_of, read_result, read_run, read_weights
from ctrkit.retrieval.trained import Side, Trained
from ctrkit.schema import Feature
from ctrkit.training.run import WEIGHTS_FILE
from ctrkit.transforms import FittedTransforms


@dataclass(frozen=True)
class ExportedTowers:
    """The version's folder, the self-check's largest difference, the bundle's size."""

    bundle: Path
    max_abs_diff: float
    bytes: int


@dataclass(frozen=True)
class _Graph:
    """One graph to write: its file, the transforms of all the side's features, the model's side, and the rows to compare on."""

    file: str
    transforms: FittedTransforms
    side: Side
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
    if method.load is None:
        able = [one.name for one in METHODS.values() if one.load]
        raise CtrkitError(f"the run '{run}' is of '{method.name}', whose weights are not kept", f"Export a run of {', '.join(able)}")
    trained = method.load(experiment, catalogue, read_weights(run), settings)
    graphs = _graphs(catalogue, trained, experiment.export.golden_rows)
    name = name or experiment.export.name or experiment.name
    with new_version(repo, name) as version:
        scratch, number = version.scratch, version.number
        external = experiment.export.external_data_mb * 2**20
        found = [_write(graph, scratch, name, number, trained.width, external) for graph in graphs]
        items = io.BytesIO()
        catalogue.items.write_parquet(items)  # to a file Polars would say in its own words that there is no room
        (scratch / ITEMS_FILE).write_bytes(items.getbuffer())
        (user_vectors, user_diff), (item_vectors, item_diff) = found
        golden = GoldenVectors(
            users=json_rows(graphs[0].golden),
            user_vectors=user_vectors.tolist(),
            items=json_rows(graphs[1].golden),
            item_vectors=item_vectors.tolist(),
        )
        (scratch / GOLDEN_FILE).write_bytes(orjson.dumps(golden.model_dump()))
        result = read_result(run)
        manifest = RetrievalManifest(
            name=name,
            version=number,
            model=method.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run=run.resolve().name,
            weights=sha256_of(run / WEIGHTS_FILE),
            user_features=graphs[0].transforms.features,
            item_features=graphs[1].transforms.features,
            item_key=catalogue.item_key,
            width=trained.width,
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


def _graphs(catalogue: Catalogue, trained: Trained, golden_rows: int) -> tuple[_Graph, _Graph]:
    """The user's and the item's. They take all features of their side, those that the model does not read too: the catalogue is filtered,
    and found items are ranked, by any of them."""
    users, items = trained.sides()
    return (
        _graph(USER_FILE, catalogue, catalogue.query_features, users, catalogue.golden_queries),
        _graph(ITEM_FILE, catalogue, catalogue.item_features, items, catalogue.items.drop(KEY).head(golden_rows)),
    )


def _graph(file: str, catalogue: Catalogue, features: tuple[Feature, ...], side: Side, golden: pl.DataFrame) -> _Graph:
    transforms = FittedTransforms([catalogue.transforms[feature.name] for feature in features])
    return _Graph(file, transforms, side, golden.select(f.name for f in features))


def _write(graph: _Graph, folder: Path, name: str, number: int, width: int, external: float) -> tuple[np.ndarray, float]:
    """The golden rows' vectors as the graph gives them, and the largest difference from the trained model.

    Raises:
        CtrkitError: a difference above 1e-5, or a feature that is named as the output is.
    """
    features, twin = graph.transforms.features, graph.side.twin.eval()
    if any(VECTOR in input_names(feature) for feature in features):
        raise CtrkitError(f"a feature is named '{VECTOR}', which is the name of the tower's output", "Rename the column")
    write_model(
        folder, twin, graph.transforms.onnx_graph(), name=name, version=number, external_bytes=external, file=graph.file, vector=width
    )
    session = open_session(folder / graph.file)
    worst, golden = 0.0, np.empty(0)
    for what, frame in checked_rows(features, graph.golden).items():
        encoded = graph.transforms.encode(frame)
        trained = graph.side.reference(Rows.of(encoded, graph.side.inputs))
        with torch.no_grad():
            rebuilt = twin(to_tensors(encoded, twin.inputs)).numpy()
        exported = session.run([VECTOR], columns_to_feed(frame_to_columns(frame, features), features))[0]
        for other, vectors in (("ONNX", exported), ("serving twin", rebuilt)):
            if vectors.shape != trained.shape:
                raise CtrkitError(f"the {other} tower '{graph.file}' gives {vectors.shape} for {trained.shape} of the trained one")
            largest = float(np.abs(vectors.astype(np.float64) - trained).max())
            worst = max(worst, largest)
            if not largest <= TOLERANCE:  # NaN too
                raise CtrkitError(
                    f"the {other} tower '{graph.file}' is not the trained one: on the {what} rows they differ by {largest:.3g}, "
                    f"{TOLERANCE:g} is allowed",
                    "Nothing was exported. This is a fault of ctrkit: please report it with the run's config.yaml",
                )
        if what == "golden":
            golden = exported
    return golden, worst
