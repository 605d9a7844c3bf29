"""A transform's share of the ONNX graph, and how shares become a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ctrkit.schema import Feature, Kind

IR_VERSION = 10
OPSETS = {"": 20, "ai.onnx.ml": 4, "com.microsoft": 1}
"""Operator sets the nodes are written in. The default domain's versions 19 to 25 mean the same by them."""


@dataclass(frozen=True)
class OnnxPart:
    """Nodes and initializers from a feature's raw inputs to its encoded output.

    Every tensor and node inside is named ``<name>@...``, so parts never collide.
    """

    name: str
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    nodes: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]


@dataclass
class OnnxWriter:
    """Collects the nodes of one feature, or of another field, naming them after it."""

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: Any, dtype: Any) -> str:
        """An initializer; returns its name."""
        name = f"{self.name}@constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any) -> str:
        """A node with one output; returns the output's name, ``<name>@<output>`` when ``output`` is given."""
        label = f"{self.name}@{kind}_{len(self.nodes)}"
        result = f"{self.name}@{output}" if output else label
        self.nodes.append(helper.make_node(kind, list(inputs), [result], name=label, domain=domain, **attributes))
        return result

    def part(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> OnnxPart:
        return OnnxPart(self.name, tuple(inputs), tuple(outputs), tuple(self.nodes), tuple(self.initializers))


def raw_inputs(feature: Feature) -> tuple[onnx.ValueInfoProto, ...]:
    """The canonical raw inputs of a feature: ``name`` [rows], or ``name.values`` [total] and ``name.lengths`` [rows]."""
    if feature.kind is Kind.NUMERIC:
        return (helper.make_tensor_value_info(feature.name, TensorProto.DOUBLE, ["rows"]),)
    element = TensorProto.STRING if feature.dtype == "string" else TensorProto.INT64
    if feature.kind is Kind.CATEGORICAL:
        return (helper.make_tensor_value_info(feature.name, element, ["rows"]),)
    return (
        helper.make_tensor_value_info(f"{feature.name}.values", element, [f"{feature.name}.total"]),
        helper.make_tensor_value_info(f"{feature.name}.lengths", TensorProto.INT64, ["rows"]),
    )


def assemble(parts: Iterable[OnnxPart], name: str = "transforms") -> onnx.ModelProto:
    """A model of its own from one part or many: raw values in, ids and floats out."""
    parts = list(parts)
    graph = helper.make_graph(
        [node for part in parts for node in part.nodes],
        name,
        [value for part in parts for value in part.inputs],
        [value for part in parts for value in part.outputs],
        initializer=[value for part in parts for value in part.initializers],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ctrkit")
