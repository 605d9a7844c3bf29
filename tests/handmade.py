"""A bundle made by hand: a small graph whose probabilities a test can work out itself."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from ctrkit.bundle import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, describe_files
from ctrkit.schema import MISSING_INT, Feature, IdField, Inputs

FEATURES = (
    Feature.model_validate({"name": "user", "kind": "categorical"}),
    Feature.model_validate({"name": "age", "kind": "categorical", "dtype": "int"}),
    Feature.model_validate({"name": "price", "kind": "numeric"}),
    Feature.model_validate({"name": "tags", "kind": "multi_valued"}),
)
USERS = {"u1": 1.0, "u2": -2.0, "": 0.25}
"""A user's share of the logit; 0.5 for any other."""


def probability(row: dict[str, Any], shift: float = 0.0) -> float:
    """What the graph gives a row: sigmoid of user's share + age / 100 + price / 10 - tags / 2 + shift."""
    price, tags = row.get("price"), row.get("tags") or []
    count = len(tags.split("|")) if isinstance(tags, str) else len(tags)
    logit = USERS.get(row.get("user") or "", 0.5) + (row.get("age") or 0) / 100 + (price or 0.0) / 10 - count / 2 + shift
    return 1 / (1 + math.exp(-logit))


def make_bundle(repo: Path, name: str = "clicks", version: int = 1, shift: float = 0.0, golden: Sequence[dict[str, Any]] = ()) -> Path:
    """Writes ``<repo>/<name>/<version>`` and returns it."""
    folder = repo / name / str(version)
    folder.mkdir(parents=True)
    onnx.save(_graph(shift), folder / MODEL_FILE)
    kept = {"rows": list(golden), "probabilities": [probability(row, shift) for row in golden]}
    (folder / GOLDEN_FILE).write_text(json.dumps(kept))
    manifest = Manifest(
        name=name,
        version=version,
        model="handmade",
        created="2025-01-01T00:00:00+00:00",
        run="handmade-1",
        label="click",
        features=FEATURES,
        inputs=Inputs(id_fields=(IdField(name="user", rows=4),), numeric_fields=("price",)),
        metrics={"test": {"auc": 0.75}},
        profile={},
        max_abs_diff=0.0,
        files=describe_files(folder),
        versions={"ctrkit": "0"},
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
    return folder


def _graph(shift: float) -> onnx.ModelProto:
    def value(name: str, kind: int, dimension: str = "rows") -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [dimension])

    def number(name: str, kind: int, content: float) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, [], [content])

    keys, shares = list(USERS), list(USERS.values())
    nodes = [
        helper.make_node("LabelEncoder", ["user"], ["a"], domain="ai.onnx.ml", keys_strings=keys, values_floats=shares, default_float=0.5),
        helper.make_node("Equal", ["age", "missing"], ["no_age"]),
        helper.make_node("Where", ["no_age", "zero_int", "age"], ["known_age"]),
        helper.make_node("Cast", ["known_age"], ["age_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["age_float", "hundredth"], ["b"]),
        helper.make_node("IsNaN", ["price"], ["no_price"]),
        helper.make_node("Where", ["no_price", "zero_double", "price"], ["known_price"]),
        helper.make_node("Cast", ["known_price"], ["price_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["price_float", "tenth"], ["c"]),
        helper.make_node("Cast", ["tags.lengths"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["count", "minus_half"], ["d"]),
        helper.make_node("Sum", ["a", "b", "c", "d", "shift"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "handmade",
        [
            value("user", TensorProto.STRING),
            value("age", TensorProto.INT64),
            value("price", TensorProto.DOUBLE),
            value("tags.values", TensorProto.STRING, "total"),
            value("tags.lengths", TensorProto.INT64),
        ],
        [value("probability", TensorProto.FLOAT)],
        initializer=[
            number("missing", TensorProto.INT64, MISSING_INT),
            number("zero_int", TensorProto.INT64, 0),
            number("zero_double", TensorProto.DOUBLE, 0.0),
            number("hundredth", TensorProto.FLOAT, 0.01),
            number("tenth", TensorProto.FLOAT, 0.1),
            number("minus_half", TensorProto.FLOAT, -0.5),
            number("shift", TensorProto.FLOAT, shift),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
