"""Towers that nobody trained, around given vectors: what benchmarks and tests of ``:recommend`` serve.

A user likes one item, and has its vector. An item has the vector of its number, modulo their count, times one plus its ``boost``: an item
with a new number has the vector of a known one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import polars as pl
from onnx import TensorProto, helper, numpy_helper

import ctrkit
from ctrkit.bundle import describe_files
from ctrkit.retrieval.bundle import (
    GOLDEN_FILE,
    ITEM_FILE,
    ITEMS_FILE,
    KEY,
    MANIFEST_FILE,
    USER_FILE,
    VECTOR,
    GoldenVectors,
    RetrievalManifest,
)
from ctrkit.retrieval.index import INDEX_FOLDER, write_index
from ctrkit.schema import Feature

USER_FEATURES = (
    Feature.model_validate({"name": "likes", "kind": "categorical", "dtype": "int"}),
    Feature.model_validate({"name": "recent", "kind": "sequence", "of": "item", "dtype": "int", "transform": {"kind": "vocabulary"}}),
)
ITEM_FEATURES = (
    Feature.model_validate({"name": "item", "kind": "categorical", "dtype": "int"}),
    Feature.model_validate({"name": "colour", "kind": "categorical"}),
    Feature.model_validate({"name": "tags", "kind": "multi_valued"}),
    Feature.model_validate({"name": "boost", "kind": "numeric"}),
)
COLOURS = ("red", "green", "blue", "white")
GOLDEN_ROWS = 16


def write_towers(repo: Path, name: str, version: int, vectors: np.ndarray) -> Path:
    """Writes ``<repo>/<name>/<version>`` with its index and returns it.

    Item ``i`` is of colour ``i mod 4``, and has the tags ``t<i mod 7>`` and, of every hundredth item, ``rare``.

    Args:
        vectors: float32 ``[items, width]``; items are numbered by its rows.
    """
    count, width = vectors.shape
    folder = repo / name / str(version)
    folder.mkdir(parents=True)
    _save(_graph(vectors, "likes", [("recent.values", TensorProto.INT64), ("recent.lengths", TensorProto.INT64)]), folder / USER_FILE)
    others = [("colour", TensorProto.STRING), ("tags.values", TensorProto.STRING), ("tags.lengths", TensorProto.INT64)]
    _save(_graph(vectors, "item", others, boost=True), folder / ITEM_FILE)
    number = np.arange(count)
    tags = pl.DataFrame({"i": number}).select(
        pl.when(pl.col("i") % 100 == 0)
        .then(pl.concat_list(pl.format("t{}", pl.col("i") % 7), pl.lit("rare")))
        .otherwise(pl.concat_list(pl.format("t{}", pl.col("i") % 7)))
        .alias("tags")
    )
    items = pl.DataFrame({KEY: number, "item": number, "colour": np.array(COLOURS)[number % 4], **tags.to_dict(as_series=True)})
    items.with_columns(boost=pl.lit(0.0)).write_parquet(folder / ITEMS_FILE)
    rows = list(range(min(count, GOLDEN_ROWS)))
    kept = vectors[: len(rows)].tolist()
    golden = GoldenVectors(
        users=[{"likes": row} for row in rows], user_vectors=kept, items=[{"item": row} for row in rows], item_vectors=kept
    )
    (folder / GOLDEN_FILE).write_bytes(orjson.dumps(golden.model_dump()))
    manifest = RetrievalManifest(
        name=name,
        version=version,
        model="synthetic",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=f"{name}-synthetic-{version}",
        weights="",
        user_features=USER_FEATURES,
        item_features=ITEM_FEATURES,
        item_key=ITEM_FEATURES[0],
        width=width,
        items=count,
        metrics={},
        max_abs_diff=0.0,
        files=describe_files(folder),
        versions={"ctrkit": ctrkit.__version__},
    )
    (folder / MANIFEST_FILE).write_bytes(orjson.dumps(manifest.model_dump(mode="json")))
    (folder / INDEX_FOLDER).mkdir()
    write_index(vectors, folder / INDEX_FOLDER)
    return folder


def clustered(count: int, width: int, clusters: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around so many random centres, float32 ``[count, width]``: catalogues have topics."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, width), np.float32)
    vectors = centres[random.integers(0, clusters, count)] + 0.7 * random.standard_normal((count, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _graph(vectors: np.ndarray, item: str, others: Sequence[tuple[str, Any]], boost: bool = False) -> onnx.ModelProto:
    """``vector = table[item mod count] * (1 + boost)``; the other inputs are read by nobody."""
    inputs = [helper.make_tensor_value_info(item, TensorProto.INT64, ["rows"])]
    inputs += [helper.make_tensor_value_info(name, kind, ["total" if name.endswith(".values") else "rows"]) for name, kind in others]
    nodes = [
        helper.make_node("Mod", [item, "count"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["row" if boost else VECTOR]),
    ]
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(vectors, np.float32), "table"),
        helper.make_tensor("count", TensorProto.INT64, [], [len(vectors)]),
    ]
    if boost:
        inputs.append(helper.make_tensor_value_info("boost", TensorProto.DOUBLE, ["rows"]))
        nodes += [
            helper.make_node("IsNaN", ["boost"], ["none"]),
            helper.make_node("Where", ["none", "zero", "boost"], ["known"]),
            helper.make_node("Add", ["known", "one"], ["times"]),
            helper.make_node("Cast", ["times"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["factor", "last"], ["column"]),
            helper.make_node("Mul", ["row", "column"], [VECTOR]),
        ]
        constants += [
            helper.make_tensor("zero", TensorProto.DOUBLE, [], [0.0]),
            helper.make_tensor("one", TensorProto.DOUBLE, [], [1.0]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        ]
    output = helper.make_tensor_value_info(VECTOR, TensorProto.FLOAT, ["rows", vectors.shape[1]])
    graph = helper.make_graph(nodes, "synthetic", inputs, [output], initializer=constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _save(model: onnx.ModelProto, file: Path) -> None:
    onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=1 << 20)
